"""The codecs: bits in, bits out, and nothing invalid through."""

import pytest
import torch

from ternarize_cli.packing import pack_2bit, packed_width, unpack_2bit


def test_a_byte_holds_four_codes_lowest_bits_first() -> None:
    assert pack_2bit(torch.tensor([[1, 0, -1, 1]])).tolist() == [[0b10_00_01_10]]


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 31, 384])
def test_codes_survive_packing(width: int) -> None:
    codes = torch.randint(-1, 2, (7, width), generator=torch.Generator().manual_seed(width), dtype=torch.int8)
    packed = pack_2bit(codes)
    assert packed.shape == (7, packed_width(width))
    assert torch.equal(unpack_2bit(packed, width), codes)


def test_padding_is_zero_weights() -> None:
    assert pack_2bit(torch.tensor([[1]])).tolist() == [[0b01_01_01_10]]
    with pytest.raises(ValueError, match="padding"):
        unpack_2bit(torch.tensor([[0b00_01_01_10]], dtype=torch.uint8), 1)


def test_an_invalid_code_is_named() -> None:
    packed = pack_2bit(torch.zeros(2, 8))
    packed[1, 1] |= 0b11_00
    with pytest.raises(ValueError, match="invalid code 3 at row 1, input 5"):
        unpack_2bit(packed, 8)


def test_a_wrong_width_or_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \[out, 3\]"):
        unpack_2bit(torch.zeros(2, 2, dtype=torch.uint8), 9)
    with pytest.raises(ValueError, match="expected uint8"):
        unpack_2bit(torch.zeros(2, 3), 9)
