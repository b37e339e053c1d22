"""The codecs: bits in, bits out, and nothing invalid through."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ternarize_cli.errors import InputError
from ternarize_cli.format.codecs import ALL_CODECS, Codec, codec_for
from ternarize_cli.format.scheme import CODECS, LEVELS

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
    assert codec_for(levels, name).pack(torch.tensor([codes])).tolist() == [[byte]]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(ALL_CODECS), st.integers(0, 5), st.integers(1, 70), st.integers(0, 2**31))
def test_codes_survive_every_codec(codec: Codec, rows: int, width: int, seed: int) -> None:
    codes = random_codes(codec.levels, rows, width, seed)
    packed = codec.pack(codes)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, codec.width(width))
    assert torch.equal(codec.unpack(packed, width), codes)
    assert torch.equal(codec.pack(codes.float()), packed)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(ALL_CODECS), st.integers(1, 16), st.data())
def test_every_row_of_bytes_is_refused_or_the_only_form_of_its_codes(
    codec: Codec, width: int, data: st.DataObject
) -> None:
    size = codec.width(width)
    packed = torch.tensor([data.draw(st.lists(st.integers(0, 255), min_size=size, max_size=size))], dtype=torch.uint8)
    try:
        codes = codec.unpack(packed, width)
    except ValueError:
        return
    assert torch.equal(codec.pack(codes), packed)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 70), st.integers(0, 2**31))
def test_base3_repacked_is_2bit(width: int, seed: int) -> None:
    codes = random_codes("ternary", 3, width, seed)
    assert torch.equal(TWO_BIT.pack(BASE3.unpack(BASE3.pack(codes), width)), TWO_BIT.pack(codes))


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
    assert codec.pack(torch.tensor([[1]])).tolist() == [[first_byte]]
    last = codec.radix ** (codec.per_byte - 1)
    other = first_byte - last if first_byte >= last else first_byte + last
    with pytest.raises(ValueError, match="padding"):
        codec.unpack(torch.tensor([[other]], dtype=torch.uint8), 1)


def test_an_invalid_code_is_named() -> None:
    packed = TWO_BIT.pack(torch.zeros(2, 8))
    packed[1, 1] |= 0b11_00
    with pytest.raises(ValueError, match="invalid code 3 at row 1, input 5"):
        TWO_BIT.unpack(packed, 8)


def test_a_byte_beyond_base3_is_named() -> None:
    packed = BASE3.pack(torch.zeros(3, 12))
    packed[2, 1] = 243
    with pytest.raises(ValueError, match="invalid byte 243 at row 2, input 5; base3 ends at 242"):
        BASE3.unpack(packed, 12)


def test_a_wrong_width_or_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \[out, 3\]"):
        TWO_BIT.unpack(torch.zeros(2, 2, dtype=torch.uint8), 9)
    with pytest.raises(ValueError, match=r"expected uint8 \[out, 2\]"):
        BASE3.unpack(torch.zeros(2, 3, dtype=torch.uint8), 9)
    with pytest.raises(ValueError, match="expected uint8"):
        TWO_BIT.unpack(torch.zeros(2, 3), 9)


def test_every_grid_has_its_codecs_and_no_others() -> None:
    assert {(c.levels, c.name) for c in ALL_CODECS} == {(levels, n) for levels, names in CODECS.items() for n in names}
    assert [codec_for(levels).name for levels in LEVELS] == ["2bit", "1bit", "2bit", "4bit"]
    with pytest.raises(InputError, match="no codec 'base3' for int4 codes") as caught:
        codec_for("int4", "base3")
    assert caught.value.hint == "one of 4bit"


def test_bits_of_a_code_are_those_of_the_format() -> None:
    assert [codec.bits for codec in ALL_CODECS] == [2, 1.6, 1, 2, 4]
