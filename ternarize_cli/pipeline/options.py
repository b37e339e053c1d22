"""The options of `ternarize compress`: those of the stages that matter for the result, in one dataclass.

An option has the name, the bounds and the help that it has in the command of its stage. What only concerns the machine
(`OF_THE_MACHINE`) is not part of a recipe.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ternarize_cli.compress.options import DEFAULT_TOKENS, Calibration, ConvertOptions, SchemeOptions, Tier, of_tier
from ternarize_cli.distill.options import BUDGETS, DistillOptions, Training
from ternarize_cli.errors import InputError
from ternarize_cli.evaluation.options import EvaluationOptions
from ternarize_cli.format.scheme import Scheme
from ternarize_cli.storage.command_option import (
    ALLOW_PICKLE,
    DEVICE,
    SEED,
    THREADS,
    Option,
    check_fields,
    option_of,
    plain_signature,
)

__all__ = ["OF_THE_MACHINE", "TASKS", "CompressOptions"]

OF_THE_MACHINE = ("device", "threads", "save_every", "allow_pickle")
"""Options that a recipe neither holds nor may set: where work runs, and which files of strangers are trusted."""
TASKS = ("sts", "retrieval", "classification", "images", "pairs", "task_file")
"""Options that name the data of an evaluation."""
_MINUTES = 10.0
_OF_TRAINING = (
    "until",
    "batch_size",
    "gradient_checkpointing",
    "auto_batch",
    "accumulate",
    "learning_rate",
    "max_length",
)


@plain_signature
@dataclass(frozen=True)
class CompressOptions:
    """How a model is compressed.

    Attributes:
        levels, tier, granularity, activations, table_bits: as `SchemeOptions` describes them.
        bits: as `ConvertOptions` describes it.
        skip, keep_dense, trim_vocabulary: as `ConvertOptions` describes them.
        calibration_samples, calibration_tokens: how much of the data calibration reads, as `Calibration` describes it.
        minutes, steps, epochs: the budget of distillation, of which one at most is given; none: 10 minutes. With 0
            minutes nothing is trained, and the calibrated model is packed.
        until: ends distillation earlier, as `Training` describes it.
        batch_size, gradient_checkpointing, auto_batch, accumulate, learning_rate, max_length: as `Training` describes
            them.
        samples: the most texts or images from a source that distillation reads.
        save_every: seconds between checkpoints of distillation, from which a killed run goes on.
        codec: how codes lie in bytes; None: the first codec that holds the levels.
        sts, retrieval, classification, images, pairs, task_file, limit: what the result is scored on, beside the
            original; as `EvaluationOptions` describes them.
        min_retention: gates, "0.98" for the mean, "TASK=0.97" for a task, or "index=0.99" for the teacher's index.
        seed: of everything random.
        no_check: do not compare results with their sources before they get their names.
        allow_pickle: read pytorch_model.bin where the model has no safetensors file.
        device: torch device of calibration, distillation and evaluation.
        threads: CPU threads.
    """

    minutes: Annotated[
        float | None,
        Option(
            "Budget of distillation; 0: calibrate only; 10 if no other budget.",
            min=0,
            exclusive="budget",
            otherwise=_MINUTES,
        ),
    ] = None
    steps: Annotated[int | None, option_of(Training, "steps")] = None
    epochs: Annotated[float | None, option_of(Training, "epochs")] = None
    until: Annotated[float | None, option_of(Training, "until")] = None
    levels: Annotated[str | None, option_of(SchemeOptions, "levels")] = None
    tier: Annotated[Tier | None, option_of(SchemeOptions, "tier")] = None
    bits: Annotated[float | None, option_of(ConvertOptions, "bits")] = None
    granularity: Annotated[str, option_of(SchemeOptions, "granularity")] = "row"
    activations: Annotated[Literal[8, 16], option_of(SchemeOptions, "activations")] = 8
    table_bits: Annotated[Literal[4, 8, 16, 32], option_of(SchemeOptions, "table_bits")] = 8
    codec: Annotated[
        str | None, Option("Packing of codes: 2bit (default) or base3 (1.6 bits); other levels have one each.")
    ] = None
    skip: Annotated[Sequence[str], option_of(ConvertOptions, "skip")] = ()
    keep_dense: Annotated[bool, option_of(ConvertOptions, "keep_dense")] = False
    trim_vocabulary: Annotated[Sequence[str], option_of(ConvertOptions, "trim")] = ()
    calibration_samples: Annotated[int | None, option_of(Calibration, "samples")] = None
    calibration_tokens: Annotated[int, option_of(Calibration, "tokens")] = DEFAULT_TOKENS
    batch_size: Annotated[int | None, option_of(Training, "batch_size")] = None
    gradient_checkpointing: Annotated[bool, option_of(Training, "gradient_checkpointing")] = False
    auto_batch: Annotated[bool, option_of(Training, "auto_batch")] = False
    accumulate: Annotated[int, option_of(Training, "accumulate")] = 1
    learning_rate: Annotated[float | None, option_of(Training, "learning_rate")] = None
    max_length: Annotated[int | None, option_of(Training, "max_length")] = None
    samples: Annotated[int, option_of(DistillOptions, "samples")] = 2_000_000
    sts: Annotated[Sequence[str], option_of(EvaluationOptions, "sts")] = ()
    retrieval: Annotated[Sequence[str], option_of(EvaluationOptions, "retrieval")] = ()
    classification: Annotated[Sequence[str], option_of(EvaluationOptions, "classification")] = ()
    images: Annotated[Sequence[str], option_of(EvaluationOptions, "images")] = ()
    pairs: Annotated[Sequence[str], option_of(EvaluationOptions, "pairs")] = ()
    task_file: Annotated[Sequence[str], option_of(EvaluationOptions, "task_files")] = ()
    limit: Annotated[int | None, option_of(EvaluationOptions, "limit")] = None
    min_retention: Annotated[Sequence[str], option_of(EvaluationOptions, "min_retention")] = ()
    seed: Annotated[int, SEED] = 0
    no_check: Annotated[bool, Option("Do not compare results with their sources before they get their names.")] = False
    save_every: Annotated[float, option_of(Training, "save_every")] = 120.0
    allow_pickle: Annotated[bool, ALLOW_PICKLE] = False
    device: Annotated[str | None, DEVICE] = None
    threads: Annotated[int | None, THREADS] = None

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self) -> None:
        """Checks the options against each other.

        Raises:
            InputError: more than one of minutes, steps and epochs; `until` without training; `min_retention` and
                nothing to score; or a codec that does not hold the levels.
        """
        if sum(getattr(self, name) is not None for name in BUDGETS) > 1:
            raise InputError("the budget is one of minutes, steps and epochs", hint="--minutes 10, or --steps 1000")
        if self.until is not None and self.minutes == 0:
            raise InputError("--until is for training, and with 0 minutes nothing is trained", hint="no --until")
        if self.min_retention and not self.is_scored:
            raise InputError(
                "--min-retention needs something to score the models on", hint="--sts, --retrieval or --classification"
            )

        from ternarize_cli.format.codecs import codec_for

        codec_for(self.scheme().levels, self.codec)

    @property
    def is_scored(self) -> bool:
        """Whether the result is scored."""
        return any(getattr(self, name) for name in TASKS)

    def scheme(self) -> Scheme:
        """Makes the scheme of the conversion; raises InputError for a value that no scheme takes."""
        form, options = self._converted()
        return form.scheme(options.bits)

    def converting(self) -> ConvertOptions:
        """Makes the options of the conversion; raises InputError for a value that no scheme takes."""
        return self._converted()[1]

    @property
    def made_levels(self) -> str:
        """The levels of the result, whether they or a tier are given."""
        return self._converted()[0].levels or "ternary"

    def _converted(self) -> tuple[SchemeOptions, ConvertOptions]:
        form = SchemeOptions(
            granularity=self.granularity,
            activations=self.activations,
            table_bits=self.table_bits,
            levels=self.levels,
            tier=self.tier,
        )
        options = ConvertOptions(
            skip=self.skip,
            keep_dense=self.keep_dense,
            bits=self.bits,
            trim=self.trim_vocabulary,
            allow_pickle=self.allow_pickle,
            seed=self.seed,
            check=not self.no_check,
        )
        return of_tier(form, options)

    def calibration(self, data: Sequence[str]) -> Calibration:
        """Makes the calibration on `data`."""
        return Calibration(
            data,
            samples=self.calibration_samples,
            tokens=self.calibration_tokens,
            device=self.device,
            threads=self.threads,
        )

    def training(self) -> Training | None:
        """Makes the budget and the settings of the training; None if nothing is trained.

        Raises:
            InputError: a setting is not positive.
        """
        budget = {name: getattr(self, name) for name in BUDGETS if getattr(self, name) is not None}
        if budget == {"minutes": 0}:
            return None
        settings = {name: getattr(self, name) for name in _OF_TRAINING}
        return Training(**(budget or {"minutes": _MINUTES}), **settings, seed=self.seed, save_every=self.save_every)

    def evaluation(self, teacher: str | Path) -> EvaluationOptions:
        """Makes the options of the evaluation against the original model, `teacher`."""
        return EvaluationOptions(
            against=teacher,
            sts=self.sts,
            retrieval=self.retrieval,
            classification=self.classification,
            images=self.images,
            pairs=self.pairs,
            task_files=self.task_file,
            limit=self.limit,
            min_retention=self.min_retention,
            device=self.device,
            threads=self.threads,
            seed=self.seed,
            allow_pickle=self.allow_pickle,
        )
