"""The codecs: which there are, what a byte of each holds, and that a check lets through only what unpacks."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ternarize_cli.arithmetic import packing
from ternarize_cli.errors import InputError
from ternarize_cli.format.codecs import ALL_CODECS, INVALID, Codec, codec_for
from ternarize_cli.format.scheme import CODECS, LEVELS


def test_every_grid_has_its_codecs_and_no_others() -> None:
    assert {(c.levels, c.name) for c in ALL_CODECS} == {(levels, n) for levels, names in CODECS.items() for n in names}
    assert [codec_for(levels).name for levels in LEVELS] == ["2bit", "1bit", "2bit", "4bit"]
    with pytest.raises(InputError, match="no codec 'base3' for int4 codes") as caught:
        codec_for("int4", "base3")
    assert caught.value.hint == "one of 4bit"


def test_bits_of_a_code_are_those_of_the_format() -> None:
    assert [codec.bits for codec in ALL_CODECS] == [2, 1.6, 1, 2, 4]


def test_a_table_has_the_codes_of_every_byte_the_first_one_lowest() -> None:
    assert codec_for("ternary").table[0b11_10_01_00].tolist() == [-1, 0, 1, INVALID]
    base3 = codec_for("ternary", "base3").table
    assert base3[2 + 3 * 1 + 9 * 0 + 27 * 2 + 81 * 0].tolist() == [1, 0, -1, 1, -1]
    assert (base3[243:] == INVALID).all()
    assert (base3[:243] != INVALID).all()
    assert codec_for("binary").table[0b0000_0101].tolist() == [1, -1, 1, -1, -1, -1, -1, -1]
    assert codec_for("int4").table[0x2F].tolist() == [7, -6]


def complaint(call: Callable[[], object]) -> str:
    """What a call says is wrong; nothing if it goes through."""
    try:
        call()
    except ValueError as e:
        return str(e)
    return ""


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(ALL_CODECS), st.integers(0, 3), st.integers(1, 16), st.data())
def test_a_check_says_what_unpacking_says(codec: Codec, rows: int, width: int, data: st.DataObject) -> None:
    size = rows * codec.width(width)
    limit = st.integers(0, codec.radix**codec.per_byte - 1) | st.integers(0, 255)
    content = data.draw(st.lists(limit, min_size=size, max_size=size))
    packed = np.array(content, dtype=np.uint8).reshape(rows, codec.width(width))
    told = complaint(lambda: codec.check(packed, width))
    assert told == complaint(lambda: packing.unpack(codec, torch.from_numpy(packed), width))


@pytest.mark.parametrize("codec", ALL_CODECS, ids=lambda codec: f"{codec.levels} {codec.name}")
def test_a_check_lets_packed_codes_through_and_names_a_wrong_one(codec: Codec) -> None:
    grid = torch.tensor(LEVELS[codec.levels], dtype=torch.int8)
    codes = grid[torch.randint(len(grid), (5, 33), generator=torch.Generator().manual_seed(0))]
    packed = packing.pack(codec, codes).numpy()
    codec.check(packed, 33)
    assert (codec.table[packed].reshape(5, -1)[:, :33] == codes.numpy()).all()
    if -33 % codec.per_byte:
        wrong, last = packed.copy(), codec.radix ** (codec.per_byte - 1)
        wrong[4, -1] = (int(wrong[4, -1]) + last) % (codec.radix * last)  # another last digit
        with pytest.raises(ValueError, match="the padding at the end of a row"):
            codec.check(wrong, 33)
    if codec.levels == "ternary":
        wrong = packed.copy()
        wrong[3, 2] = 255
        with pytest.raises(ValueError, match=f"at row 3, input {2 * codec.per_byte}"):
            codec.check(wrong, 33)


@pytest.mark.parametrize(
    "packed",
    [np.zeros((2, 3), np.int8), np.zeros((2, 2), np.uint8), np.zeros(3, np.uint8), np.zeros((1, 2, 3), np.uint8)],
)
def test_a_check_refuses_another_dtype_or_shape(packed: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \[out, 3\] for 9 inputs, got u?int8 \[.*\]"):
        codec_for("ternary").check(packed, 9)
