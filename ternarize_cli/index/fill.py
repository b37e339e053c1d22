"""Makes a FAISS index, trains it on a sample and fills it from shards, in memory or with its lists on disk.

With lists on disk, blocks of rows are added to empty copies of the trained index, which are written one after the other
and then merged into one file (`faiss.contrib.ondisk`). Memory holds one block and the centroids, however long the
corpus is. The lists, and so the answers, equal those of an index that was filled in memory.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
from faiss.contrib.ondisk import merge_ondisk

from ternarize_cli.errors import InputError, counted
from ternarize_cli.index.format import FAISS_INDEX, LISTS
from ternarize_cli.index.presets import factory_of
from ternarize_cli.progress import Track, silent
from ternarize_cli.storage.library_output import library_output

__all__ = ["METRICS", "FillPlan", "Vectors", "check_metric", "fill", "levels", "plan_fill", "quiet_clusterings"]

METRICS = {"ip": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}
_TRAINING_ROWS = 65_536
_ROWS_PER_CLUSTER = 64
_BLOCK = 1 << 28  # bytes


@dataclass(frozen=True)
class FillPlan:
    """An empty index that is to be filled, and the fields of its record that describe it."""

    index: faiss.Index
    preset: str
    factory: str
    metric: str
    dim: int


class Vectors(Protocol):
    """Vectors in shards, with the methods of `VectorFolder` that filling an index needs."""

    shards: int
    count: int

    def load(self, shard: int) -> np.ndarray: ...

    def rows(self, rows: np.ndarray) -> np.ndarray: ...


def check_metric(metric: str | None) -> None:
    """Checks that `metric` is one of METRICS, or None.

    Raises:
        InputError: `metric` is not in METRICS.
    """
    if metric not in (None, *METRICS):
        raise InputError(f"there is no metric {metric!r}", hint="--metric takes ip or l2")


def plan_fill(
    factory: str,
    metric: str | None,
    count: int,
    dim: int,
    *,
    similarity: str,
    normalized: bool,
    memory: int | None = None,
    on_disk: bool = False,
) -> FillPlan:
    """Chooses the index for `count` vectors, and makes it empty.

    Args:
        factory: a preset's name or a FAISS factory string.
        metric: "ip", "l2", or None for the metric that suits `similarity`.
        count: number of vectors.
        dim: number of their dimensions.
        similarity: name of the similarity by which the model compares vectors.
        normalized: whether the vectors have length 1.
        memory: bytes that the preset `auto` may use; None sets no limit.
        on_disk: whether the index must be of a kind whose lists can lie on disk.

    Raises:
        InputError: there is no such index, or it does not suit the vectors.
    """
    if on_disk and factory == "auto":
        factory = "ivf"
    preset, factory, needed = factory_of(factory, count, dim, normalized=normalized, memory=memory)
    metric = metric or needed or ("l2" if similarity == "euclidean" else "ip")
    _check_factory(factory, count)
    made = FillPlan(_make(factory, dim, metric), preset, factory, metric, dim)
    if on_disk:
        _check_on_disk(made)
    return made


def fill(
    made: FillPlan, vectors: Vectors, folder: Path, seed: int, *, on_disk: bool = False, track: Track = silent
) -> str | None:
    """Trains and fills the index and writes it into a folder.

    Args:
        made: the plan; its index is empty again afterwards.
        vectors: the vectors to fill it with.
        folder: the folder in which index.faiss, and index.ivfdata if `on_disk`, are written.
        seed: seed of the random sample for training.
        on_disk: whether the lists are written to a file of their own.
        track: reports progress after each shard.

    Returns:
        A sentence that says so if there were too few vectors for training; otherwise None.

    Raises:
        InputError: FAISS can't train the index on these vectors, or can't fill it with them.
    """
    index = made.index
    with _refusals(made, vectors.count), quiet_clusterings(index) as wanted:
        if not index.is_trained:
            index.train(_sample(vectors, index, seed))
        if on_disk:
            _fill_on_disk(index, vectors, folder, track)
        else:
            for shard in track(range(vectors.shards), "indexing"):
                index.add(vectors.load(shard))
    faiss.write_index(index, str(folder / FAISS_INDEX))
    if not on_disk:
        index.reset()
    if vectors.count >= wanted:
        return None
    return f"{counted(vectors.count, 'vector')}: few to train {made.factory} on; FAISS advises {wanted:,}"


def levels(index: faiss.Index) -> Iterator[faiss.Index]:
    """Yields an index and the indexes that it wraps, from the outermost to the one that holds the vectors."""
    while True:
        index = faiss.downcast_index(index)
        yield index
        if isinstance(index, faiss.IndexPreTransform):
            index = index.index
        elif isinstance(index, faiss.IndexRefine):
            index = index.base_index
        else:
            return


def _fill_on_disk(index: faiss.Index, vectors: Vectors, folder: Path, track: Track) -> None:
    inner = faiss.extract_index_ivf(index)
    blocks: list[Path] = []
    held = 0
    for shard in track(range(vectors.shards), "indexing"):
        part = vectors.load(shard)
        index.add(part)
        held += part.nbytes
        if held >= _BLOCK or shard == vectors.shards - 1:
            blocks.append(folder / f"block-{len(blocks)}.faiss")
            faiss.write_index(inner, str(blocks[-1]))
            index.reset()
            held = 0
    with library_output(to_stderr=False):
        merge_ondisk(index, [str(block) for block in blocks], str(folder / LISTS), shift_ids=True)
    for level in levels(index):
        level.ntotal = vectors.count
    for block in blocks:
        block.unlink()


@contextmanager
def quiet_clusterings(index: faiss.Index) -> Iterator[int]:
    """Yields how many vectors FAISS wants for each clustering in training, and turns off FAISS's own warnings."""
    wanted, opq = 0, []
    for level in levels(index):
        if isinstance(level, faiss.IndexPreTransform):
            chain: Any = level.chain  # FAISS's stubs call it a list
            for step in (faiss.downcast_VectorTransform(chain.at(i)) for i in range(chain.size())):
                if isinstance(step, faiss.OPQMatrix):
                    opq.append((step, faiss.ProductQuantizer(step.d_out, step.M, 8)))
        holders: list[Any] = [level, getattr(level, "pq", None), getattr(level, "rq", None)]
        for holder in holders:
            if hasattr(holder, "cp"):
                clusters = getattr(holder, "ksub", 0) or getattr(holder, "nlist", 0)
                wanted = max(wanted, holder.cp.min_points_per_centroid * clusters)
                holder.cp.min_points_per_centroid = 1
    for step, quantizer in opq:  # FAISS would make this quantizer itself, with warnings
        wanted = max(wanted, quantizer.cp.min_points_per_centroid * quantizer.ksub)
        quantizer.cp.min_points_per_centroid = 1
        step.pq = quantizer
    try:
        yield wanted
    finally:
        for step, _ in opq:
            step.pq = None


def _check_on_disk(made: FillPlan) -> None:
    inner = faiss.try_extract_index_ivf(made.index)
    lists = inner and faiss.downcast_InvertedLists(inner.invlists)  # type: ignore[arg-type]
    kinds = {type(level).__name__ for level in levels(made.index)}
    if inner is None:
        raise InputError(f"the index {made.factory!r} has no lists that could lie on disk", hint="--factory ivf")
    if "IndexRefine" in kinds:
        raise InputError(
            f"the index {made.factory!r} keeps vectors to refine with, and these can only be filled in memory",
            hint=f"--factory ivf, or IVF{inner.nlist},SQ8, which takes a quarter of its space",
        )
    if not isinstance(lists, faiss.ArrayInvertedLists):
        raise InputError(f"the lists of {made.factory!r} are packed for scanning, and can't lie on disk", hint="no fs")


def _check_factory(factory: str, count: int) -> None:
    """Refuses factory strings that FAISS would refuse only after all the encoding, or would crash on."""
    if re.search(r"(?<!\d)0+(?!\d)", factory) or re.search(r"(HNSW|NSG)1(?!\d)", factory):
        raise InputError(f"the factory {factory!r} names an index without any part", hint="e.g. --factory HNSW32")
    clusters = re.search(r"IVF(\d+)", factory)
    if clusters and int(clusters[1]) > count:
        fitting = max(1, count // 39)
        raise InputError(
            f"the factory {factory!r} wants {clusters[1]} clusters, and FAISS needs at least one text for each; "
            f"the corpus has {count}",
            hint=f"--factory Flat, or IVF{fitting} (FAISS advises 39 texts for each cluster)",
        )


def _make(factory: str, dim: int, metric: str) -> faiss.Index:
    try:
        return faiss.index_factory(dim, factory, METRICS[metric])
    except (RuntimeError, MemoryError) as e:
        raise InputError(
            f"FAISS makes no index from {factory!r} with {dim} dimensions and metric {metric}: {_reason(e)}",
            hint="e.g. --factory Flat, HNSW32 or IVF256,Flat (https://github.com/facebookresearch/faiss/wiki)",
        ) from e


@contextmanager
def _refusals(made: FillPlan, count: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as e:
        index = f"an index {made.factory!r} (metric {made.metric})"
        raise InputError(
            f"FAISS can't fill {index} with {counted(count, 'text')}: {_reason(e)}",
            hint="--factory Flat works for any corpus",
        ) from e


def _reason(error: Exception) -> str:
    """FAISS's message, without its function names and source lines."""
    return re.sub(r"^Error in .* at \S+:\d+: (Error: )?", "", " ".join(str(error).split())) or type(error).__name__


def _sample(vectors: Vectors, index: faiss.Index, seed: int) -> np.ndarray:
    """Vectors for training, all of a small corpus, a random sample of a large one: float32 `[rows, dim]`."""
    inverted = faiss.try_extract_index_ivf(index)
    wanted = max(_TRAINING_ROWS, _ROWS_PER_CLUSTER * inverted.nlist if inverted else 0)
    if vectors.count <= wanted:
        return np.concatenate([vectors.load(i) for i in range(vectors.shards)])
    return vectors.rows(np.sort(np.random.default_rng(seed).choice(vectors.count, wanted, replace=False)))
