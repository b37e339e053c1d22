"""Looking up rows of a table in training, with gradients in place."""

import pytest
import torch
from torch.nn import functional as F

from ternarize_cli.arithmetic.trained_lookup import looked_up


@pytest.mark.parametrize("padding", [None, 2])
def test_gradients_are_those_of_an_embedding_and_add_up(padding: int | None) -> None:
    table = torch.randn(7, 4, requires_grad=True)
    expected = table.detach().clone().requires_grad_()
    buffer = None
    for ids in (torch.tensor([[2, 3, 3], [0, 2, 6]]), torch.tensor([1, 3])):
        weights = torch.randn(*ids.shape, 4)
        rows = looked_up(table, ids, padding)
        assert torch.equal(rows, table.detach()[ids])
        (rows * weights).sum().backward()
        (F.embedding(ids, expected, padding) * weights).sum().backward()
        torch.testing.assert_close(table.grad, expected.grad)
        assert buffer is None or table.grad is buffer
        buffer = table.grad
