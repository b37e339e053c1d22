"""Gradient checkpointing computes blocks twice, and losses and gradients stay the same."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from support.families import SMALL, T5, TEXT, Family, save_text, stages
from ternarize_cli.distill.losses import RECIPES, loss_parts
from ternarize_cli.distill.student_teacher import Pair, blocks_of
from ternarize_cli.encoders.anatomy import backbone
from ternarize_cli.encoders.loading import load_encoder

FAMILIES: list[Family] = [
    ("BertModel", "BertConfig", SMALL | TEXT),
    ("MPNetModel", "MPNetConfig", SMALL | TEXT),
    ("ModernBertModel", "ModernBertConfig", SMALL | TEXT),
    ("T5EncoderModel", "T5Config", T5),
]


def step(pair: Pair) -> tuple[dict[str, Tensor], list[Tensor | None], int]:
    """Losses, gradients and the number of hidden states of a step."""
    ids = torch.randint(5, 40, (4, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    features = {"input_ids": ids, "attention_mask": mask}
    pair.student.zero_grad(set_to_none=True)
    with pair.training():
        learnt = pair.student_outputs(features)
        losses = loss_parts(RECIPES["full"].parts, learnt, pair.teacher_outputs(features))
        torch.stack(list(losses.values())).sum().backward()
    return losses, [p.grad for p in pair.student.parameters()], len(learnt.hidden)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family[0])
def test_losses_and_gradients_stay_the_same(family: Family, tmp_path: Path) -> None:
    source = save_text(family, tmp_path / "source")
    _, latent, _ = stages(source, tmp_path)
    pair = Pair(load_encoder(latent, device="cpu"), load_encoder(source, device="cpu"), tables=True)
    runs: list[int] = []
    inner = next(blocks_of(backbone(pair.student))[0].children())
    inner.register_forward_pre_hook(lambda *_: runs.append(1))
    losses, gradients, states = step(pair)
    assert len(runs) == 1
    pair.recompute(True)
    again, computed, states_again = step(pair)
    assert len(runs) == 3  # forwards and backwards
    assert states_again == states
    assert all(torch.equal(losses[name], again[name]) for name in losses)
    assert any(gradient is not None for gradient in gradients)
    for a, b in zip(gradients, computed, strict=True):
        assert b is None if a is None else torch.equal(a, b)
    pair.recompute(False)
    step(pair)
    assert len(runs) == 4
