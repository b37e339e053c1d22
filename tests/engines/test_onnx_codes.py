"""The layout of codes and scales as ONNX Runtime's MatMulNBits reads them."""

import numpy as np
import pytest

from ternarize_cli.engines.onnx_codes import PackedLayer, block_of, code_blocks
from ternarize_cli.errors import InputError

RANDOM = np.random.default_rng(0)


def layer(width: int, groups: int = 1, low: int = -1, high: int = 1) -> PackedLayer:
    codes = RANDOM.integers(low, high + 1, (5, width)).astype(np.int8)
    codes[0, :2] = low, high
    return PackedLayer("a", codes, RANDOM.uniform(0.5, 2, (5, groups)).astype(np.float16), False)


@pytest.mark.parametrize(("bits", "block"), [(2, 32), (2, 64), (4, 32), (4, 128)])
def test_codes_and_scales_give_the_matrix_back(bits: int, block: int) -> None:
    made = layer(70)
    codes, scales = code_blocks(made, bits, block)
    count = -(-70 // block)
    assert (codes.dtype, codes.shape) == (np.uint8, (5, count, block * bits // 8))
    assert (scales.dtype, scales.shape) == (np.float32, (5, count))
    digits = (codes[..., None] >> np.arange(0, 8, bits, dtype=np.uint8)) & (2**bits - 1)
    values = (digits.reshape(5, count, block).astype(int) - 2 ** (bits - 1)) * scales[..., None]
    assert np.array_equal(values.reshape(5, -1)[:, :70], made.codes * made.scales.astype(np.float32))
    assert not values.reshape(5, -1)[:, 70:].any()


def test_a_block_repeats_the_scale_of_its_group() -> None:
    made = layer(256, groups=2)
    scales = code_blocks(made, 2, 64)[1]
    assert np.array_equal(scales, np.repeat(made.scales.astype(np.float32), 2, axis=1))


def test_a_block_lies_within_a_row_and_a_group() -> None:
    assert [block_of(layer(width)) for width in (384, 192, 96, 70, 16)] == [128, 64, 32, 32, 32]
    assert block_of(layer(384, groups=6)) == 64
    with pytest.raises(InputError, match="a has a scale for 16 inputs"):
        block_of(layer(64, groups=4))


def test_codes_that_do_not_fit_are_refused() -> None:
    code_blocks(layer(64, low=-2), 2, 32)
    code_blocks(layer(64, low=-8, high=7), 4, 32)
    with pytest.raises(InputError, match="a has codes from -3 to 3, and 2 bits hold those from -2 to 1") as caught:
        code_blocks(layer(64, low=-3, high=3), 2, 32)
    assert caught.value.hint == "--bits 4"
