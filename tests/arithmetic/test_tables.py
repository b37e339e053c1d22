"""Embedding tables in 8 and 4 bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ternarize_cli.arithmetic import tables


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 9), dim=st.integers(1, 100), seed=st.integers(0, 2**31))
def test_rows_survive_storing_and_do_not_depend_on_each_other(bits: int, rows: int, dim: int, seed: int) -> None:
    table = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))
    codes, scale = tables.quantize_table(table, bits)
    stored = tables.pack_codes(codes, bits)
    assert (stored.shape, stored.dtype, scale.shape) == tables.stored_shapes(rows, dim, bits)
    assert torch.equal(tables.unpack_codes(stored, dim, bits), codes)
    tables.check_codes(stored, dim, bits)
    for i in range(rows):
        alone, its_scale = tables.quantize_table(table[i : i + 1], bits)
        assert torch.equal(alone[0], codes[i])
        assert torch.equal(its_scale[0], scale[i])


def test_8_bit_rows_keep_their_sign_and_their_largest_value() -> None:
    codes, scale = tables.quantize_table(torch.tensor([[1.27, -0.635], [0.0, 0.0]]), 8)
    assert scale.dtype == torch.float16
    assert codes.tolist() in ([[127, -64], [0, 0]], [[127, -63], [0, 0]])


def test_4_bit_rows_lie_in_nibbles_the_first_one_low() -> None:
    codes, scale = tables.quantize_table(torch.tensor([[-8.0, 7.0, 0.0], [0.0, 0.0, 0.0]]), 4)
    assert codes.tolist() == [[-8, 7, 0], [0, 0, 0]]
    assert scale.tolist() == [[1.0], [0.0]]
    assert tables.pack_codes(codes, 4).tolist() == [[0xF0, 0x88], [0x88, 0x88]]


def test_each_group_of_32_has_its_own_scale() -> None:
    row = torch.cat([torch.full((32,), 1.0), torch.full((32,), 100.0), torch.full((3,), 0.01)])
    codes, scale = tables.quantize_table(row[None], 4)
    assert scale.shape == (1, 3)
    torch.testing.assert_close(tables.restore_rows(codes, scale)[0], row, rtol=1e-3, atol=0)


def test_4_bits_cost_a_tenth_of_a_row_and_8_bits_a_hundredth() -> None:
    table = torch.randn(40, 384, generator=torch.Generator().manual_seed(0))
    errors = [float((tables.restore_rows(*tables.quantize_table(table, b)) - table).norm()) for b in (8, 4)]
    assert errors[0] < 0.01 * float(table.norm())
    assert errors[1] < 0.1 * float(table.norm())
