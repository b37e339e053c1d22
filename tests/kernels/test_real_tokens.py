"""Passes over real tokens alone: rounding sizes changes no vector, and what is recorded reads no value."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from support.families import Family
from support.fused_families import FUSED, inputs, opened, packed
from ternarize_cli import kernels

pytest.importorskip("triton", reason="the package triton is not installed")

from ternarize_cli.kernels.gpu import encoder as gpu_encoder
from ternarize_cli.kernels.gpu import pass_sizes
from ternarize_cli.kernels.gpu.encoder import GpuEncoder
from ternarize_cli.kernels.gpu.int8 import Int8
from ternarize_cli.kernels.gpu.pass_sizes import sizes
from ternarize_cli.kernels.gpu.token_rows import TokenRows, count_tokens, spread, token_rows
from ternarize_cli.kernels.pooled_output import pooled_output
from ternarize_cli.layers.text_lengths import with_lengths

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = (9, 0, 17, 1)


def mask_of(lengths: tuple[int, ...]) -> Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long().to(DEVICE)


def rows_of(mask: Tensor, *, full: bool = False) -> TokenRows:
    """Lays out tokens whose ids are 1000 and their number in the batch, with token types and positions if `full`."""
    ids = 1000 + torch.arange(mask.numel(), device=DEVICE).view(mask.shape)
    return token_rows(ids, mask, 2 * ids if full else None, 3 * ids if full else None, count_tokens(mask).lengths)


def encoder_of(name: str, folder: Path) -> tuple[Family, Any, GpuEncoder]:
    """A tiny packed model of a family, and its encoder with exact sums, which pools as the model does."""
    family = next(f for f in FUSED if f[0] == name)
    model = opened(family, packed(family, folder)).to(DEVICE)
    kernels.use_backend(model, "reference")
    return family, model, GpuEncoder(model, Int8, lambda hidden, first: pooled_output(model, hidden, first))


def round_up_by(monkeypatch: pytest.MonkeyPatch, rows: int, texts: int) -> None:
    """Rounds sizes up by as much, and not by a thousand rows, which take minutes without a card."""
    for name, size in (("_FEW", rows), ("_ROWS", rows), ("_TEXTS", texts)):
        monkeypatch.setattr(pass_sizes, name, size)


class NoValues(TorchDispatchMode):
    """Refuses operations that read values of tensors, or whose results' shapes depend on them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags), func
        return func(*args, **(kwargs or {}))


def test_batches_of_a_corpus_have_few_sizes() -> None:
    """Numbers of real tokens, texts, and tokens of the longest text, as chunks of sentences have them."""
    batches = [(32_760, 1093, 74), (32_751, 900, 117), (32_768, 1800, 24), (32_749, 2300, 30), (32_766, 2700, 17)]
    assert {sizes(*batch) for batch in batches} == {(32_768, 2048, 128), (32_768, 4096, 32)}
    assert [sizes(count, 41, 203).rows for count in (6900, 8322, 16_385)] == [7168, 10_240, 24_576]
    for batch in [*batches, (1, 1, 1), (9000, 4095, 9), (70_000, 2, 40_000)]:
        made = sizes(*batch)
        assert all(rounded >= given for rounded, given in zip(made, batch, strict=True))
        assert made.rows - batch[0] <= (made.texts - batch[1]) * made.longest, "every row is a text's"


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_tokens_are_counted_and_holes_are_found(dtype: torch.dtype) -> None:
    masks = {
        "right": mask_of(LENGTHS),
        "left": mask_of(LENGTHS).flip(1),
        "hole": mask_of(LENGTHS).index_fill(1, torch.tensor(3, device=DEVICE), 0),
        "long": mask_of((300, 0, 129)),
        "long with a hole": mask_of((300, 0, 129)).index_fill(1, torch.tensor(128, device=DEVICE), 0),
    }
    found = {name: count_tokens(mask.to(dtype)) for name, mask in masks.items()}
    for name, mask in masks.items():
        assert found[name].lengths.tolist() == mask.sum(dim=1).tolist()
    assert [name for name, made in found.items() if not made.begins_real] == ["left"]
    assert [name for name, made in found.items() if made.has_hole] == ["hole", "long with a hole"]


@pytest.mark.parametrize("full", [True, False])
def test_real_tokens_lie_side_by_side_and_what_rounding_adds_behind_them(
    full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    round_up_by(monkeypatch, 64, 16)
    mask, count = mask_of(LENGTHS), sum(LENGTHS)
    made = rows_of(mask, full=full)
    at = torch.cat([mask.flatten().nonzero().flatten(), torch.zeros(64 - count, dtype=torch.int64, device=DEVICE)])
    ids = 1000 + at
    wanted = [ids, 3 * ids, 2 * ids] if full else [ids, at % 17]
    assert made.inputs.tolist() == torch.stack(wanted).tolist()
    assert made.starts.tolist() == [0, 9, 9, 26, 27, 59, *[64] * 11]
    assert made.longest == 32
    begins, ends, places = made.places.tolist()
    assert begins == [0] * 9 + [9] * 17 + [26] + [27] * 32 + [59] * 5
    assert ends == [9] * 9 + [26] * 17 + [27] + [59] * 32 + [64] * 5
    assert places[:count] == [place for length in LENGTHS for place in range(length)]


@pytest.mark.parametrize("width", [5, 64])
@pytest.mark.parametrize("lengths", [LENGTHS, (300, 0, 129)])
@pytest.mark.parametrize("padding", ["right", "left", "holes"])
def test_hidden_states_come_back_to_where_tokens_stand(padding: str, lengths: tuple[int, ...], width: int) -> None:
    mask = mask_of(lengths)
    mask = mask.flip(1) if padding == "left" else mask
    if padding == "holes":
        mask[:, 1::3] = 0
    made = rows_of(mask)
    hidden = made.inputs[0].float()[:, None] + torch.arange(width, device=DEVICE)
    ids = 1000 + torch.arange(mask.numel(), device=DEVICE)[:, None] + torch.arange(width, device=DEVICE)
    assert torch.equal(spread(hidden, made.row_of), torch.where(mask.flatten()[:, None] != 0, ids.float(), 0))


def test_lengths_that_a_mask_does_not_have_leave_no_row_without_a_value() -> None:
    ids = 1000 + torch.arange(4 * 17, device=DEVICE).view(4, 17)
    made = token_rows(ids, mask_of((5, 0, 17, 3)), None, None, np.array([9, 2, 9, 1]))
    begins, ends, places = made.places.tolist()
    assert made.inputs[0].tolist()[:9] == [1000, 1001, 1002, 1003, 1004, *[0] * 4]
    assert begins[:21] == [0] * 11 + [11] * 9 + [20]
    assert ends[:21] == [9] * 5 + [0] * 6 + [20] * 9 + [21]
    assert places[:21] == [0, 1, 2, 3, 4, *[0] * 6, *range(9), 0]
    assert 0 <= int(made.inputs.min()) <= int(made.inputs.max()) < 1000 + ids.numel()
    assert int(made.row_of.max()) == 20


def test_padding_on_the_left_moves_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pass_sizes, "_FEW", 1)
    right, left = mask_of(LENGTHS), mask_of(LENGTHS).flip(1)
    of_right, of_left = rows_of(right), rows_of(left)
    assert torch.equal(of_left.places, of_right.places)
    assert torch.equal(of_left.starts, of_right.starts)
    assert torch.equal(of_left.inputs[0] - 1000, left.flatten().nonzero().flatten())


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["RobertaModel", "ModernBertModel", "MistralModel"])
def test_a_pass_in_rounded_sizes_gives_the_same_and_reads_no_value(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, model, encoder = encoder_of(name, tmp_path)
    ids, mask = inputs(family)["input_ids"][:, : max(LENGTHS)].to(DEVICE), mask_of(LENGTHS).to(DEVICE)
    count, passes, recorded = sum(LENGTHS), [], encoder._recorded_unpadded

    def run(given: Any) -> Any:
        with NoValues():
            hidden, pooled = recorded(given)
        passes.append(hidden)
        return hidden, pooled

    monkeypatch.setattr(gpu_encoder, "_SMALL", 0)  # as if the batch were large
    monkeypatch.setattr(gpu_encoder, "_LARGE", 0)  # without recording
    monkeypatch.setattr(encoder, "_recorded_unpadded", run)
    made = []
    for rows, texts in ((1, 1), (64, 16)):
        round_up_by(monkeypatch, rows, texts)
        made.append(encoder.texts(ids, with_lengths(mask, np.array(LENGTHS)), None))
    assert [len(rows) for rows in passes] == [count, 64]
    assert torch.equal(*made)
    assert made[1][mask == 0].count_nonzero() == 0
    assert passes[1].isfinite().all(), "rows that rounding adds have values"
    pooled = pooled_output(model, made[1], ids)
    assert (encoder.pooled is None) == (pooled is None) == (name != "RobertaModel")
    if pooled is not None:
        torch.testing.assert_close(encoder.pooled, pooled)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["RobertaModel", "MPNetModel"])
def test_a_large_batch_is_run_padded_where_places_have_holes_and_pools_no_padding(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lengths are not known, so the card counts them; MPNet counts places from key to query."""
    family, _, encoder = encoder_of(name, tmp_path)
    ids = inputs(family)["input_ids"][: len(LENGTHS), : max(LENGTHS)].to(DEVICE)
    right = mask_of(LENGTHS)
    hole = right.index_fill(1, torch.tensor(3, device=DEVICE), 0)
    run_alone = encoder._unpadded
    round_up_by(monkeypatch, 64, 16)
    for mask, begins_real, is_whole in ((right, True, False), (right.flip(1), False, False), (hole, True, True)):
        alone: list[bool] = []

        def noting(*given: Any, alone: list[bool] = alone) -> Tensor:
            alone.append(True)
            return run_alone(*given)

        monkeypatch.setattr(encoder, "_unpadded", noting)
        monkeypatch.setattr(gpu_encoder, "_SMALL", 1 << 30)
        padded = encoder.texts(ids, mask, None)
        assert not alone
        monkeypatch.setattr(gpu_encoder, "_SMALL", 0)
        made = encoder.texts(ids, mask, None)
        assert bool(alone) is not (is_whole and name == "MPNetModel")
        torch.testing.assert_close(made[mask != 0], padded[mask != 0], rtol=1e-3, atol=1e-3)
        if name == "RobertaModel":
            assert (encoder.pooled is not None) is begins_real


@pytest.mark.skipif(DEVICE == "cpu", reason="needs an NVIDIA GPU")
@torch.no_grad()
def test_one_recorded_pass_serves_all_batches_of_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family, _, encoder = encoder_of("BertModel", tmp_path)
    monkeypatch.setattr(gpu_encoder, "_SMALL", 0)
    round_up_by(monkeypatch, 64, 16)

    def run(lengths: tuple[int, ...], large: int) -> tuple[Tensor, Tensor | None]:
        monkeypatch.setattr(gpu_encoder, "_LARGE", large)
        ids = inputs(family)["input_ids"][: len(lengths), : max(lengths)].to(DEVICE)
        made = encoder.texts(ids, with_lengths(mask_of(lengths).to(DEVICE), np.array(lengths)), None)
        return made, encoder.pooled

    for lengths in (LENGTHS, (17, 17, 3, 1), (2, 1, 18), (30, 0, 17, 1), (20, 31)):
        made, pooled = run(lengths, 1 << 17)
        expected, expected_pooled = run(lengths, 0)  # not recorded
        assert torch.equal(made, expected)
        torch.testing.assert_close(pooled, expected_pooled)
    assert encoder._unpadded_graphs.refused is None
    assert len(encoder._unpadded_graphs._recorded) == 1
    run((2, 12), 1 << 17)
    run((3, 12), 1 << 17)
    assert len(encoder._unpadded_graphs._recorded) == 2, "texts are at most 16 tokens long, which is another size"
