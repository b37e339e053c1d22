"""Calibration: codes, scales and biases for a whole encoder from a few thousand texts or images, without training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from ternarize_cli.arithmetic import tables as table_rows
from ternarize_cli.arithmetic import ternary
from ternarize_cli.compress.calibrate.data import Features
from ternarize_cli.compress.calibrate.lockstep import Stop, drive, intercepted
from ternarize_cli.compress.calibrate.moments import Batch, Moments
from ternarize_cli.compress.calibrate.residuals import Residual, find_residuals, norms_of
from ternarize_cli.compress.calibrate.solve import latent_weight, solve
from ternarize_cli.compress.options import CalibrationRecipe
from ternarize_cli.errors import CheckpointError, DataError
from ternarize_cli.format.scheme import Scheme
from ternarize_cli.progress import Track, silent

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Calibrated", "calibrate"]


@dataclass(frozen=True)
class Calibrated:
    """What calibration found for a linear.

    Attributes:
        weight: the latent weight, float32 `[out, in]`; its codes under `scale` are the ones that were found.
        scale: the scales, float32, shaped as `ternary.scale_shape` says.
        bias: the bias, float32 `[out]`.
        output_error: square root of the share of the wanted outputs' variance over tokens that the linear misses.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor
    output_error: float


def calibrate(
    encoder: "SentenceTransformer",
    batches: Sequence[Features],
    linears: Mapping[str, nn.Module],
    tables: Mapping[nn.Module, int],
    scheme: Scheme,
    recipe: CalibrationRecipe | None = None,
    *,
    levels: Mapping[str, str] | None = None,
    track: Track = silent,
) -> dict[str, Calibrated]:
    """Calibrates the linears of a live full-precision encoder, which is left as it was.

    Args:
        encoder: the model, in eval mode, float32.
        batches: the calibration data, as `make_batches` makes it.
        linears: the nn.Linear or Conv1D modules to calibrate, by the names that the result uses.
        tables: the embeddings whose rows will be rounded, with their width in bits.
        scheme: levels, granularity and width of activations.
        recipe: how codes and scales are found; None: `CalibrationRecipe()`.
        levels: the grids of linears that have another one than the scheme's.
        track: reports progress over linears.

    Returns:
        What was found by the linear's name, on the CPU. Linears that the data did not reach are absent.

    Raises:
        DataError: the data makes activations that are not finite.
        CheckpointError: the data reaches none of the linears, or not all of it goes the same way through the model.
    """
    recipe = recipe or CalibrationRecipe()

    def run(batch: Features) -> object:
        return encoder(dict(batch.values))

    norms = norms_of(encoder)
    with torch.no_grad():
        probe = min(batches, key=lambda b: b.info.size * b.tokens).first(2)
        order, residuals = find_residuals(run, probe, linears, norms)
        if not order:
            raise CheckpointError("none of the model's linears is reached by the calibration data")
        if not recipe.residual:
            residuals = {}
        steps = iter(track(order, "calibrating", len(order)))
        schemes = {name: replace(scheme, levels=grid) for name, grid in (levels or {}).items()}
        loop = _Loop(batches, linears, residuals, scheme, schemes, recipe, lambda: next(steps, None))
        wanted = {residual.norm: norms[residual.norm] for residual in residuals.values()}
        rounded = {module: partial(table_rows.round_rows, bits=bits) for module, bits in tables.items()}
        with intercepted({name: linears[name] for name in dict.fromkeys(order)}, wanted, rounded):
            drive(run, batches, loop.at)
        next(steps, None)
    return loop.found


class _Loop:
    """Decides at every stop; `found` grows."""

    def __init__(
        self,
        batches: Sequence[Features],
        linears: Mapping[str, nn.Module],
        residuals: Mapping[str, Residual],
        scheme: Scheme,
        others: Mapping[str, Scheme],
        recipe: CalibrationRecipe,
        advance: Callable[[], object],
    ) -> None:
        self.infos: list[Batch] = [batch.info for batch in batches]
        self.linears, self.residuals = linears, residuals
        self.scheme, self.others, self.recipe, self.advance = scheme, others, recipe, advance
        self.found: dict[str, Calibrated] = {}
        self._functions: dict[str, Callable[[Tensor], Tensor]] = {}
        self._waiting: tuple[str, list[Tensor], list[Tensor]] | None = None
        self._inputs: tuple[list[Tensor], list[Tensor], Moments] | None = None  # values, rounded, their moments

    def at(self, name: str, taught: list[Stop], learnt: list[Stop]) -> list[Tensor] | None:
        if name not in self.linears:
            self._correct(name, taught, learnt)
            return None
        values = [stop.value for stop in learnt]
        if name in self._functions:  # reached a second time
            self.advance()
            return [self._functions[name](x) for x in values]
        outputs = [_output(stop) for stop in taught]
        if name in self.residuals:
            self._waiting = (name, values, outputs)
            return [torch.zeros_like(y) for y in outputs]
        return self._fit(name, values, outputs)

    def _correct(self, norm: str, taught: list[Stop], learnt: list[Stop]) -> None:
        """Adds to the residual stream, in place, what a linear that has answered zero so far should have written."""
        if self._waiting is None or self.residuals[self._waiting[0]].norm != norm:
            return
        name, values, outputs = self._waiting
        self._waiting = None
        gain = self.residuals[name].gain
        wanted = []
        for teacher, student, y in zip(taught, learnt, outputs, strict=True):
            makes_up = (teacher.value - student.value).view_as(y) / gain.where(gain != 0, 1.0)
            wanted.append(torch.where(gain != 0, makes_up, y))
        for student, y in zip(learnt, self._fit(name, values, wanted), strict=True):
            student.value.add_((y * gain).view_as(student.value))

    def _fit(self, name: str, values: list[Tensor], wanted: list[Tensor]) -> list[Tensor]:
        module = self.linears[name]
        weight = _matrix(module)
        shared = self._inputs is not None and all(a is b for a, b in zip(self._inputs[0], values, strict=True))
        if self._inputs is None or not shared:
            self._inputs = (values, [self._rounded(x) for x in values], Moments())
        _, rounded, inputs = self._inputs
        cross = Moments()
        squares: Tensor | float = 0.0
        for info, x, d in zip(self.infos, rounded, wanted, strict=True):
            rows, outs = info.rows(x), info.rows(d)
            if not shared:
                inputs.add(rows, rows)
            cross.add(outs, rows)
            squares = squares + outs.tokens.square().sum(dim=0, dtype=torch.float64)
        h, c = inputs.covariance(self.recipe.pooled), cross.covariance(self.recipe.pooled)
        if not (torch.isfinite(h).all() and torch.isfinite(c).all()):
            raise DataError(f"{name}: activations are not finite", hint="the source is damaged, or the data is extreme")
        noise = self.recipe.shrinkage * inputs.noise(self.recipe.pooled)
        scheme = self.others.get(name, self.scheme)
        solution = solve(weight, h, c, scheme, self.recipe, noise)
        dense = ternary.dequantize(solution.codes, solution.scale)
        mean_out, mean_in = cross.means()
        bias = (mean_out - dense.double() @ mean_in).float()
        variance = squares / cross.count - mean_out**2
        error = _missed(dense.double(), inputs.covariance(0.0), cross.covariance(0.0), variance)
        self.found[name] = Calibrated(
            latent_weight(solution, scheme.levels).cpu(), solution.scale.cpu(), bias.cpu(), error
        )
        self._functions[name] = lambda x: F.linear(self._rounded(x), dense, bias)
        self.advance()
        return [F.linear(x, dense, bias) for x in rounded]

    def _rounded(self, x: Tensor) -> Tensor:
        if self.scheme.activation_bits != 8:
            return x
        q, t = ternary.quantize_tokens(x)
        return q.mul_(t)


def _matrix(module: nn.Module) -> Tensor:
    """`[out, in]`, float32."""
    assert isinstance(module, nn.Linear | Conv1D)
    weight = module.weight.detach().float()
    return weight.T.contiguous() if isinstance(module, Conv1D) else weight


def _output(stop: Stop) -> Tensor:
    assert stop.output is not None
    return stop.output


def _missed(dense: Tensor, h: Tensor, c: Tensor, variance: Tensor) -> float:
    rest = variance.sum() - 2 * (dense * c).sum() + ((dense @ h) * dense).sum()
    return float((rest / variance.sum().clamp_min(1e-30)).clamp_min(0.0).sqrt())
