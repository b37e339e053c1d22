"""What the student is asked to match, as recipes registered by name.

A recipe maps the outputs of student and teacher on the same batch to named loss parts, whose sum is minimised. All of
them mask padding.

**paper** (arXiv 2411.15438, eq. 6): mean squared error of the final token embeddings.

**full** adds what a sentence encoder is used for:
- *hidden*: relative squared error of every layer's hidden states, Σ‖s−t‖² / Σ‖t‖² over real tokens, averaged over
  layers, so that no layer's scale dominates (hidden-state matching as in TinyBERT, arXiv 1909.10351);
- *cosine*: 1 − cos of the pooled sentence embeddings;
- *similarity*: KL divergence between the softmax distributions of each sentence over the others of the batch at
  temperature 0.05, teacher to student: the ranking that search depends on.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["RECIPES", "Outputs", "masked_mse", "relative_error", "similarity_divergence"]

TEMPERATURE = 0.05


@dataclass(frozen=True)
class Outputs:
    """What an encoder gives for a batch.

    Attributes:
        hidden: one `[batch, tokens, dim]` per layer, embeddings first, last hidden state last.
        pooled: `[batch, dim]` sentence embeddings.
        mask: `[batch, tokens]`, 1 for real tokens.
    """

    hidden: tuple[Tensor, ...]
    pooled: Tensor
    mask: Tensor


Recipe = Callable[[Outputs, Outputs], dict[str, Tensor]]
RECIPES: dict[str, Recipe] = {}


def _recipe(name: str) -> Callable[[Recipe], Recipe]:
    """Decorator that registers a recipe."""

    def add(function: Recipe) -> Recipe:
        RECIPES[name] = function
        return function

    return add


def masked_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over real tokens; `[batch, tokens, dim]` twice and `[batch, tokens]` → scalar."""
    weight = mask.unsqueeze(-1).to(teacher.dtype)
    return ((student - teacher).square() * weight).sum() / (weight.sum() * teacher.shape[-1])


def relative_error(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Σ‖s−t‖² / Σ‖t‖² over real tokens; shapes as `masked_mse`."""
    return masked_mse(student, teacher, mask) / masked_mse(torch.zeros_like(teacher), teacher, mask)


def similarity_divergence(student: Tensor, teacher: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """KL(teacher ‖ student) of each sentence's softmax over the other sentences; `[batch, dim]` twice → scalar."""
    count = len(teacher)
    if count < 3:
        return student.sum() * 0.0
    others = ~torch.eye(count, dtype=torch.bool, device=teacher.device)

    def distribution(x: Tensor) -> Tensor:
        x = F.normalize(x.float(), dim=-1)
        similarities = (x @ x.T)[others].view(count, count - 1)
        return F.log_softmax(similarities / temperature, dim=-1)

    return F.kl_div(distribution(student), distribution(teacher), log_target=True, reduction="batchmean")


@_recipe("paper")
def _paper(student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
    """Output MSE, as published, with padding masked."""
    return {"output": masked_mse(student.hidden[-1], teacher.hidden[-1], teacher.mask)}


@_recipe("full")
def _full(student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
    """Hidden states of every layer, pooled cosine, in-batch similarity."""
    layers = [relative_error(s, t, teacher.mask) for s, t in zip(student.hidden[1:], teacher.hidden[1:], strict=True)]
    cosine = 1 - F.cosine_similarity(student.pooled.float(), teacher.pooled.float(), dim=-1).mean()
    return {
        "hidden": torch.stack(layers).mean(),
        "cosine": cosine,
        "similarity": similarity_divergence(student.pooled, teacher.pooled),
    }
