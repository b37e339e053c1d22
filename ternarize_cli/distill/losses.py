"""The losses of distillation, and recipes of weighted losses, registered by name.

A recipe weighs loss parts. A part compares the outputs of student and teacher for one batch; all parts ignore padding.

    output       mean squared error of the final token embeddings: arXiv 2411.15438, eq. 6
    hidden       relative squared error of every layer's hidden states, Σ‖s−t‖² / Σ‖t‖², averaged over layers, so that
                 no layer's scale dominates (hidden-state matching as in TinyBERT, arXiv 1909.10351)
    relation     KL divergence between the attention-like distributions softmax(hᵢ·hⱼ / √d) over the tokens of a text,
                 of the last layer's states in heads of 64 (self-relations as in MiniLMv2, arXiv 2012.15828, of states)
    cosine       1 − cos of the pooled embeddings
    score        squared error of the differences between a cross-encoder's logits in a batch, as a share of the
                 teacher's (MarginMSE, arXiv 2010.02666, over all pairs of the batch: only differences decide an order);
                 and, so that the logits keep their place, the squared error of their mean as a share of the teacher's
                 mean square; averaged over labels
    similarity   KL divergence, teacher to student, between each embedding's softmax over the similarities to the others
                 of the batch and to embeddings of earlier batches by the teacher, at temperature 0.05: the ranking that
                 search depends on
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ternarize_cli.arithmetic.elementwise import fused
from ternarize_cli.errors import InputError
from ternarize_cli.model_folder.model_kind import Kind

__all__ = [
    "OF_STATES",
    "PARTS",
    "RECIPES",
    "REVISION",
    "LossRecipe",
    "Outputs",
    "check_parts",
    "loss_parts",
    "masked_mse",
    "relation_divergence",
    "relative_error",
    "score_error",
    "similarity_divergence",
]

REVISION = 4
"""Version of the recipes' meaning: a run can't be resumed under another version (`training_checkpoint`)."""
_TEMPERATURE = 0.05
_HEAD = 64
_SAME = 0.995
_NEVER = -1e9
_LEAST = -80.0
"""Logarithms of probabilities are cut to this: below 1e-38 numbers are denormal, with which processors are slow."""
_FLAT = 1e-4
"""The least share of the squares of a batch's logits that their variance counts as, for batches of equal logits."""


@dataclass(frozen=True)
class Outputs:
    """The outputs of an encoder for a batch.

    Attributes:
        hidden: hidden states, one `[batch, tokens, dim]` per layer, in order; empty if the model gives none.
        pooled: `[batch, dim]` embeddings, or the logits `[batch, labels]` of a cross-encoder.
        mask: `[batch, tokens]`, 1 for real tokens.
    """

    hidden: tuple[Tensor, ...]
    pooled: Tensor
    mask: Tensor


@dataclass(frozen=True)
class LossRecipe:
    """Settings for training a student.

    Attributes:
        parts: weight of each part of the loss, by its name in `PARTS`.
        rule, granularity: settings of the scheme by which a full-precision student is converted.
        queue: number of embeddings of earlier batches that *similarity* compares with.
        joined: share of tokens in joined texts (`batch_sampler.Mixture`).
        tables: learning rate of embedding tables, relative to that of all other weights; 0 does not train them. It is
            small because Adam moves the row of a rare token by many times the rate whenever the token occurs.
        changed: share of inputs that are changed (`batch_sampler.Mixture`).
        settle: the largest distance of a calibrated student's weights from their codes at the start, in scales
            (`TernaryLinear.settle`).
        learning_rate: peak of the schedule; None: by the student's width (`learning_rate.rate_for_width`).
    """

    parts: Mapping[str, float] = field(default_factory=dict)
    rule: str = "optimal"
    granularity: str = "row"
    queue: int = 0
    joined: float = 0.0
    tables: float = 0.0
    changed: float = 0.0
    settle: float = 0.25
    learning_rate: float | None = None

    def weighing(self, changes: Mapping[str, float]) -> Mapping[str, float]:
        """The weights of the parts, with `changes` applied; a weight of 0 removes a part.

        Raises:
            InputError: there is no such part, a weight is negative, or no part is left.
        """
        for name, weight in changes.items():
            if name not in PARTS:
                raise InputError(f"the loss has no part {name!r}", hint=f"one of {', '.join(PARTS)}")
            if not 0 <= weight < float("inf"):
                raise InputError(f"the weight of {name} is {weight}; it can't be negative")
        parts = {name: weight for name, weight in {**self.parts, **changes}.items() if weight > 0}
        if not parts:
            raise InputError("no part of the loss is left", hint="--loss cosine=1")
        return parts


RECIPES: dict[str, LossRecipe] = {
    "paper": LossRecipe(parts={"output": 1.0}, rule="absmean", granularity="tensor", learning_rate=3e-4),
    "full": LossRecipe(
        parts={"hidden": 1.0, "cosine": 10.0, "similarity": 0.1}, queue=16384, joined=0.1, tables=0.3, changed=0.5
    ),
    "scores": LossRecipe(parts={"hidden": 1.0, "score": 0.3}, tables=0.3, changed=0.5, learning_rate=3e-4),
    "sparse": LossRecipe(
        parts={"hidden": 1.0, "cosine": 10.0}, joined=0.1, tables=0.3, changed=0.5, learning_rate=3e-4
    ),
}
"""Of an encoder "full" is the default, of a cross-encoder "scores", of a sparse encoder "sparse"."""


def masked_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over real tokens, a scalar.

    Args:
        student, teacher: `[batch, tokens, dim]`.
        mask: `[batch, tokens]`, 1 for real tokens.
    """
    weight = mask.unsqueeze(-1).to(teacher.dtype)
    return ((student - teacher).square() * weight).sum() / (weight.sum() * teacher.shape[-1])


def relative_error(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Relative squared error Σ‖s−t‖² / Σ‖t‖² over real tokens, a scalar. The teacher gets no gradient.

    Args:
        student, teacher: `[batch, tokens, dim]`.
        mask: `[batch, tokens]`, 1 for real tokens.
    """
    error: Tensor = _RelativeError.apply(student, teacher, mask)  # type: ignore[no-untyped-call]
    return error


class _RelativeError(torch.autograd.Function):
    """The relative error with its own gradient, in three kernels, where autograd would start thirty."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        error, square = _squares(student, teacher, mask)
        ctx.save_for_backward(student, teacher, mask, square)
        return error / square

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        student, teacher, mask, square = ctx.saved_tensors
        return _error_gradient(student, teacher, mask, gradients[0] / square), None, None


@fused
def _squares(student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    student, teacher, weight = student.float(), teacher.float(), mask.unsqueeze(-1)
    return ((student - teacher).square() * weight).sum(), (teacher.square() * weight).sum()


@fused
def _error_gradient(student: Tensor, teacher: Tensor, mask: Tensor, factor: Tensor) -> Tensor:
    return (2 * factor * (student.float() - teacher.float()) * mask.unsqueeze(-1)).to(student.dtype)


def similarity_divergence(student: Tensor, teacher: Tensor, queue: Tensor | None = None) -> Tensor:
    """KL(teacher ‖ student) of each embedding's softmax over the cosines to the others, and to a queue.

    Args:
        student, teacher: `[batch, dim]`.
        queue: `[size, dim]`, earlier embeddings of the teacher, of length 1, or None; both are also compared with
            these. Rows of zeros, which are not filled yet, are left out, as are embeddings of the compared text itself
            (recognised by a cosine of nearly 1), which would outweigh all others.

    Returns:
        A scalar; 0 if there is nothing to compare with.
    """
    count = len(teacher)

    def similarities(x: Tensor) -> Tensor:
        x = F.normalize(x.float(), dim=-1)
        return x @ x.T if queue is None else torch.cat([x @ x.T, x @ queue.T], dim=1)

    by_teacher, by_student = similarities(teacher), similarities(student)
    itself = torch.eye(count, dtype=torch.bool, device=teacher.device)
    if queue is not None:
        earlier = by_teacher[:, count:]
        unfilled = (earlier == 0).all(dim=0)  # a row of zeros is at a right angle to all texts
        itself = torch.cat([itself, (earlier > _SAME) | unfilled], dim=1)

    def distribution(found: Tensor) -> Tensor:
        return F.log_softmax((found / _TEMPERATURE).masked_fill(itself, _NEVER), dim=-1)

    wanted, found = distribution(by_teacher), distribution(by_student)
    share = wanted.clamp_min(_LEAST).exp()
    return (share * (wanted - found) * ~itself).sum() / count


def relation_divergence(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """KL(teacher ‖ student) of softmax(hᵢ·hⱼ/√d) over the tokens of a text, averaged over heads and tokens.

    Args:
        student, teacher: hidden states, `[batch, tokens, dim]`.
        mask: `[batch, tokens]`, 1 for real tokens.
    """

    def distribution(x: Tensor) -> Tensor:
        x = F.layer_norm(x.float(), x.shape[-1:])
        heads = max(1, x.shape[-1] // _HEAD)
        x = x[..., : heads * (x.shape[-1] // heads)].unflatten(-1, (heads, -1)).transpose(1, 2)
        scores = x @ x.transpose(2, 3) / x.shape[-1] ** 0.5
        return F.log_softmax(scores.masked_fill(mask[:, None, None, :] == 0, _NEVER), dim=-1)

    wanted, found = distribution(teacher), distribution(student)
    divergence = (wanted.exp() * (wanted - found)).sum(dim=-1)
    real = mask[:, None, :].to(divergence.dtype)
    return (divergence * real).sum() / (real.sum() * divergence.shape[1])


OF_STATES = ("output", "hidden", "relation")
Part = Callable[[Outputs, Outputs, Tensor | None], Tensor]


def _output(student: Outputs, teacher: Outputs, queue: Tensor | None) -> Tensor:
    return masked_mse(student.hidden[-1].float(), teacher.hidden[-1].float(), teacher.mask)


def _hidden(student: Outputs, teacher: Outputs, queue: Tensor | None) -> Tensor:
    pairs = zip(student.hidden, teacher.hidden, strict=True)
    return torch.stack([relative_error(s, t, teacher.mask) for s, t in pairs]).mean()


def _relation(student: Outputs, teacher: Outputs, queue: Tensor | None) -> Tensor:
    return relation_divergence(student.hidden[-1], teacher.hidden[-1], teacher.mask)


def _cosine(student: Outputs, teacher: Outputs, queue: Tensor | None) -> Tensor:
    return 1 - F.cosine_similarity(student.pooled.float(), teacher.pooled.float(), dim=-1).mean()


def score_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Error of logits: of their differences, and of their mean, each as a share of the teacher's; a scalar.

    Args:
        student, teacher: `[batch, labels]`; the teacher gets no gradient.
    """
    error, teacher = student.float() - teacher.float(), teacher.float()
    size = teacher.square().mean(dim=0) + torch.finfo(torch.float32).tiny
    spread = torch.maximum(teacher.var(dim=0, correction=0), size * _FLAT)
    return (error.var(dim=0, correction=0) / spread + error.mean(dim=0).square() / size).mean()


def _score(student: Outputs, teacher: Outputs, queue: Tensor | None) -> Tensor:
    return score_error(student.pooled, teacher.pooled)


def _similarity(student: Outputs, teacher: Outputs, queue: Tensor | None) -> Tensor:
    return similarity_divergence(student.pooled, teacher.pooled, queue)


PARTS: dict[str, Part] = {
    "output": _output,
    "hidden": _hidden,
    "relation": _relation,
    "cosine": _cosine,
    "similarity": _similarity,
    "score": _score,
}
_OF_VECTORS = ("cosine", "similarity")


def check_parts(parts: Mapping[str, float], kind: Kind) -> None:
    """Checks that a model of a kind gives what the parts of the loss compare.

    Raises:
        InputError: a part compares vectors and the model is a cross-encoder, or scores and it is none.
    """
    wrong = [n for n in parts if n in (_OF_VECTORS if kind == "cross-encoder" else ("score",))]
    if wrong:
        what = "gives scores, and no vectors" if kind == "cross-encoder" else "gives vectors, and no scores"
        raise InputError(f"the part {wrong[0]} of the loss is not for this model, which {what}", hint="leave it out")


def loss_parts(
    names: Mapping[str, float], student: Outputs, teacher: Outputs, queue: Tensor | None = None
) -> dict[str, Tensor]:
    """Computes the parts of the loss, without their weights; leaves out those of hidden states if there are none.

    Raises:
        InputError: no part is left.
    """
    kept = [name for name in names if student.hidden or name not in OF_STATES]
    if not kept:
        raise InputError("this model gives no hidden states to compare", hint="--loss cosine=1")
    return {name: PARTS[name](student, teacher, queue) for name in kept}
