"""Chooses among MTEB's own tasks, and scores a model on them.

Tasks are chosen by name, by benchmark, by language or by type. Languages are codes of ISO 639-3, or of 639-1 as in
model cards. Codes such as `zh` and `ar` mean a macrolanguage; MTEB files some tasks under it and others under its
standard variety (`zho` and `cmn`), so both count. The error for an unknown name lists the nearest names.

Scores are MTEB's main scores, with MTEB's own seed, so that they compare with the public leaderboard. Its results are
kept in the layout that its tools read (`mteb.ResultCache(DIR).load_results()`), under the model's content hash:

    DIR/results/local__<model>/<content hash>/<task>.json, model_meta.json, run_settings.jsonl

MTEB's table of a benchmark (`get_benchmark_result`) lists only models of its registry. To add a model, write
`mteb.models.model_implementations.MODEL_REGISTRY[meta.name] = meta`, with `meta` from `model_meta.model_meta`.

A task whose data are missing is reported, and the other tasks go on.
"""

import difflib
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import mteb
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.abstasks.task_metadata import TaskType
from mteb.cache import ResultCache
from mteb.filter_tasks import filter_tasks
from mteb.get_tasks import TASK_LIST
from mteb.languages import ISO_TO_LANGUAGE
from mteb.languages.iso_mappings import _get_iso1_to_iso3
from mteb.results import TaskResult

from ternarize_cli.errors import DataError, InputError, OutputError, TernarizeError
from ternarize_cli.evaluation.encoder import LocalEncoder, quiet_mteb
from ternarize_cli.evaluation.hub_data import Missing, fresh, load, one_line, patience, splits_of, stand_in
from ternarize_cli.evaluation.samples import Samples, Score, samples_of
from ternarize_cli.evaluation.score_cache import ScoreCache
from ternarize_cli.storage.bounds import user_path

__all__ = ["Missing", "choose", "score_benchmark"]

_READABLE = {"text", "image"}
# Macrolanguage → the variety that stands for it, as far as MTEB's tasks use both (ISO 639-3, part "Macrolanguages").
_VARIETIES = dict(
    pair.split(":")
    for pair in "ara:arb aze:azj est:ekk fas:pes kur:kmr lav:lvs mlg:plt mon:khk msa:zsm nep:npi nor:nob ori:ory "
    "orm:gaz pus:pbt que:quy sqi:als swa:swh uzb:uzn yid:ydd zho:cmn".split()
)


def choose(
    tasks: Sequence[str] = (),
    benchmark: Sequence[str] | str | None = None,
    languages: Sequence[str] = (),
    task_types: Sequence[str] = (),
    *,
    data_root: Path | None = None,
) -> list[AbsTask]:
    """Chooses tasks, each once; those of benchmarks come first.

    Args:
        tasks: names of tasks, such as "STSB".
        benchmark: names of benchmarks, such as "MTEB(cmn, v1)".
        languages: codes such as "zh", "zho" or "zho-Hans". Languages and types choose among the tasks and benchmarks,
            or among all tasks of texts and images if neither is given. Other languages of a task are left out.
        task_types: types such as "STS" or "Retrieval".
        data_root: folder of data sets that replace the hub's; see `hub_data`.

    Raises:
        InputError: a name is unknown, or nothing is left.
    """
    names = [benchmark] if isinstance(benchmark, str) else list(benchmark or ())
    codes = [code for language in languages for code in _codes(language)]
    types: list[Any] = [_known(kind, get_args(TaskType), "type of task") for kind in task_types]
    if data_root is not None and not os.path.isdir(user_path(data_root)):
        raise DataError(f"--data-root {data_root} is no folder", hint="it holds <organisation>/<data set>/ with files")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on tasks that are in beta, one line each
        asked: dict[str, AbsTask] = {}
        for name in names:
            for task in mteb.get_benchmark(_known(name, _benchmarks(), "benchmark")).tasks:
                asked.setdefault(task.metadata.name, task)
        known = [cls.metadata.name for cls in TASK_LIST]
        for name in tasks:
            asked.setdefault(name, mteb.get_task(_known(name, known, "task")))
        if asked:
            found = filter_tasks(asked.values(), languages=codes or None, task_types=types or None)
        elif codes or types:
            found = list(mteb.get_tasks(languages=codes or None, task_types=types or None))
            found = [task for task in found if set(task.metadata.modalities) <= _READABLE]
        else:
            raise InputError("no MTEB task is named", hint='--tasks STSB or --benchmark "MTEB(cmn, v1)"')
        chosen = [task for task in map(fresh, found) if _keep_languages(task, codes)]
    if not chosen:
        wanted = " and ".join(filter(None, [", ".join(languages), ", ".join(types)]))
        raise InputError(
            f"no task of {', '.join([*names, *tasks]) or 'MTEB'} is in {wanted}", hint="name fewer languages or types"
        )
    return [stand_in(task, data_root) for task in chosen] if data_root is not None else chosen


def _benchmarks() -> list[str]:
    return [name for found in mteb.get_benchmarks() for name in (found.name, *(found.aliases or ()))]


def _known(name: str, names: Iterable[str], what: str) -> str:
    names = list(names)
    if name in names:
        return name
    folded = {known.casefold(): known for known in names}
    near = [folded[key] for key in difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)]
    hint = f"nearest: {', '.join(near)}" if near else "https://embeddings-benchmark.github.io/mteb lists them"
    raise InputError(f"MTEB has no {what} {name!r}", hint=hint)


def _codes(language: str) -> list[str]:
    """Finds the ISO 639-3 codes of a language, with the script if `language` names one."""
    code, dash, script = language.partition("-")
    code = _get_iso1_to_iso3().get(code, code)
    if code not in ISO_TO_LANGUAGE:
        of_name = {name.casefold(): code for code, name in ISO_TO_LANGUAGE.items()}
        near = [of_name[name] for name in difflib.get_close_matches(language.casefold(), of_name, n=3)]
        near = near or difflib.get_close_matches(code, ISO_TO_LANGUAGE, n=3)
        hint = "ISO 639-3 or 639-1, such as zho or zh; nearest: " + ", ".join(
            f"{c} ({ISO_TO_LANGUAGE[c]})" for c in near
        )
        raise InputError(f"there is no language {language!r}", hint=hint)
    return [f"{c}{dash}{script}" for c in (code, _VARIETIES.get(code)) if c]


def _keep_languages(task: AbsTask, codes: list[str]) -> bool:
    """Removes a task's other languages; returns False if none is left."""
    if codes and not isinstance(task, AbsTaskAggregate):
        try:
            task.filter_languages(codes, hf_subsets=task.hf_subsets)
        except ValueError:
            return False
    return True


def score_benchmark(
    encoder: Callable[[], LocalEncoder],
    tasks: Sequence[AbsTask],
    *,
    batch_size: int = 32,
    results: Path | None = None,
    cache: ScoreCache | None = None,
    key: Callable[..., str] | None = None,
) -> tuple[tuple[Score, ...], tuple[Missing, ...]]:
    """Scores a model on each task; returns the main scores, and the reasons for tasks that can't be scored.

    Args:
        encoder: a function that gives the model; called when a score has to be computed or results are kept.
        tasks: the tasks, as `choose` returns them.
        batch_size: number of texts encoded at once.
        results: folder for MTEB's own results; a score from the cache is used only if MTEB's file exists too.
        cache: the cache of scores; needs `key`.
        key: `cache.score_key` with all arguments but the task's (model, backend, device and more) filled in.

    Raises:
        CheckpointError: the model gives vectors that are not finite.
        OutputError: `results` can't be written.
    """
    store = _result_cache(results)
    scores: list[Score] = []
    missing: list[Missing] = []
    with patience():
        for task in tasks:
            entry = key(**_identity(task)) if cache is not None and key is not None else None
            known = cache.get(entry) if cache is not None and entry is not None else None
            if known is not None and store is not None:
                path = store.get_task_result_path(task.metadata.name, encoder().mteb_model_meta)
                known = known if path.is_file() else None
            found = known or _score(encoder(), task, batch_size, store)
            if isinstance(found, Missing):
                missing.append(found)
                continue
            scores.append(found)
            if cache is not None and entry is not None and known is None:
                cache.put(entry, found)
    return tuple(scores), tuple(missing)


def _result_cache(folder: Path | None) -> ResultCache | None:
    try:
        return ResultCache(folder) if folder is not None else None
    except OSError as e:
        raise OutputError(f"can't keep results in {folder}: {e.strerror}", hint="name a writable folder") from e


def _identity(task: AbsTask) -> dict[str, object]:
    """The arguments of `score_key` that describe a task."""
    parts = task.metadata.tasks if isinstance(task, AbsTaskAggregate) else [task]
    return {
        "task": task.metadata.name,
        "kind": task.metadata.type,
        "data": " ".join(part.metadata.dataset["revision"] for part in parts),
        "seed": task.seed,
        "splits": list(task.eval_splits),
        "subsets": list(task.hf_subsets),
    }


def _score(encoder: LocalEncoder, task: AbsTask, batch_size: int, store: ResultCache | None) -> Score | Missing:
    meta, metadata = encoder.mteb_model_meta, task.metadata
    data = getattr(metadata, "dataset", {}).get("path", metadata.name)
    if extra := sorted(set(metadata.modalities) - set(meta.modalities)):
        reason = f"its data are {' and '.join(extra)}, and {encoder.name} reads {' and '.join(meta.modalities)}"
        return Missing(metadata.name, data, reason, "leave it out, or name a model that reads them")
    with quiet_mteb(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as predictions:
        warnings.filterwarnings("ignore", "The task .* is (superseded|currently in beta)", UserWarning)
        loaded = load(fresh(task))
        if isinstance(loaded, Missing):
            return loaded
        try:
            result = mteb.evaluate(
                encoder,
                loaded,
                cache=store,
                overwrite_strategy="always",
                co2_tracker=False,
                show_progress_bar=False,
                prediction_folder=predictions,
                encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
            ).task_results[0]
        except (TernarizeError, MemoryError):
            raise
        except Exception as error:  # whatever the error is, the other tasks go on
            how = f"check the columns of {data} against those that MTEB's task wants, or leave the task out"
            return Missing(metadata.name, data, f"MTEB can't score it: {one_line(error)}", how)
        value = float(result.get_score())
        if not math.isfinite(value):
            return Missing(metadata.name, data, f"{metadata.main_score} is undefined", "check the data and the model")
        samples = _samples(loaded, result, Path(predictions))
        return Score(metadata.name, metadata.main_score, _size(loaded), value, samples)


def _size(task: AbsTask) -> int:
    """Counts the queries, pairs or texts that were scored, over all splits and subsets."""
    if isinstance(task, AbsTaskAggregate):
        return sum(map(_size, task.metadata.tasks))
    parts = [splits_of(task, subset)[split] for subset in task.hf_subsets for split in task.eval_splits]
    return sum(len(part["queries"] if isinstance(task, AbsTaskRetrieval) else part) for part in parts)


def _samples(task: AbsTask, result: TaskResult, predictions: Path) -> Samples | None:
    """Collects the items behind a score of one split and subset; None if they don't give that score again."""
    parts = [(split, scores) for split, found in result.scores.items() for scores in found]
    if len(parts) != 1 or isinstance(task, AbsTaskAggregate):
        return None
    ((split, scores),) = parts
    samples = samples_of(task, predictions, split, scores["hf_subset"], scores)
    # MTEB rounds scores of retrieval to five decimals
    return samples if samples and math.isclose(samples.value(), result.get_score(), abs_tol=1e-5) else None
