"""`compress` as Python users call it, and `ternarize compress`: from a model's name to a packed model with a card."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, Any

from ternarize_cli.compress import card
from ternarize_cli.compress.session import check_keeps_scores
from ternarize_cli.distill.options import Progress
from ternarize_cli.distill.result import setback, shortfall
from ternarize_cli.encoders import hub
from ternarize_cli.encoders.loading import resolve
from ternarize_cli.evaluation import session as evaluation
from ternarize_cli.evaluation.report_files import write_card
from ternarize_cli.pipeline.job import Job, Step
from ternarize_cli.pipeline.options import TASKS, CompressOptions
from ternarize_cli.pipeline.recipe import RECIPE, Recipe, digest_of
from ternarize_cli.pipeline.record import described
from ternarize_cli.pipeline.stages import stages_of
from ternarize_cli.progress import Track, silent
from ternarize_cli.storage import files
from ternarize_cli.storage.digests import content_hash
from ternarize_cli.storage.weights import bytes_on_disk

if TYPE_CHECKING:
    from ternarize_cli.evaluation.run import EvaluationReport

__all__ = ["CompressReport", "compress"]


@dataclass(frozen=True)
class CompressReport:
    """What was made, and how.

    Attributes:
        recipe: what repeats the run.
        bytes_source: bytes of the original model's weights files.
        converted: facts of the conversion: linears, calibration data, seconds.
        distilled: facts of the training, the fields of `DistillReport` among them; None if nothing was trained.
        packed: facts of the packed model, the fields of `PackReport` but its artifact among them.
        evaluation: what the result keeps of the original's scores; None if nothing was scored.
    """

    recipe: Recipe
    bytes_source: int
    converted: Mapping[str, Any]
    distilled: Mapping[str, Any] | None
    packed: Mapping[str, Any]
    evaluation: "EvaluationReport | None"

    def check_gates(self) -> None:
        """Passes if the result, which is there in any case, misses no gate of `min_retention`.

        Raises:
            GateMissedError: a retention is below its gate; the message names each gate that was missed.
        """
        if self.evaluation is not None:
            self.evaluation.check_gates()


def compress(
    model: str | Path,
    data: str | Path | Sequence[str | Path],
    output: str | Path,
    options: CompressOptions | None = None,
    *,
    digests: Mapping[str, str] | None = None,
    resume: bool = False,
    force: bool = False,
    step: Step = lambda title: nullcontext(),
    on_training: Callable[[Progress], None] = lambda _: None,
    warn: Callable[[str], None] = lambda text: None,
    track: Track = silent,
) -> CompressReport:
    """Makes a packed model of an encoder: calibrates, distils, packs, scores it against the original, writes its card.

        ternarize.compress("my-model", "texts.txt", "my-packed", ternarize.CompressOptions(minutes=60, sts=["sts.csv"]))

    The stages are `convert`, `distill`, `pack` and `evaluate`. Until the output has its name, what they write lies
    beside it in `.NAME.stages.partial`; if a run is stopped or killed, another one with `resume` repeats only what is
    not finished, and goes on in the middle of a training.

    Args:
        model: a full-precision model: a folder, a hub id or `package:NAME`.
        data: texts or images like those that the model will see, to calibrate and distill with; no labels are needed.
        output: the folder to write, atomically.
        options: budget, scheme, and what the result is scored on; None: `CompressOptions()`.
        digests: sha256 of the model and of files as a recipe names them; what differs is told to `warn`.
        resume: go on from the stages that a stopped run has left; those that would read other data, another model or
            other options now are repeated.
        force: replace the output if it exists, and what a stopped run has left.
        step: makes a context manager that is entered around each stage, from the stage's title.
        on_training: is told how far training is, after each step.
        warn: is told warnings.
        track: progress of the other stages, as `ternarize_cli.progress` describes it.

    Returns:
        What the stages report. Its `check_gates` raises GateMissedError if a gate of `min_retention` was missed.

    Raises:
        InputError: an option has a value that it does not take, a gate names no task, or data come from stdin.
        ModelNotFoundError, CheckpointError: the model can't be found or read, or is ternary already.
        DataError: data or tasks can't be read, are too few, or are not what the model reads.
        OutputExistsError: the output exists and `force` is false; or a stopped run has left stages, and neither
            `resume` nor `force` is set.
        OutputError: the output can't be written.
        TernarizeError: a stage failed.
    """
    options, output = options or CompressOptions(), Path(output)
    options.check()
    sources = tuple(map(str, [data] if isinstance(data, str | Path) else data))
    training, scheme = options.training(), options.scheme()
    folder = resolve(model, allow_pickle=options.allow_pickle)
    named = [*sources, *options.trim_vocabulary, *(one for name in TASKS for one in getattr(options, name))]
    inputs = [folder, *(path for path in map(Path, sources) if path.exists())]
    files.check_output(output, force=force, inputs=inputs)
    check_keeps_scores(folder, scheme, calibration := options.calibration(sources))
    calibration.check(folder, scheme)
    if options.is_scored:
        evaluation.check_tasks(options.evaluation(folder))
    found = {"model": content_hash(folder), **{one: digest_of(one) for one in named}}
    for name, wanted in (digests or {}).items():
        if found.get(name, wanted) != wanted:
            warn(f"{model if name == 'model' else name} is not what the recipe was written with: its digest differs")
    recipe = Recipe(_pinned(model, folder), sources, options, found)
    with stages_of(output, resume=resume, force=force) as stages:
        job = Job(recipe, stages, step, track)
        converted = job.convert()
        distilled = job.distill(training, on_training, warn) if training else None
        if distilled:
            for text in (shortfall(distilled), setback(distilled["cosine_before"], distilled["cosine_after"])):
                if text is not None:
                    warn(text)
        packed = job.pack("distilled" if training else "ternary")
        report = CompressReport(recipe, bytes_on_disk(folder), converted, distilled, packed, None)
        with files.atomic_folder(output, force=force, inputs=inputs) as partial:
            copytree(stages.path("packed"), partial, dirs_exist_ok=True)
            (partial / RECIPE).write_text(recipe.text(), encoding="utf-8")
            card.write(partial, "compress", described(recipe, converted, distilled, packed))
            if options.is_scored:
                with step("eval: what it keeps of the original's scores"):
                    scored = evaluation.evaluate(partial, options.evaluation(recipe.model), warn=warn, track=track)
                write_card(partial, scored, warn)
                report = replace(report, evaluation=scored)
    return report


def _pinned(model: str | Path, folder: Path) -> str:
    """Names the model as the recipe does: one of the hub with its commit, so that a repeated run takes the same."""
    origin = hub.origin_of(folder)
    return str(model) if origin is None else str(origin)
