"""Parts that run by kernels for training on a GPU compute what the models' own parts compute; here interpreted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support.families import Family
from support.fused_families import FUSED, name_of
from support.training_runs import trainer_of
from ternarize_cli.arithmetic.gpu_training import norm
from ternarize_cli.distill import fast_forward, student_teacher
from ternarize_cli.distill.losses import loss_parts
from ternarize_cli.distill.trainer import Trainer

ATTENTION = ("BertModel", "RobertaModel", "XLMRobertaModel", "MPNetModel")
NORMS = ("DistilBertModel", "Dinov2Model")


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
        without = {name for name in a if name not in b}
        assert all("relative_attention_bias" in name for name in without)
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
