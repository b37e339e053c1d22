"""The linear of a training step, by the compiled library and by the operations of PyTorch where it does not fit."""

import pytest
import torch
from torch import Tensor

from support.instruction_sets import needs_library
from ternarize_cli.arithmetic import trained_linear as module
from ternarize_cli.arithmetic.trained_linear import products_in, trained_linear

SCALES = {"row": (6, 1), "tensor": (1,), "group": (6, 4)}


def step(levels: str, granularity: str) -> tuple[Tensor, ...]:
    """The output of a linear, and the gradients of its input, weight, scale and bias."""
    torch.manual_seed(0)
    tensors = [torch.randn(3, 5, 8), torch.randn(6, 8), torch.rand(SCALES[granularity]) + 0.2, torch.randn(6)]
    for tensor in tensors:
        tensor.requires_grad_()
    y = trained_linear(*tensors, levels=levels)
    y.square().sum().backward()
    return y.detach(), *(t.grad for t in tensors)


@needs_library
@pytest.mark.parametrize("granularity", SCALES)
@pytest.mark.parametrize("levels", ["ternary", "binary", "int2", "int4"])
def test_the_library_computes_what_pytorch_computes(
    monkeypatch: pytest.MonkeyPatch, levels: str, granularity: str
) -> None:
    by_library = step(levels, granularity)
    monkeypatch.setattr(module, "_opened", lambda: None)
    by_pytorch = step(levels, granularity)
    for name, a, b in zip(("y", "x", "weight", "scale", "bias"), by_library, by_pytorch, strict=True):
        if name == "scale":  # a sum, which is added in another order
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)
        else:
            assert torch.equal(a, b), name


@needs_library
@pytest.mark.parametrize(
    ("levels", "granularity", "expected"), [("ternary", "row", 3), ("int2", "row", 1), ("ternary", "group", 1)]
)
def test_the_library_is_used_where_it_fits(
    monkeypatch: pytest.MonkeyPatch, levels: str, granularity: str, expected: int
) -> None:
    lib, calls = module._opened(), []
    assert lib is not None
    run = lib.run
    monkeypatch.setattr(lib, "run", lambda name, *given: (calls.append(name), run(name, *given)))
    step(levels, granularity)
    assert len(calls) == expected
    assert "tz_round_activations" in calls


@needs_library
@pytest.mark.parametrize("levels", ["ternary", "int2"])
def test_products_in_bfloat16_are_near_those_in_float32(levels: str) -> None:
    exact = step(levels, "row")
    with products_in(torch.bfloat16):
        near = step(levels, "row")
    for a, b in zip(exact, near, strict=True):
        assert b.dtype == torch.float32
        assert 0 < float((a - b).norm() / a.norm()) < 0.02


@pytest.mark.parametrize("levels", ["ternary", "int2"])
def test_linears_that_read_the_same_round_it_once(monkeypatch: pytest.MonkeyPatch, levels: str) -> None:
    calls: list[Tensor] = []
    run = module._rounded
    monkeypatch.setattr(module, "_rounded", lambda x, dtype: (calls.append(x), run(x, dtype))[1])
    x, weight, scale = torch.randn(2, 8, requires_grad=True), torch.randn(6, 8), torch.rand(6, 1)
    made = [trained_linear(x, weight, scale, None, levels) for _ in range(3)]
    assert len(calls) == 1
    with torch.no_grad():
        x.mul_(2)
    changed = trained_linear(x, weight, scale, None, levels)
    assert len(calls) == 2
    assert torch.equal(made[0], made[2])
    torch.testing.assert_close(changed, 2 * made[0])
