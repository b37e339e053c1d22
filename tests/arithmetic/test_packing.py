"""Packing by the codecs: bits in, bits out, and nothing invalid through."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ternarize_cli.arithmetic import packing
from ternarize_cli.format.codecs import ALL_CODECS, Codec, codec_for
from ternarize_cli.format.scheme import LEVELS

TWO_BIT, BASE3 = codec_for("ternary"), codec_for("ternary", "base3")


def random_codes(levels: str, rows: int, width: int, seed: int) -> torch.Tensor:
    grid = torch.tensor(LEVELS[levels], dtype=torch.int8)
    return grid[torch.randint(len(grid), (rows, width), generator=torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize(
    ("levels", "name", "codes", "byte"),
    [
        ("ternary", "2bit", [1, 0, -1, 1], 0b10_00_01_10),
        ("ternary", "base3", [1, 0, -1, 1, 0], 2 + 3 + 0 + 2 * 27 + 81),
        ("ternary", "base3", [1, 1, 1, 1, 1], 242),
        ("binary", "1bit", [1, -1, -1, 1, 1, 1, -1, 1], 0b10111001),
        ("int2", "2bit", [3, -3, 1, -1], 0b01_10_00_11),
        ("int4", "4bit", [-8, 7], 0xF0),
    ],
)
def test_a_byte_holds_its_codes_the_first_one_lowest(levels: str, name: str, codes: list[int], byte: int) -> None:
    assert packing.pack(codec_for(levels, name), torch.tensor([codes])).tolist() == [[byte]]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(ALL_CODECS), st.integers(0, 5), st.integers(1, 70), st.integers(0, 2**31))
def test_codes_survive_every_codec(codec: Codec, rows: int, width: int, seed: int) -> None:
    codes = random_codes(codec.levels, rows, width, seed)
    packed = packing.pack(codec, codes)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, codec.width(width))
    assert torch.equal(packing.unpack(codec, packed, width), codes)
    assert torch.equal(packing.pack(codec, codes.float()), packed)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(ALL_CODECS), st.integers(1, 16), st.data())
def test_every_row_of_bytes_is_refused_or_the_only_form_of_its_codes(
    codec: Codec, width: int, data: st.DataObject
) -> None:
    size = codec.width(width)
    packed = torch.tensor([data.draw(st.lists(st.integers(0, 255), min_size=size, max_size=size))], dtype=torch.uint8)
    try:
        codes = packing.unpack(codec, packed, width)
    except ValueError:
        return
    assert torch.equal(packing.pack(codec, codes), packed)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 70), st.integers(0, 2**31))
def test_base3_repacked_is_2bit(width: int, seed: int) -> None:
    codes = random_codes("ternary", 3, width, seed)
    assert torch.equal(
        packing.pack(TWO_BIT, packing.unpack(BASE3, packing.pack(BASE3, codes), width)), packing.pack(TWO_BIT, codes)
    )


@pytest.mark.parametrize(
    ("codec", "first_byte"),
    [
        (TWO_BIT, 0b01_01_01_10),
        (BASE3, 2 + 3 + 9 + 27 + 81),
        (codec_for("binary"), 0b0000_0001),
        (codec_for("int2"), 0b00_00_00_10),
        (codec_for("int4"), 0x89),
    ],
)
def test_padding_is_zero_weights_where_the_grid_has_them(codec: Codec, first_byte: int) -> None:
    assert packing.pack(codec, torch.tensor([[1]])).tolist() == [[first_byte]]
    last = codec.radix ** (codec.per_byte - 1)
    other = first_byte - last if first_byte >= last else first_byte + last
    with pytest.raises(ValueError, match="padding"):
        packing.unpack(codec, torch.tensor([[other]], dtype=torch.uint8), 1)


def test_an_invalid_code_is_named() -> None:
    packed = packing.pack(TWO_BIT, torch.zeros(2, 8))
    packed[1, 1] |= 0b11_00
    with pytest.raises(ValueError, match="invalid code 3 at row 1, input 5"):
        packing.unpack(TWO_BIT, packed, 8)


def test_a_byte_beyond_base3_is_named() -> None:
    packed = packing.pack(BASE3, torch.zeros(3, 12))
    packed[2, 1] = 243
    with pytest.raises(ValueError, match="invalid byte 243 at row 2, input 5; base3 ends at 242"):
        packing.unpack(BASE3, packed, 12)


def test_a_wrong_width_or_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \[out, 3\]"):
        packing.unpack(TWO_BIT, torch.zeros(2, 2, dtype=torch.uint8), 9)
    with pytest.raises(ValueError, match=r"expected uint8 \[out, 2\]"):
        packing.unpack(BASE3, torch.zeros(2, 3, dtype=torch.uint8), 9)
    with pytest.raises(ValueError, match="expected uint8"):
        packing.unpack(TWO_BIT, torch.zeros(2, 3), 9)
