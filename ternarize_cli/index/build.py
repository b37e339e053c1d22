"""Builds an index folder from a corpus.

Five steps, each of which leaves its result in the partial folder: the corpus is copied to documents.jsonl (so that
stdin works too and the text that answers come from is the text that was encoded), its vectors are computed shard by
shard, FAISS trains the index on a sample if its kind needs that and takes the shards in, queries are compared with all
vectors (`truth`), and index.json is written. The shards are then deleted and the folder gets its name. Beside the index
itself, memory holds 16 bytes a document.

How vectors are compared follows the model: cosine (the usual case) means inner product of vectors of length 1, "dot"
inner product of the vectors as they are, "euclidean" their distance.
"""

import hashlib
import json
import re
import shutil
from array import array
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import faiss
import numpy as np

from ternarize_cli import __version__, files, models
from ternarize_cli.errors import DataError, InputError
from ternarize_cli.index.encode import encoded, text_folder
from ternarize_cli.index.encoders import TextEncoder
from ternarize_cli.index.format import DOCUMENTS, FAISS_INDEX, OFFSETS, TRUTH, IndexInfo, StoredFile, write_info
from ternarize_cli.index.presets import compares_directions, factory_of
from ternarize_cli.index.shards import ShardKey, Shards
from ternarize_cli.index.truth import QUERIES, find_truth
from ternarize_cli.index.vector_folder import VectorFolder
from ternarize_cli.progress import Track, silent
from ternarize_cli.texts import STDIN, Document, read_lines, read_texts, source_name

__all__ = ["DEFAULT_FACTORY", "METRICS", "BuildReport", "build_index", "index_vectors"]

METRICS = {"ip": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}
DEFAULT_FACTORY = "auto"
_TRAINING_ROWS = 65_536
_ROWS_PER_CLUSTER = 64
_SHOWN = 3


@dataclass(frozen=True)
class BuildReport:
    """What a build did: the index's record, and how the work went.

    Attributes:
        info: the record.
        shards, reused: how many shards there were, and how many an earlier run had finished.
        discarded: whether an earlier run's work was of no use.
        bad, skipped: the first errors of lines that were skipped, and how many there were.
        tokens, truncation: as `TextEncoder` counts them.
    """

    info: IndexInfo
    shards: int
    reused: int
    discarded: bool
    bad: list[str]
    skipped: int
    tokens: int
    truncation: str | None


def build_index(
    corpus: str,
    output: Path,
    *,
    model: str,
    factory: str = DEFAULT_FACTORY,
    metric: str | None = None,
    memory: int | None = None,
    queries: str | None = None,
    skip_bad: bool = False,
    shard_size: int = 8192,
    batch_size: int | None = None,
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    seed: int = 0,
    force: bool = False,
    resume: bool = False,
    track: Track = silent,
) -> BuildReport:
    """Encodes a corpus and writes an index folder.

    Args:
        corpus: a file of texts or `-`, as `texts.read_texts`.
        output: the folder to write, atomically.
        model: MODEL; its content hash is recorded, and searching insists on it.
        factory: a name of `presets.PRESETS`, or a FAISS factory string, e.g. HNSW32, IVF256,Flat, OPQ48,IVF1024,PQ48.
        metric: "ip" or "l2"; None: as the model compares vectors, or as the preset needs.
        memory: bytes that the preset "auto" may use.
        queries: a file of texts to judge the index by (`truth`); None: documents.
        skip_bad: skip lines of the corpus that can't be read.
        shard_size: texts per shard, the unit of work that a kill can lose.
        seed: of the sample that FAISS trains on where the corpus is larger than it needs.
        force, resume: as `files.atomic_folder`; resuming skips the shards that an earlier run finished.

    Raises:
        DataError: the corpus can't be read, or two of its documents have the same id.
        InputError: the factory string is unknown, or asks for more than this corpus or metric gives.
        TernarizeError: as `models.load_encoder` and `files.atomic_folder`.
    """
    _check_metric(metric)
    folder = text_folder(model)
    inputs = [folder] if corpus == STDIN else [folder, Path(corpus)]
    files.check_output(output, force=force, inputs=inputs)
    with files.atomic_folder(output, force=force, resume=resume, inputs=inputs) as partial:
        skipped = _Skipped()
        texts = track(read_texts(corpus, on_bad=skipped if skip_bad else None), "reading")
        count = _copy_corpus(texts, partial, source_name(corpus))
        asked = None if queries is None else read_lines([queries])
        encoder = models.load_encoder(folder, backend=backend, device=device, threads=threads)
        if threads is not None:
            faiss.omp_set_num_threads(threads)
        similarity = encoder.similarity_fn_name
        normalized = compares_directions(similarity)
        encode = TextEncoder(encoder, role="document", normalize=normalized or None, batch_size=batch_size)
        plan = _plan(factory, metric, count, encode.dim, similarity, normalized, memory)

        documents = _stored(partial / DOCUMENTS)
        model_sha256 = files.content_hash(folder)
        shards = Shards(partial / "shards", ShardKey(documents.sha256, model_sha256, normalized, shard_size))
        numbers = range(-(-count // shard_size))
        reused = len(shards.finished)
        _encode_shards(encode, partial / DOCUMENTS, shards, shard_size, count, track)
        ask = TextEncoder(encoder, role="query", normalize=normalized or None, batch_size=batch_size)
        _fill(partial, plan, shards, numbers, count, seed, None if asked is None else ask(asked), track)
        shutil.rmtree(partial / "shards")
        info = IndexInfo(
            model=model,
            model_path=str(folder.resolve()),
            model_sha256=model_sha256,
            dim=plan.dim,
            metric=plan.metric,
            normalized=normalized,
            factory=plan.factory,
            count=count,
            corpus=source_name(corpus),
            document_prompt=encode.prompt_name,
            query_prompt=ask.prompt_name,
            seed=seed,
            tool_version=__version__,
            preset=plan.preset,
            files={DOCUMENTS: documents, **{name: _stored(partial / name) for name in (FAISS_INDEX, OFFSETS, TRUTH)}},
        )
        write_info(partial, info)
    return BuildReport(
        info, len(numbers), reused, shards.discarded, skipped.shown, skipped.count, encode.tokens, encode.truncation
    )


def index_vectors(
    vectors: Path,
    output: Path,
    *,
    factory: str = DEFAULT_FACTORY,
    metric: str | None = None,
    memory: int | None = None,
    threads: int | None = None,
    seed: int = 0,
    force: bool = False,
    track: Track = silent,
) -> BuildReport:
    """Writes an index folder from vectors that are there already. It names what it finds by id, and has no texts.

    Args:
        vectors: a folder that `vector_folder.encode_to_folder` finished.
        output, factory, metric, memory, threads, seed, force, track: as `build_index`.

    Raises:
        DataError: a shard is missing or damaged, or two vectors have the same id.
        InputError, TernarizeError: as `build_index`.
    """
    _check_metric(metric)
    files.check_output(output, force=force, inputs=[vectors])
    if threads is not None:
        faiss.omp_set_num_threads(threads)
    source = VectorFolder(vectors)
    record, numbers = source.record, range(source.shards)
    with files.atomic_folder(output, force=force, inputs=[vectors]) as partial:
        count = _copy_corpus(
            (Document(identity, "") for identity in track(source.ids(), "reading")), partial, str(vectors)
        )
        plan = _plan(factory, metric, count, record.dim, record.similarity, record.normalized, memory)
        _fill(partial, plan, source, numbers, count, seed, None, track)
        info = IndexInfo(
            model=record.model,
            model_path=record.model_path,
            model_sha256=record.model_sha256,
            dim=plan.dim,
            metric=plan.metric,
            normalized=record.normalized,
            factory=plan.factory,
            count=count,
            corpus=str(vectors),
            document_prompt=record.document_prompt,
            query_prompt=record.query_prompt,
            seed=seed,
            tool_version=__version__,
            preset=plan.preset,
            files={name: _stored(partial / name) for name in (DOCUMENTS, FAISS_INDEX, OFFSETS, TRUTH)},
        )
        write_info(partial, info)
    return BuildReport(info, source.shards, source.shards, False, [], 0, 0, None)


@dataclass(frozen=True)
class _Plan:
    """The index to make, empty, and what its record says of it."""

    index: faiss.Index
    preset: str
    factory: str
    metric: str
    dim: int


class _Vectors(Protocol):
    """Vectors in shards: `Shards` or `VectorFolder`."""

    def load(self, shard: int) -> np.ndarray: ...

    def rows(self, rows: np.ndarray) -> np.ndarray: ...


def _check_metric(metric: str | None) -> None:
    if metric not in (None, *METRICS):
        raise InputError(f"there is no metric {metric!r}", hint="--metric takes ip or l2")


def _plan(
    factory: str, metric: str | None, count: int, dim: int, similarity: str | None, normalized: bool, memory: int | None
) -> _Plan:
    preset, factory, needed = factory_of(factory, count, dim, normalized=normalized, memory=memory)
    metric = metric or needed or ("l2" if similarity == "euclidean" else "ip")
    _check_factory(factory, count)
    return _Plan(_make(factory, dim, metric), preset, factory, metric, dim)


def _fill(
    partial: Path,
    plan: _Plan,
    vectors: _Vectors,
    numbers: range,
    count: int,
    seed: int,
    queries: np.ndarray | None,
    track: Track,
) -> None:
    """Trains and fills the index and finds the truth; queries are documents drawn at random if there are none."""
    index, metric = plan.index, plan.metric
    if not index.is_trained:
        with _refusals(plan.factory, metric, count):
            index.train(_sample(vectors, numbers, index, count, seed))
    for shard in track(numbers, "indexing"):
        with _refusals(plan.factory, metric, count):
            index.add(vectors.load(shard))
    faiss.write_index(index, str(partial / FAISS_INDEX))
    index.reset()
    if queries is None:
        own = np.sort(np.random.default_rng(seed).choice(count, min(count, QUERIES), replace=False))
        queries = vectors.rows(own)
    else:
        own = np.full(len(queries), -1)
    all_vectors = (vectors.load(shard) for shard in track(numbers, "finding true neighbours"))
    find_truth(queries, own, all_vectors, count, METRICS[metric]).write(partial / TRUTH)


class _Skipped:
    """Counts the lines that can't be used, and keeps the first errors."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.count = 0

    def __call__(self, error: DataError) -> None:
        self.count += 1
        if len(self.shown) < _SHOWN:
            self.shown.append(str(error))


def _stored(path: Path) -> StoredFile:
    return StoredFile(path.stat().st_size, files.sha256(path))


def _copy_corpus(texts: Iterable[Document], partial: Path, name: str) -> int:
    """Writes documents.jsonl and where its lines begin; how many there are.

    Raises:
        DataError: two documents have the same id, beside what `texts` raises.
    """
    begins, ids, position = array("q"), array("Q"), 0
    with (partial / DOCUMENTS).open("wb") as stream:
        for document in texts:
            line = json.dumps({"id": document.id, "text": document.text}, ensure_ascii=False).encode() + b"\n"
            stream.write(line)
            begins.append(position)
            ids.append(_hash(document.id))
            position += len(line)
    hashes = np.frombuffer(ids, np.uint64)
    if len(np.unique(hashes)) < len(hashes):
        _refuse_twice(partial / DOCUMENTS, hashes, name)
    np.frombuffer(begins, np.int64).astype("<i8").tofile(partial / OFFSETS)
    return len(begins)


def _hash(identity: str) -> int:
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "little")


def _refuse_twice(documents: Path, hashes: np.ndarray, name: str) -> None:
    values, counts = np.unique(hashes, return_counts=True)
    first = int(np.flatnonzero(np.isin(hashes, values[counts > 1]))[0])
    number, row = int((counts - 1).sum()), int(np.flatnonzero(hashes == hashes[first])[1])
    with documents.open(encoding="utf-8") as lines:
        identity = json.loads(next(islice(lines, first, None)))["id"]
    more = f"; {number - 1} more ids come again" if number > 1 else ""
    raise DataError(
        f"{name}: texts {first + 1} and {row + 1} have the same id {identity!r}{more}",
        hint="give each text an id of its own, or none: then it is the number of its line",
    )


def _encode_shards(encode: TextEncoder, documents: Path, shards: Shards, size: int, count: int, track: Track) -> None:
    """Encodes what is not finished yet; the texts of finished shards only pass by."""

    def done() -> Generator[str, None, None]:
        with documents.open(encoding="utf-8") as lines:
            for shard in range(-(-count // size)):
                rows = islice(lines, size)
                if shard in shards.finished:
                    yield from rows
                    continue
                parts = []
                with closing(encoded(encode, (("", json.loads(line)["text"]) for line in rows))) as chunks:
                    for ids, vectors in chunks:
                        parts.append(vectors)
                        yield from ids
                shards.put(shard, np.concatenate(parts))

    with closing(done()) as texts:
        for _ in track(texts, "encoding", count):
            pass


def _check_factory(factory: str, count: int) -> None:
    """Refuses what FAISS would only refuse after all the encoding, or crash on."""
    if re.search(r"(?<!\d)0+(?!\d)", factory) or re.search(r"(HNSW|NSG)1(?!\d)", factory):
        raise InputError(f"the factory {factory!r} asks for an index with nothing in it", hint="e.g. --factory HNSW32")
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
def _refusals(factory: str, metric: str, count: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as e:
        raise InputError(
            f"FAISS can't fill an index {factory!r} (metric {metric}) with {count} texts: {_reason(e)}",
            hint="--factory Flat works for any corpus",
        ) from e


def _reason(error: Exception) -> str:
    """FAISS's own words without its function names and source lines."""
    return re.sub(r"^Error in .* at \S+:\d+: (Error: )?", "", " ".join(str(error).split())) or type(error).__name__


def _sample(vectors: _Vectors, numbers: range, index: faiss.Index, count: int, seed: int) -> np.ndarray:
    """All vectors, or of a large corpus a random sample: float32 `[rows, dim]`."""
    inverted = faiss.try_extract_index_ivf(index)
    wanted = max(_TRAINING_ROWS, _ROWS_PER_CLUSTER * inverted.nlist if inverted else 0)
    if count <= wanted:
        return np.concatenate([vectors.load(i) for i in numbers])
    return vectors.rows(np.sort(np.random.default_rng(seed).choice(count, wanted, replace=False)))
