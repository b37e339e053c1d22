"""Codes and scales are counted in NumPy as PyTorch counts them."""

import numpy as np
import pytest
import torch

from ternarize_cli.arithmetic import packing
from ternarize_cli.compress.survey import Survey, code_counts
from ternarize_cli.format.codecs import ALL_CODECS, Codec, codec_for
from ternarize_cli.format.scheme import LEVELS


def name_of(codec: Codec) -> str:
    return f"{codec.levels}-{codec.name}"


@pytest.mark.parametrize("codec", ALL_CODECS, ids=name_of)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (64, 41), (5, 40)])
def test_counts_are_those_of_the_unpacked_codes(codec: Codec, shape: tuple[int, int]) -> None:
    grid = torch.tensor(LEVELS[codec.levels], dtype=torch.int8)
    codes = grid[torch.randint(len(grid), shape, generator=torch.Generator().manual_seed(3))]
    counts = code_counts(codec, packing.pack(codec, codes).numpy(), shape[1])
    assert counts == {code: int((codes == code).sum()) for code in LEVELS[codec.levels]}
    assert list(counts) == sorted(LEVELS[codec.levels])


@pytest.mark.parametrize(
    ("levels", "name", "rows", "inputs"),
    [
        ("ternary", "2bit", [[0b11]], 1),
        ("ternary", "2bit", [[0b01010101, 0b00000001]], 5),
        ("ternary", "base3", [[0, 243]], 10),
        ("binary", "1bit", [[0b10000000]], 7),
        ("int4", "4bit", [[8, 8]], 1),
    ],
)
def test_what_can_t_be_unpacked_can_t_be_counted(levels: str, name: str, rows: list[list[int]], inputs: int) -> None:
    codec, packed = codec_for(levels, name), np.array(rows, dtype=np.uint8)
    with pytest.raises(ValueError, match=r"invalid|padding|expected") as unpacked:
        packing.unpack(codec, torch.from_numpy(packed), inputs)
    with pytest.raises(ValueError, match=r"invalid|padding|expected") as counted:
        code_counts(codec, packed, inputs)
    assert str(counted.value) == str(unpacked.value)


def test_every_scale_of_float16_is_in_the_bin_that_pytorch_finds() -> None:
    halves = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    survey = Survey(None)
    survey.ternary("x", (1, 1), "ternary", 0, {0: 1}, halves)
    found = survey.scales()
    assert found is not None
    assert sum(found.counts) == len(halves)
    quarters = (torch.from_numpy(halves).log2() * 4).floor().clamp(-24 * 4, 8 * 4 - 1)
    bins = torch.bincount((quarters + 24 * 4).to(torch.int64))
    filled = bins.nonzero().flatten()
    assert found.counts == tuple(bins[filled[0] :].tolist())
    assert found.edges[0] == 2.0**-24


def test_scales_of_zero_are_described_and_not_counted() -> None:
    survey = Survey(None)
    made = survey.ternary("x", (2, 4), "ternary", 10, {-1: 2, 0: 4, 1: 2}, np.array([[0.0], [0.5]], dtype=np.float32))
    assert (made.scale_min, made.scale_mean, made.scale_max, made.zeros) == (0.0, 0.25, 0.5, 0.5)
    found = survey.scales()
    assert found is not None
    assert (found.edges[0], found.counts) == (0.5, (1,))
    empty = Survey(None)
    empty.ternary("x", (1, 4), "ternary", 5, {-1: 0, 0: 4, 1: 0}, np.zeros((1, 1), dtype=np.float32))
    assert empty.scales() is None
