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
from ternarize_cli.distill import gpu_forward
from ternarize_cli.distill.gpu_forward import run_on_gpu
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


def counting(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Notes the calls of a function of the module."""
    calls: list[str] = []
    run: Callable[..., Any] = getattr(gpu_forward, name)
    monkeypatch.setattr(gpu_forward, name, lambda *given: (calls.append(name), run(*given))[1])
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("family", [f for f in FUSED if f[0] in (*ATTENTION, *NORMS)], ids=name_of)
def test_a_step_computes_the_same(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(family, tmp_path, monkeypatch)
    own = step(trainer)
    joined, norms = counting(monkeypatch, "_joined"), counting(monkeypatch, "_norm")
    monkeypatch.setattr(gpu_forward, "_is_fast", lambda x: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.float32)
    for encoder in (trainer.pair.student, trainer.pair.teacher):
        run_on_gpu(encoder)
    fast = step(trainer)
    assert bool(joined) is (family[0] in ATTENTION)
    assert norms
    for a, b in zip(own, fast, strict=True):
        without = {name for name in a if name not in b}
        assert all("relative_attention_bias" in name for name in without)
        for name in b:
            torch.testing.assert_close(b[name], a[name], atol=2e-5, rtol=2e-3)


def test_nothing_changes_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(next(f for f in FUSED if f[0] == "MPNetModel"), tmp_path, monkeypatch)
    own = step(trainer)
    for encoder in (trainer.pair.student, trainer.pair.teacher):
        run_on_gpu(encoder)
    again = step(trainer)
    for a, b in zip(own, again, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
