"""Parts that run by kernels for training on a GPU compute what the models' own parts compute; here interpreted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from support.families import SMALL, TEXT, Family
from support.fused_families import FUSED, name_of
from support.recorded_steps import crossings
from support.training_runs import trainer_of
from ternarize_cli.arithmetic.gpu_training import attention, norm
from ternarize_cli.distill import fast_forward, student_teacher
from ternarize_cli.distill.fast_forward import make_fast
from ternarize_cli.distill.losses import loss_parts
from ternarize_cli.distill.trainer import Trainer
from ternarize_cli.encoders.anatomy import backbone

ATTENTION = ("BertModel", "RobertaModel", "XLMRobertaModel", "MPNetModel")
NORMS = ("DistilBertModel", "Dinov2Model")
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="computes on the CPU, with Triton's interpreter")


def step(trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The losses of a batch, and the gradients of all weights."""
    pair = trainer.pair
    features = pair.put(next(trainer.batches.heaviest()))
    with pair.training():
        parts = loss_parts(trainer.training.parts, pair.student_outputs(features), pair.teacher_outputs(features))
        torch.stack(list(parts.values())).sum().backward()
    gradients = {n: p.grad.clone() for n, p in pair.student.named_parameters() if p.grad is not None}
    for parameter in pair.student.parameters():
        parameter.grad = None
    return parts, gradients


def counting(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[str]:
    """Notes the calls of a function of a module."""
    calls: list[str] = []
    run: Callable[..., Any] = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given: (calls.append(name), run(*given))[1])
    return calls


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("family", [f for f in FUSED if f[0] in (*ATTENTION, *NORMS)], ids=name_of)
def test_a_step_computes_the_same(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(family, tmp_path, monkeypatch)
    own = step(trainer)
    joined, norms = counting(monkeypatch, fast_forward, "_joined"), counting(monkeypatch, norm, "layer_norm")
    monkeypatch.setattr(fast_forward, "_is_fast", lambda x: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.float32)
    fast = step(trainer)
    assert bool(joined) is (family[0] in ATTENTION)
    assert norms
    for a, b in zip(own, fast, strict=True):
        without = [name for name in a if name not in b]
        assert all(family[0] == "MPNetModel" and "relative_attention_bias" in name for name in without)
        for name in b:
            torch.testing.assert_close(b[name], a[name], atol=2e-5, rtol=2e-3)


def test_nothing_changes_without_autocast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = next(f for f in FUSED if f[0] == "MPNetModel")
    made = step(trainer_of(family, tmp_path / "made", monkeypatch))
    monkeypatch.setattr(student_teacher, "make_fast", lambda model: None)
    own = step(trainer_of(family, tmp_path / "own", monkeypatch))
    for a, b in zip(own, made, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


@interpreted
def test_an_image_encoder_computes_in_the_dtype_of_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(next(f for f in FUSED if f[0] == "Dinov2Model"), tmp_path, monkeypatch)
    pair, own = trainer.pair, step(trainer)[0]
    features = pair.put(next(trainer.batches.heaviest()))
    monkeypatch.setattr(fast_forward, "_is_fast", lambda x: True)
    with pair.training(), torch.autocast("cpu", torch.bfloat16):
        outputs = pair.student_outputs(features), pair.teacher_outputs(features)
    assert {state.dtype for made in outputs for state in made.hidden} == {torch.bfloat16}
    for name, value in loss_parts(trainer.training.parts, *outputs).items():
        torch.testing.assert_close(value, own[name], atol=0.01, rtol=0.05)


@pytest.mark.parametrize("name", ["BertModel", "MPNetModel"])
def test_nothing_is_copied_from_the_cpu(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def attended(qkv: Tensor, heads: int, scale: float, mask: Tensor, distances: Tensor | None = None) -> Tensor:
        assert mask.shape == qkv.shape[:2]
        assert distances is None or distances.shape == (heads, 257)
        return qkv[..., : qkv.shape[-1] // 3] * scale

    monkeypatch.setattr(attention, "self_attention", attended)
    monkeypatch.setattr(norm, "layer_norm", lambda x, gain, shift, *_: x * gain + shift)
    trainer = trainer_of(next(f for f in FUSED if f[0] == name), tmp_path, monkeypatch)
    monkeypatch.setattr(fast_forward, "_is_fast", lambda x: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.float32)
    with trainer.pair.training():
        assert crossings(trainer, next(trainer.batches.heaviest())) == []


@interpreted
def test_what_a_kernel_can_not_do_is_left_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_forward, "_is_fast", lambda x: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.float32)
    wide = SMALL | TEXT | {"hidden_size": 288, "num_attention_heads": 2}
    x = torch.randint(4, 20, (2, 9))
    for model in (hf.MPNetModel(hf.MPNetConfig(**wide)), hf.FNetModel(hf.FNetConfig(**SMALL)), _decoder()):
        model.eval()
        with torch.no_grad():
            own = model(x)[0]
            make_fast(model)
            torch.testing.assert_close(model(x)[0], own)


def _decoder() -> Any:
    return hf.BertModel(hf.BertConfig(**SMALL | TEXT, is_decoder=True))


def test_recomputed_blocks_keep_no_rounded_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(next(f for f in FUSED if f[0] == "BertModel"), tmp_path, monkeypatch)
    pair, kept = trainer.pair, list[Any]()
    pair.recompute(True)
    for block in student_teacher.blocks_of(backbone(pair.student)):
        block.register_forward_hook(lambda module, args, made: kept.append(args[0]))
    with pair.training():
        pair.student_outputs(pair.put(next(trainer.batches.heaviest())))
    assert kept
    assert not any(hasattr(x, "rounded") for x in kept)
