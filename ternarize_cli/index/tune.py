"""Finds the fastest settings of an index that still reach a wanted recall.

The queries of `truth` are searched at every setting that the index has (`search.KNOBS`): all at once for the rate, and
one by one for the latency. The fastest setting that reaches the wanted recall is stored in index.json, and searches use
it.
"""

import itertools
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import faiss
import numpy as np

from ternarize_cli.encoders.loading import checked_threads
from ternarize_cli.errors import InputError
from ternarize_cli.index.format import TRUTH, IndexInfo, check_files, read_deleted, read_info, write_info
from ternarize_cli.index.search import open_index, search_live, set_knob
from ternarize_cli.index.truth import DEPTH, Truth, read_truth, recall, without_own
from ternarize_cli.measuring.machine import LoadWatch
from ternarize_cli.progress import Track, silent
from ternarize_cli.storage import files

__all__ = ["Measured", "TuneReport", "tune_index"]

_ONE_BY_ONE = 100
_REPEATS = 3
_MORE = 2
_CANDIDATES = [1, 2, 4, 8, 16, 32]


@dataclass(frozen=True)
class Measured:
    """Recall and speed of an index at one setting.

    Attributes:
        settings: values by FAISS's names; empty if this kind of index has nothing to set.
        recall: recall@k, the share of the true k nearest that are found.
        milliseconds: median latency of one query, searched alone.
        per_second: queries per second, searched together on all threads.
    """

    settings: dict[str, float]
    recall: float
    milliseconds: float
    per_second: float


@dataclass(frozen=True)
class TuneReport:
    """The measurements of `tune_index`, and the setting that was chosen.

    Attributes:
        info: the index's record, with the chosen setting.
        measured: all measurements, in the order of the sweep.
        chosen: the setting with the lowest latency that reaches the target, or else the one with the highest recall.
        reached: whether the chosen setting reaches the target.
        queries, k, threads: numbers of queries, of neighbours per query, and of CPU threads in the measurement.
        others: CPU time that other processes used meanwhile, in percent of a core.
    """

    info: IndexInfo
    measured: list[Measured]
    chosen: Measured
    reached: bool
    queries: int
    k: int
    threads: int
    others: float

    @property
    def best(self) -> list[Measured]:
        """The chosen setting, and those that no other beats in both recall and latency, the fastest first."""
        kept: list[Measured] = []
        most = -1.0
        for measured in sorted(self.measured, key=lambda m: (m.milliseconds, -m.recall)):
            if measured.recall > most or measured is self.chosen:
                kept.append(measured)
            most = max(most, measured.recall)
        return kept


def tune_index(
    folder: Path,
    *,
    target: float = 0.95,
    k: int = 10,
    threads: int | None = None,
    write: bool = True,
    track: Track = silent,
) -> TuneReport:
    """Measures an index at all settings and stores the best.

    Args:
        folder: an index folder, as `build_index` writes it.
        target: the wanted recall@k, between 0 and 1.
        k: number of neighbours per query, at most `truth.DEPTH`.
        threads: number of CPU threads, as `loading.checked_threads` takes it.
        write: store the chosen setting in index.json.
        track: reports progress.

    Raises:
        DataError: the index is damaged.
        InputError: the index was built anew meanwhile, `k` or `threads` is out of range, or the index has too few
            documents to measure recall.
    """
    if not 0 < k <= DEPTH:
        raise InputError(f"-k is {k}, and must be between 1 and {DEPTH}: so many neighbours of each query are known")
    if threads is not None:
        faiss.omp_set_num_threads(checked_threads(threads))
    info = read_info(folder)
    dead = read_deleted(folder, info)
    check_files(folder, info, {TRUTH})
    truth = read_truth(folder / TRUTH, count=info.count, dim=info.dim).without(dead)
    k = min(k, truth.neighbours.shape[1])
    if not k:
        raise InputError(
            f"no neighbours are known in {folder}: it was built of 1 document, or most are deleted",
            hint="build it again from more documents",
        )
    index = open_index(folder, info)
    measured: list[Measured] = []
    with LoadWatch() as watch:
        for settings in track(_sweep(index, info, measured, target), "tuning"):
            for name, value in settings.items():
                set_knob(index, info, name, value)
            measured.append(_measure(index, truth, settings, k, dead))
    good = [m for m in measured if m.recall >= target]
    chosen = (
        min(good, key=lambda m: m.milliseconds) if good else max(measured, key=lambda m: (m.recall, -m.milliseconds))
    )
    if write:
        with files.locked_folder(folder, wait=True):
            now = read_info(folder)  # documents may have been added or deleted meanwhile
            if now.factory != info.factory:
                raise InputError(f"{folder} was built anew while it was tuned", hint="tune it again")
            info = replace(now, search=chosen.settings)
            write_info(folder, info)
    threads = faiss.omp_get_max_threads()
    return TuneReport(info, measured, chosen, bool(good), len(truth.queries), k, threads, watch.others)


def _sweep(index: faiss.Index, info: IndexInfo, measured: list[Measured], target: float) -> Iterator[dict[str, float]]:
    """Yields settings from fast to slow, up to the second one that reaches the target."""
    inverted = faiss.try_extract_index_ivf(index)
    clusters = inverted.nlist if inverted else 1
    values: dict[str, list[float]] = {
        "k_factor_rf": [*_CANDIDATES],
        "efSearch": [2.0**i for i in range(3, 11)],
        "nprobe": [2.0**i for i in range((clusters - 1).bit_length())] + [float(clusters)],
    }
    knobs = {name: them for name, them in values.items() if _has(index, info, name)}
    enough: Counter[tuple[float, ...]] = Counter()
    for combination in itertools.product(*knobs.values()):
        if enough[combination[:-1]] >= _MORE:
            continue
        yield dict(zip(knobs, combination, strict=True))
        enough[combination[:-1]] += measured[-1].recall >= target


def _has(index: faiss.Index, info: IndexInfo, name: str) -> bool:
    try:
        set_knob(index, info, name, 1)
    except InputError:
        return False
    return True


def _measure(index: faiss.Index, truth: Truth, settings: dict[str, float], k: int, dead: np.ndarray) -> Measured:
    more = k + int((truth.own >= 0).any())
    seconds: list[float] = []
    found = np.empty((0, more), np.int64)
    for _ in range(_REPEATS):
        started = time.perf_counter()
        _, found = search_live(index, truth.queries, more, dead)
        seconds.append(time.perf_counter() - started)
        if sum(seconds) > 1:
            break
    each = []
    for query in truth.queries[:_ONE_BY_ONE]:
        started = time.perf_counter()
        search_live(index, query[None], k, dead)
        each.append(time.perf_counter() - started)
        if sum(each) > 2:
            break
    return Measured(
        settings,
        recall(without_own(found, truth.own, k), truth.neighbours[:, :k]),
        1e3 * statistics.median(each),
        len(truth.queries) / min(seconds),
    )
