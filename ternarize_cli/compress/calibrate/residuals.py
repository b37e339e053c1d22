"""Which linears write into the residual stream, found by trying.

A transformer adds the output of some linears to the stream that goes around them, z = r + λ·y, and a norm reads z.
For those, the student need not repeat the teacher's output y. It should make z right, and so undo what earlier layers
did to r:

    y* = (z_teacher − r_student) / λ

That z is one constant λ per channel away from y (1, or LayerScale's gain) can be seen without knowing the
architecture: change y by a constant and see what the next norm gets. If its input moves by one and the same vector at
every token, the linear writes into the stream.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ternarize_cli.compress.calibrate.lockstep import Stop, intercepted, trace

__all__ = ["Residual", "find_residuals", "norms_of"]

_SMALLEST_GAIN = 1e-3
_TOLERANCE = 1e-2


class Residual:
    """A linear that writes into the residual stream.

    Attributes:
        norm: the name of the norm that reads the stream next.
        gain: λ, the factor of the linear's output, `[channels]`.
    """

    def __init__(self, norm: str, gain: Tensor) -> None:
        self.norm, self.gain = norm, gain


def norms_of(model: nn.Module) -> dict[str, nn.Module]:
    """Finds LayerNorm, RMSNorm and their kin by name: a vector `weight`, no children, Norm in the name of the class."""
    return {
        name: module
        for name, module in model.named_modules()
        if "Norm" in type(module).__name__
        and not any(module.children())
        and getattr(getattr(module, "weight", None), "dim", lambda: 0)() == 1
    }


def find_residuals(
    run: Callable[[Any], object], batch: Any, linears: Mapping[str, nn.Module], norms: Mapping[str, nn.Module]
) -> tuple[list[str], dict[str, Residual]]:
    """Finds the order in which a pass reaches the linears, and those that write into the residual stream.

    Args:
        run: the forward pass over one batch.
        batch: the argument of `run`; a small one is enough.
        linears: the model's linears by name.
        norms: the model's norms by name.

    Returns:
        The names of the linears, one for each time that one is reached, and the residual linears by name.
    """
    with intercepted(linears, norms, {}):
        originals = {name: type(module).forward for name, module in linears.items()}

        def original(stop: Stop) -> Tensor | None:
            return originals[stop.name](linears[stop.name], stop.value) if stop.name in linears else None

        stops = trace(run, batch, original)
        order = [stop.name for stop in stops if stop.name in linears]
        found: dict[str, Residual] = {}
        for i, (linear, norm) in enumerate(pairwise(stops)):
            if linear.name not in linears or norm.name not in norms or order.count(linear.name) > 1:
                continue
            y = original(linear)
            assert y is not None
            if y.shape != norm.value.shape:
                continue
            step = 2.0 ** norm.value.abs().max().clamp_min(1e-6).log2().ceil()  # well above the rounding of z

            def moved(stop: Stop, name: str = linear.name, step: Tensor = step) -> Tensor | None:
                out = original(stop)
                return out + step if stop.name == name and out is not None else out

            change = (trace(run, batch, moved, i + 2)[-1].value - norm.value) / step
            gain = change.flatten(0, -2).median(dim=0).values
            writes = gain.abs().max() > _SMALLEST_GAIN  # in parallel blocks the next norm does not see this linear
            if torch.isfinite(change).all() and writes and (change - gain).abs().max() <= _TOLERANCE * gain.abs().max():
                found[linear.name] = Residual(norm.name, torch.where(gain.abs() < _SMALLEST_GAIN, 0.0, gain))
    return order, found
