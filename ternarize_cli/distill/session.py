"""From the names of models and data to a run of `loop`: `ternarize distill` as one call."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ternarize_cli.distill import loop
from ternarize_cli.distill.data import Sources
from ternarize_cli.distill.options import DistillOptions, Progress, Training
from ternarize_cli.distill.result import DistillReport
from ternarize_cli.encoders.checkpoint import artifact_of
from ternarize_cli.encoders.loading import resolve
from ternarize_cli.errors import InputError
from ternarize_cli.progress import Track, silent
from ternarize_cli.storage.digests import content_hash

__all__ = ["distill"]


def distill(
    student: str | Path,
    data: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    teacher: str | Path | None = None,
    training: Training | None = None,
    options: DistillOptions | None = None,
    force: bool = False,
    on_step: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = lambda text: None,
    track: Track = silent,
) -> DistillReport:
    """Trains a ternary checkpoint until its vectors match those of the model that it came from; no labels are needed.

        ternarize.distill(
            "my-model-ternary", "texts.txt", "my-model-distilled", teacher="my-model",
            training=ternarize.Training(minutes=60),
        )

    Args:
        student: a ternary checkpoint; or a full-precision model, which is made ternary first and is its own teacher.
        data: a file, folder, hub data set, or "-" for stdin, or several of them: all texts, or all images.
        output: the folder to write, atomically; work in progress is kept beside it.
        teacher: the full-precision model that `student` was made of; needed if `student` is ternary.
        training: budget, recipe and hyper-parameters; None: `Training(minutes=10)`.
        options: weights of the data, caches, packing, resuming and devices; None: `DistillOptions()`.
        force: replace the output if it exists.
        on_step: is told how far training is, after each step.
        say: is told a warning, if the teacher's files are not those that the student was made of.
        track: progress of reading, as `ternarize_cli.progress` describes it.

    Returns:
        Cosine to the teacher and agreement of similarities before and after, on data that were held out.

    Raises:
        InputError: a ternary student without a teacher, or data that the model can't read.
        ModelNotFoundError, CheckpointError: a model can't be found or read, or the models do not match.
        DataError: the data can't be read, or are too few.
        OutputError, OutputExistsError: the output can't be written, or exists and `force` is False.
        KeyboardInterrupt: Ctrl-C; a checkpoint was written, and `DistillOptions(resume=True)` goes on from it.
    """
    training, options = training or Training(minutes=10), options or DistillOptions()
    paths = [data] if isinstance(data, str | Path) else data
    source = resolve(student)
    made_from = artifact_of(source)
    if teacher is None and made_from is not None:
        raise InputError(f"{student} is a ternary checkpoint; its teacher is missing", hint="--teacher MODEL")
    guide = source if teacher is None else resolve(teacher)
    if made_from is not None and made_from.source_sha256 != content_hash(guide):
        say(f"{student} was not converted from {teacher}: their content hashes differ")
    return loop.distill(
        source,
        guide,
        Sources(paths, tuple(options.weights) or None, options.samples),
        Path(output),
        training,
        options,
        force=force,
        on_step=on_step,
        track=track,
    )
