"""The linear of a training step, by the compiled library and by the operations of PyTorch where it does not fit."""

import pytest
import torch
from torch import Tensor

from support.instruction_sets import needs_library
from ternarize_cli.arithmetic import trained_linear as module
from ternarize_cli.arithmetic.trained_linear import trained_linear

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
