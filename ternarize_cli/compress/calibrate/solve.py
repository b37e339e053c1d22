r"""Codes and scales for one linear, given the second moments of what goes in and what should come out.

With H the covariance of the student's inputs x and C that of the wanted outputs d with x, the best dense weight and the
cost of any other Q are

    W* = C·H⁻¹             E‖d − Qx‖² = const + tr (W* − Q) H (W* − Q)ᵀ

so each row of W* is rounded on its own under the metric H, in three steps:

1. **Error feedback** (GPTQ, arXiv 2210.17323): columns are rounded one after another, and what a column loses is made
   up by those still to come, through the Cholesky factor of H⁻¹. Columns with large variance go first.
2. **Scales refitted**: for given codes the best scales are a small least-squares problem, solved exactly for rows and
   for the whole tensor, group by group otherwise. Steps 1 and 2 alternate.
3. **Coordinate descent**: each code in turn moves to where the cost is least with all others fixed, then the scales.

Everything happens in the scheme's own grid, so binary, int2 and int4 codes are found the same way.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ternarize_cli.arithmetic import ternary
from ternarize_cli.compress.options import CalibrationRecipe
from ternarize_cli.format.scheme import Scheme

__all__ = ["Solution", "latent_weight", "solve"]

_BLOCK = 128
_TINY = 1e-12
_MULTIPLES = [3.0 * 0.86**i for i in range(24)]  # down to 0.09


@dataclass(frozen=True)
class Solution:
    """What was found for a linear.

    Attributes:
        target: the dense weight that was rounded, float32 `[out, in]`.
        codes: the codes, float32 `[out, in]`.
        scale: the scales, float32, representable in float16, shaped as `ternary.scale_shape` says.
    """

    target: Tensor
    codes: Tensor
    scale: Tensor


def solve(
    weight: Tensor, inputs: Tensor, wanted: Tensor, scheme: Scheme, recipe: CalibrationRecipe, noise: float = 0.0
) -> Solution:
    """Finds codes and scales for one linear.

    Args:
        weight: the original weight `[out, in]`.
        inputs: H, the covariance of the inputs, float64 `[in, in]`.
        wanted: C, the covariance of the wanted outputs with the inputs, float64 `[out, in]`.
        scheme: levels and granularity.
        recipe: the steps and their strength.
        noise: what is added to the diagonal of H.
    """
    weight = weight.double()
    order = (
        inputs.diagonal().argsort(descending=True) if recipe.falling else torch.arange(len(inputs)).to(inputs.device)
    )
    h = inputs[order][:, order]
    h, factor = _damped(h, recipe.damping, noise)
    inverse = torch.cholesky_inverse(factor)
    plain = h.clone()
    plain.diagonal().copy_(inputs.diagonal()[order])
    step = (wanted[:, order] - weight[:, order] @ plain) @ inverse
    target = weight.clone()
    target[:, order] += recipe.regress * step
    target = target.float()
    feedback = torch.linalg.cholesky(inverse, upper=True).float()
    problem = _Problem(target, h.float(), feedback, order, scheme)
    if recipe.passes:
        problem.start()
    for _ in range(recipe.passes - 1):
        problem.feed_back()
        problem.refit()
    for _ in range(recipe.sweeps):
        problem.descend()
        problem.refit()
    return problem.solution()


def _damped(h: Tensor, damping: float, noise: float) -> tuple[Tensor, Tensor]:
    """H with a ridge, and its Cholesky factor; more ridge where rounding has left H indefinite."""
    mean = h.diagonal().mean().clamp_min(_TINY)
    while True:
        ridged = h.clone()
        ridged.diagonal().add_(damping * mean + noise)
        factor, failed = torch.linalg.cholesky_ex(ridged)
        if not failed:
            return ridged, factor
        damping = max(10 * damping, 1e-6)


def _first_scale(target: Tensor, variance: Tensor, scheme: Scheme) -> Tensor:
    """The scale whose codes are nearest the target when each input's error counts by its variance.

    The regression's target can be large where inputs hardly vary; a scale fitted to all its weights alike would be
    fitted to those. Multiples of each block's weighted root mean square are tried, each refitted once to its codes.

    Args:
        target: `[out, in]`; variance: of the inputs, `[in]`.
    """
    shape = ternary.scale_shape(target.shape[0], target.shape[1], scheme.granularity, scheme.group_size)
    size = target.numel() if len(shape) == 1 else target.shape[1] // shape[1]
    blocks, weight = target.reshape(-1, size), variance.expand_as(target).reshape(-1, size)
    unit = ((weight * blocks.square()).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True)).sqrt()
    best, least = unit.clone(), torch.full_like(unit, torch.inf)
    for multiple in _MULTIPLES:
        codes = ternary.round_to_levels(blocks / (unit * multiple).clamp_min(_TINY), scheme.levels)
        squares = (weight * codes.square()).sum(dim=1, keepdim=True)
        scale = (weight * codes * blocks).sum(dim=1, keepdim=True) / squares.clamp_min(_TINY)
        error = (weight * (blocks - scale * codes).square()).sum(dim=1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best.clamp_min(0.0).reshape(shape)


class _Problem:
    """Codes and scales of one linear, its columns in the order of error feedback."""

    def __init__(self, target: Tensor, h: Tensor, feedback: Tensor, order: Tensor, scheme: Scheme) -> None:
        self.h, self.feedback, self.order, self.scheme = h, feedback, order, scheme
        self.original = target
        self.target = target[:, order]
        self.scale = ternary.scale_of(target, scheme)
        self.codes = ternary.codes_of(target, self.scale, scheme.levels)[:, order]
        groups = self.scale.shape[1] if self.scale.dim() == 2 else 1
        self.group_of = torch.arange(target.shape[1], device=target.device)[order] // (target.shape[1] // groups)

    def start(self) -> None:
        """A first round of error feedback from two scales; each row keeps the one that costs less.

        The plain least-squares scale is better where inputs vary alike, the weighted one where the target is large in
        directions in which they hardly vary; rows with an outlier have far local minima.
        """
        weighted = _first_scale(self.original, self.h.diagonal()[self.order.argsort()], self.scheme)
        self._round_trip()
        plain, codes, cost = self.scale.clone(), self.codes.clone(), self._cost()
        self.scale = weighted
        self._round_trip()
        better = self._cost() < cost
        self.codes = torch.where(better, self.codes, codes)
        self.scale = torch.where(better, self.scale, plain)

    def _round_trip(self) -> None:
        self.feed_back()
        self.refit()

    def _cost(self) -> Tensor:
        """tr (W* − Q) H (W* − Q)ᵀ by rows `[out, 1]`, or `[1]` where all rows share a scale."""
        rest = self.target - self._wide() * self.codes
        rows = ((rest @ self.h) * rest).sum(dim=1, keepdim=True)
        return rows.sum(dim=0) if self.scale.dim() == 1 else rows

    def _wide(self) -> Tensor:
        """The scale of each column, `[out or 1, in]`."""
        return self.scale.view(-1, self.scale.shape[-1])[:, self.group_of].clamp_min(_TINY)

    def _round(self, x: Tensor) -> Tensor:
        return ternary.round_to_levels(x, self.scheme.levels)

    def feed_back(self) -> None:
        """One pass of error feedback, from the target, with the present scales."""
        left, wide, u = self.target.clone(), self._wide(), self.feedback
        for start in range(0, left.shape[1], _BLOCK):
            end = min(start + _BLOCK, left.shape[1])
            block, own, errors = left[:, start:end].clone(), u[start:end, start:end], []
            for i in range(end - start):
                w, s = block[:, i : i + 1], wide[:, start + i : start + i + 1]
                code = self._round(w / s)
                self.codes[:, start + i : start + i + 1] = code
                error = (w - code * s) / own[i, i]
                block[:, i:] -= error * own[i : i + 1, i:]
                errors.append(error)
            left[:, end:] -= torch.cat(errors, dim=1) @ u[start:end, end:]

    def descend(self) -> None:
        """One sweep of coordinate descent, with the present scales."""
        wide = self._wide()
        gradient = (self.target - wide * self.codes) @ self.h
        diagonal = self.h.diagonal()
        for start in range(0, len(diagonal), _BLOCK):
            end = min(start + _BLOCK, len(diagonal))
            block, own, moves = gradient[:, start:end].clone(), self.h[start:end, start:end], []
            for i in range(end - start):
                j = start + i
                code, s = self.codes[:, j : j + 1], wide[:, j : j + 1]
                new = self._round(code + block[:, i : i + 1] / (diagonal[j] * s))
                move = s * (new - code)
                block -= move * own[i : i + 1]
                self.codes[:, j : j + 1] = new
                moves.append(move)
            gradient -= torch.cat(moves, dim=1) @ self.h[start:end]

    def refit(self) -> None:
        """The scales that are best for the present codes; one that would not be positive stays."""
        if self.scale.dim() == 1 or self.scale.shape[1] == 1:
            weighted = self.codes @ self.h
            top, bottom = (weighted * self.target).sum(dim=1), (weighted * self.codes).sum(dim=1)
            if self.scale.dim() == 1:
                top, bottom = top.sum(), bottom.sum()
            self._move(..., (top / bottom.clamp_min(_TINY)).reshape(self.scale.shape))
            return
        rest = self.target - self._wide() * self.codes
        for group in range(self.scale.shape[1]):
            columns = (self.group_of == group).nonzero().squeeze(1)
            codes = self.codes[:, columns]
            top = ((rest @ self.h[:, columns]) * codes).sum(dim=1)
            bottom = ((codes @ self.h[columns][:, columns]) * codes).sum(dim=1)
            before = self.scale[:, group].clone()
            self._move((slice(None), group), before + top / bottom.clamp_min(_TINY))
            rest[:, columns] -= (self.scale[:, group] - before)[:, None] * codes

    def _move(self, where: object, scale: Tensor) -> None:
        old = self.scale[where]  # type: ignore[index]
        good = torch.isfinite(scale) & (scale > 0) & (old > 0)
        self.scale[where] = torch.where(good, scale, old)  # type: ignore[index]

    def solution(self) -> Solution:
        codes = torch.empty_like(self.codes)
        codes[:, self.order] = self.codes
        scale = self.scale.half().float()
        codes = torch.where(ternary.expand_scale(scale, *codes.shape) > 0, codes, self._round(codes.new_zeros(())))
        return Solution(self.original, codes, scale)


def latent_weight(solution: Solution, levels: str) -> Tensor:
    """Finds the weight `[out, in]` nearest the target from which `ternary.codes_of` gives back the solution's codes."""
    codes, wide = solution.codes, ternary.expand_scale(solution.scale, *solution.codes.shape)
    half = 1.0 if levels in ("binary", "int2") else 0.5
    x = solution.target / wide.clamp_min(torch.finfo(torch.float32).tiny)
    inside = codes + (x - codes).clamp(-half * 0.999, half * 0.999)
    latent = torch.where(
        ternary.codes_of(solution.target, solution.scale, levels) == codes, solution.target, inside * wide
    )
    return torch.where(ternary.codes_of(latent, solution.scale, levels) == codes, latent, codes * wide)
