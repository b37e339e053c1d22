"""The options of `ternarize distill`, and how far a run has come."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ternarize_cli.distill.learning_rate import rate_for_width
from ternarize_cli.errors import InputError
from ternarize_cli.storage.command_option import (
    DEVICE,
    MANY,
    MAX_BATCH,
    SEED,
    THREADS,
    Option,
    check_fields,
    plain_signature,
)

if TYPE_CHECKING:
    from ternarize_cli.distill.losses import LossRecipe
    from ternarize_cli.model_folder.model_kind import Kind

__all__ = ["BUDGETS", "DistillOptions", "Progress", "Training"]

BUDGETS = ("minutes", "steps", "epochs")
"""Options of which one at most is given: how long is trained."""
_WARM_UP = 0.05
_BATCH = 64
_TEXTS_ON_GPU = 256


@plain_signature
@dataclass(frozen=True)
class Training:
    """Budget, recipe and hyper-parameters of a training run.

    Attributes:
        minutes, steps, epochs: the budget; exactly one is given. With minutes the result depends on the machine's
            speed; the others give the same bytes again.
        until: end as soon as the cosine to the teacher on held-out data, of a cross-encoder the correlation, is this
            much at one of twenty readings; the budget is then an upper bound, and the schedule that of the budget.
        recipe: a name in `losses.RECIPES`; None: the one for the student's kind, as `for_kind` chooses it.
        losses: weights of parts of the loss that differ from the recipe's; 0 leaves one out.
        batch_size: texts or images per step and process, of mean length: a step of long texts has fewer. None: 64, of
            texts on a GPU 256.
        gradient_checkpointing: keep only the inputs of blocks for the backward pass, and compute the rest again there:
            less memory, more time, the same gradients.
        auto_batch: if batches do not fit into the GPU's memory, turn gradient checkpointing on; then halve them, and
            accumulate twice as many, until they fit.
        accumulate: batches whose gradients make one step.
        learning_rate: the optimiser's peak; linear warm-up over 5% of the budget, then cosine to 0. None: the recipe's,
            or by the student's width (`learning_rate.rate_for_width`).
        max_length: tokens of a text; longer ones are cut. None: the model's limit, or 512.
        joined: share of tokens in joined texts; None: the recipe's.
        seed: order of the data.
        save_every: seconds between checkpoints for --resume.
    """

    minutes: Annotated[
        float | None, Option("Budget of training time; 10 if no other budget.", exclusive="budget", otherwise=10.0)
    ] = None
    steps: Annotated[
        int | None, Option("Budget in steps instead: reproducible to the byte.", max=MANY, exclusive="budget")
    ] = None
    epochs: Annotated[float | None, Option("Budget in passes over the data instead.", exclusive="budget")] = None
    until: Annotated[
        float | None, Option("End earlier, once the held-out cosine is this much, such as 0.97.", min=0, max=1)
    ] = None
    recipe: Annotated[
        str | None,
        Option("full, scores (cross-encoders), sparse, or paper (as published); default: by the kind of model."),
    ] = None
    losses: Annotated[
        Mapping[str, float],
        Option("Weight of a part of the loss; 0 leaves it out.", name="loss", metavar="PART=WEIGHT"),
    ] = field(default_factory=dict)
    batch_size: Annotated[
        int | None,
        Option(
            "Images, or texts of mean length, per step and process; default 64, of texts on a GPU 256.",
            min=1,
            max=MAX_BATCH,
        ),
    ] = None
    gradient_checkpointing: Annotated[bool, Option("Compute blocks again backwards: less memory, more time.")] = False
    auto_batch: Annotated[
        bool, Option("If batches don't fit the GPU: gradient checkpointing, then halves, accumulated.")
    ] = False
    accumulate: Annotated[int, Option("Batches to a step.", min=1, max=10_000)] = 1
    learning_rate: Annotated[
        float | None, Option("Peak of the schedule; default: by the encoder's width, 5e-4 for 384, 3e-4 for 768.")
    ] = None
    max_length: Annotated[
        int | None, Option("Tokens per text; default: the model's limit, up to 512.", min=2, max=1_000_000)
    ] = None
    joined: Annotated[float | None, Option("Share of tokens in texts joined to longer ones; default .1.")] = None
    seed: Annotated[int, SEED] = 0
    save_every: Annotated[float, Option("Seconds between checkpoints for --resume.", min=0)] = 120.0

    def __post_init__(self) -> None:
        check_fields(self)
        if sum(getattr(self, name) is not None for name in BUDGETS) != 1:
            raise InputError("the budget is one of minutes, steps and epochs", hint="--minutes 10, or --steps 1000")
        from ternarize_cli.distill.losses import RECIPES  # needs torch, which the command line loads when it must

        if self.recipe is not None and self.recipe not in RECIPES:
            raise InputError(f"there is no recipe {self.recipe!r}", hint=f"one of {', '.join(sorted(RECIPES))}")
        names = (*BUDGETS, "until", "batch_size", "accumulate", "learning_rate", "max_length")
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} is {value}; it must be positive")
        if self.joined is not None and not 0 <= self.joined <= 0.9:
            raise InputError(f"the share of joined texts is {self.joined}; it must lie between 0 and 0.9")
        _ = self.parts

    @property
    def chosen(self) -> "LossRecipe":
        """The recipe."""
        from ternarize_cli.distill.losses import RECIPES

        return RECIPES[self.recipe or "full"]

    @property
    def parts(self) -> Mapping[str, float]:
        """The weights of the parts of the loss."""
        return self.chosen.weighing(self.losses)

    @property
    def batch(self) -> int:
        """Inputs per batch and process; `on` says for which device."""
        return self.batch_size or _BATCH

    @property
    def budget(self) -> str:
        """The budget in words: `10 minutes`."""
        name, value = next((name, value) for name in BUDGETS if (value := getattr(self, name)) is not None)
        return f"{value:g} {name if value != 1 else name.removesuffix('s')}"

    def for_kind(self, kind: "Kind") -> "Training":
        """With the recipe for a kind of model, unless one is given.

        Raises:
            InputError: a part of the loss compares what a model of this kind does not give.
        """
        from ternarize_cli.distill.losses import check_parts

        recipes = {"encoder": "full", "cross-encoder": "scores", "sparse": "sparse"}
        chosen = replace(self, recipe=self.recipe or recipes[kind])
        check_parts(chosen.parts, kind)
        return chosen

    def on(self, device: str, modality: str = "text") -> "Training":
        """With the default batch for a device such as "cuda:0" and for a modality, "text" or "image"."""
        many = modality == "text" and device.partition(":")[0] == "cuda"
        return replace(self, batch_size=self.batch_size or (_TEXTS_ON_GPU if many else _BATCH))

    @property
    def peak(self) -> float:
        """The highest learning rate, which `for_width` has chosen."""
        assert self.learning_rate is not None
        return self.learning_rate

    @property
    def is_rate_by_width(self) -> bool:
        """Whether the student's width decides the learning rate: none is given, and the recipe has none."""
        return (self.learning_rate or self.chosen.learning_rate) is None

    def for_width(self, width: int) -> "Training":
        """With the learning rate for a student whose hidden states have a width, unless one is given."""
        rate = self.learning_rate or self.chosen.learning_rate or rate_for_width(width)
        return replace(self, learning_rate=rate)

    def halved(self) -> "Training":
        """As many inputs a step, in batches of half the size."""
        return replace(self, batch_size=max(1, self.batch // 2), accumulate=self.accumulate * 2)

    def smaller(self) -> "Training | None":
        """The same steps with less memory: gradient checkpointing first, then halves; None if nothing is left."""
        if not self.gradient_checkpointing:
            return replace(self, gradient_checkpointing=True)
        return self.halved() if self.batch > 1 else None

    @property
    def share_joined(self) -> float:
        """The share of tokens that come in joined texts."""
        return self.chosen.joined if self.joined is None else self.joined

    def rate(self, done: float, step: int) -> float:
        """The learning rate when a fraction of the budget is done; the first step of a run has a little, too."""
        rising = min(1.0, max(done, (step + 1) / 1000) / _WARM_UP)
        return self.peak * rising * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


@plain_signature
@dataclass(frozen=True)
class DistillOptions:
    """What of the data is read, where work runs, and what is written.

    Attributes:
        weights: how often each source of data is seen relative to its size, one for each; (): every input once.
        samples: the most texts or images from one source.
        cache_teacher: a folder that keeps the teacher's embeddings; for losses of embeddings only.
        pack: write the packed model instead of a checkpoint that trains on.
        resume: go on from the checkpoint that an earlier run to the output left.
        device: torch device; None: CUDA if there is one, otherwise the CPU.
        threads: CPU threads; None leaves their number as it is.
    """

    weights: Annotated[
        Sequence[float], Option("How often a --data is seen, one for each; default: once.", name="weight")
    ] = ()
    samples: Annotated[int, Option("At most so many texts or images from a --data.", min=20, max=MANY)] = 2_000_000
    cache_teacher: Annotated[
        Path | None, Option("Keep the teacher's embeddings here; needs --loss hidden=0.", metavar="DIR")
    ] = None
    pack: Annotated[bool, Option("Write the packed model, not a checkpoint.")] = False
    resume: Annotated[bool, Option("Go on where a stopped run left off.")] = False
    device: Annotated[str | None, DEVICE] = None
    threads: Annotated[int | None, THREADS] = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Progress:
    """Where training is.

    Attributes:
        step: optimiser steps so far; done: fraction of the budget.
        losses: the parts, smoothed over recent steps.
        texts_per_second, seconds_left: at the speed of this run so far.
        cosine, agreement: on held-out data when last looked at: mean cosine between student and teacher, and the rank
            correlation (Spearman) of their similarities between held-out texts or images; of a cross-encoder, the
            correlation (Pearson) and the rank correlation of their scores.
        scores: whether the student is a cross-encoder.
        chosen: what was chosen for this student, in words: `learning rate 5e-4 for width 384`.
    """

    step: int
    done: float
    losses: dict[str, float]
    texts_per_second: float
    seconds_left: float
    cosine: float | None = None
    agreement: float | None = None
    scores: bool = False
    chosen: str = ""

    def line(self) -> str:
        """One line for a meter."""
        losses = " ".join(f"{name} {value:.3f}" for name, value in self.losses.items())
        minutes, seconds = divmod(max(round(self.seconds_left), 0), 60)
        names = ("correlation", "Spearman") if self.scores else ("cosine", "agreement")
        held = "" if self.cosine is None else f"  {names[0]} {self.cosine:.3f} {names[1]} {self.agreement:.3f}"
        return f"step {self.step}  {losses}{held}  {self.texts_per_second:.0f}/s  {minutes}:{seconds:02} left"
