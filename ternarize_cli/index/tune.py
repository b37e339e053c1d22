"""Finds the settings at which an index is fast and still finds what an exact search would.

The queries are those of `truth`; they are searched at every setting of what the index has to set (`search.KNOBS`), all
at once for the rate and one by one for the latency. The fastest setting that reaches the wanted recall is stored in
index.json, and searches use it.
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
from ternarize_cli.measuring.machine import Watch
from ternarize_cli.progress import Track, silent
from ternarize_cli.storage import files

__all__ = ["Measured", "TuneReport", "tune_index"]

_ONE_BY_ONE = 100
_REPEATS = 3
_MORE = 2
_CANDIDATES = [1, 2, 4, 8, 16, 32]


@dataclass(frozen=True)
class Measured:
    """An index at one setting.

    Attributes:
        settings: by FAISS's names; empty where there is nothing to set.
        recall: share of the true k nearest that are found.
        milliseconds: median of one query at a time.
        per_second: queries per second, all at once on all threads.
    """

    settings: dict[str, float]
    recall: float
    milliseconds: float
    per_second: float


@dataclass(frozen=True)
class TuneReport:
    """What was measured, and which setting was chosen.

    Attributes:
        info: the index's record, with the chosen setting.
        measured: in the order of the sweep.
        chosen: the fastest at one query at a time that reaches the target, or the one with the highest recall.
        reached: whether the target was.
        queries, k, threads: of the measurement.
        others: what other processes used of the CPU meanwhile, in percent of a core.
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
        """The settings that no other beats in both recall and latency, the fastest first, and the chosen one."""
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
        folder: as `build_index` wrote it.
        target: recall@k that is wanted.
        k: neighbours per query, at most `truth.DEPTH`.
        threads: CPU threads, as `loading.checked_threads` takes them.
        write: store the chosen setting.
        track: progress.

    Raises:
        DataError: the index is damaged.
        InputError: the index was built anew meanwhile; `k` or `threads` is out of range; or there are too few documents
            to tell neighbours from others.
    """
    if not 0 < k <= DEPTH:
        raise InputError(f"-k is {k}; between 1 and {DEPTH} neighbours of each query are known")
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
            hint="build it again of more",
        )
    index = open_index(folder, info)
    measured: list[Measured] = []
    with Watch() as watch:
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
            now = read_info(folder)  # documents may have come or gone meanwhile
            if now.factory != info.factory:
                raise InputError(f"{folder} was built anew while it was tuned", hint="tune it again")
            info = replace(now, search=chosen.settings)
            write_info(folder, info)
    threads = faiss.omp_get_max_threads()
    return TuneReport(info, measured, chosen, bool(good), len(truth.queries), k, threads, watch.others)


def _sweep(index: faiss.Index, info: IndexInfo, measured: list[Measured], target: float) -> Iterator[dict[str, float]]:
    """All settings, slower ones later, up to the second that finds enough."""
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
