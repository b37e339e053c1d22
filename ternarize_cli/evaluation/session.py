"""From options to a report: `ternarize eval` as one call.

Files are read and checked first, which takes moments; only then are MTEB and the models loaded, which takes seconds to
minutes.
"""

from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from ternarize_cli.encoders.loading import pooling_note
from ternarize_cli.evaluation.candidates import find_model
from ternarize_cli.evaluation.gates import parse_gates
from ternarize_cli.evaluation.options import EvaluationOptions
from ternarize_cli.evaluation.perturb import kinds_in, perturbed
from ternarize_cli.evaluation.ranked_pairs import RankedPairs
from ternarize_cli.evaluation.reading import read_tasks, refuse_twice
from ternarize_cli.evaluation.retrieval import Retrieval
from ternarize_cli.progress import Track, silent

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

    from ternarize_cli.evaluation.reading import TaskData
    from ternarize_cli.evaluation.run import EvaluationReport

__all__ = ["check_tasks", "evaluate"]


def evaluate(
    model: str | Path,
    options: EvaluationOptions,
    *,
    say: Callable[[str], None] = lambda text: None,
    warn: Callable[[str], None] = lambda text: None,
    track: Track = silent,
) -> "EvaluationReport":
    """Scores a model on files of your own or on tasks of MTEB, alone or against its teacher and rivals.

        options = ternarize.EvaluationOptions(against="my-model", sts=["pairs.csv"])
        report = ternarize.evaluate("my-model-packed", options)
        report.comparison.mean_retention()   # student / teacher, 1 if nothing was lost

    Args:
        model: a folder, a hub id or `package:NAME`, packed or not.
        options: the tasks (one at least), the other models, and how they run.
        say: is told what goes on, a sentence at a time.
        warn: is told what can't be scored, such as each image that can't be decoded, before anything is scored.
        track: progress, as `ternarize_cli.progress` describes it.

    Returns:
        Scores and retention with 95% intervals, task by task. Its `check_gates` raises GateMissedError if a gate of
        `min_retention` is missed.

    Raises:
        InputError: options that do not go together, no task, or an unknown task, rival or gate.
        DataError: a task's file is missing or can't be scored.
        ModelNotFoundError, CheckpointError, UnavailableError: a model can't be had, read or run.
    """
    options.check()
    data = _read(options) if any(options.files.values()) or not options.is_of_mteb else []
    for skipped in (reason for task in data for reason in getattr(task, "skipped", ())):
        warn(f"left out: {skipped}")
    noisy = [perturbed(task, kind, options.seed) for kind in kinds_in(options.perturb or "") for task in data]
    lineup = [name for name in (model, options.against, *options.candidates) if name is not None]
    folders = [find_model(name, data, allow_pickle=options.allow_pickle) for name in lineup]
    for note in filter(None, map(pooling_note, folders)):
        say(note)
    say("loading MTEB …")
    from ternarize_cli.evaluation.run import run

    hub: list[AbsTask] = []
    if options.is_of_mteb:
        from ternarize_cli.evaluation.benchmarks import choose

        chosen = (options.tasks, options.benchmarks, options.languages, options.task_types)
        hub = choose(*chosen, data_root=options.data_root)
    names = [*_names([*data, *noisy], options), *(task.metadata.name for task in hub)]
    refuse_twice(names)
    gates = parse_gates(options.min_retention, names, _retrieval(data))
    return run(model, options, data, noisy=noisy, hub=hub, gates=gates, track=track)


def check_tasks(options: EvaluationOptions) -> None:
    """Reads the files of tasks and the gates, so that long work before an evaluation does not end in an error of it.

    Raises:
        InputError: options that do not go together, or a gate of an unknown task.
        DataError: a task's file is missing or can't be scored.
    """
    options.check()
    data = _read(options)
    names = _names(data, options)
    refuse_twice(names)
    parse_gates(options.min_retention, names, _retrieval(data))


def _read(options: EvaluationOptions) -> "list[TaskData]":
    return read_tasks(
        **options.files,
        queries_where=options.queries_where,
        limit=options.limit,
        seed=options.seed,
        strict=options.strict,
    )


def _names(data: "Iterable[TaskData]", options: EvaluationOptions) -> list[str]:
    """Lists the names of the tasks that come of files."""
    taught = options.against is not None
    own = (t.task_names(taught=taught) if isinstance(t, RankedPairs) else [t.name] for t in data)
    return [*chain.from_iterable(own)]


def _retrieval(data: "Iterable[TaskData]") -> list[str]:
    return [task.name for task in data if isinstance(task, Retrieval)]
