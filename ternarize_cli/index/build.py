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
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import faiss
import numpy as np

from ternarize_cli import __version__, files, models
from ternarize_cli.errors import DataError, InputError
from ternarize_cli.index.encode import encoded, text_folder
from ternarize_cli.index.encoders import TextEncoder
from ternarize_cli.index.format import DOCUMENTS, FAISS_INDEX, OFFSETS, TRUTH, IndexInfo, StoredFile, write_info
from ternarize_cli.index.presets import factory_of
from ternarize_cli.index.shards import ShardKey, Shards
from ternarize_cli.index.truth import QUERIES, find_truth
from ternarize_cli.progress import Track, silent
from ternarize_cli.texts import STDIN, read_lines, read_texts, source_name

__all__ = ["DEFAULT_FACTORY", "METRICS", "BuildReport", "build_index"]

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
    if metric not in (None, *METRICS):
        raise InputError(f"there is no metric {metric!r}", hint="--metric takes ip or l2")
    folder = text_folder(model)
    inputs = [folder] if corpus == STDIN else [folder, Path(corpus)]
    files.check_output(output, force=force, inputs=inputs)
    with files.atomic_folder(output, force=force, resume=resume, inputs=inputs) as partial:
        skipped = _Skipped()
        count = _copy_corpus(corpus, partial / DOCUMENTS, partial / OFFSETS, skipped if skip_bad else None, track)
        asked = None if queries is None else read_lines([queries])
        encoder = models.load_encoder(folder, backend=backend, device=device, threads=threads)
        if threads is not None:
            faiss.omp_set_num_threads(threads)
        similarity = encoder.similarity_fn_name
        normalized = similarity not in ("dot", "euclidean")
        own_metric = "l2" if similarity == "euclidean" else "ip"
        encode = TextEncoder(encoder, role="document", normalize=normalized or None, batch_size=batch_size)
        preset, factory, needed = factory_of(factory, count, encode.dim, normalized=normalized, memory=memory)
        metric = metric or needed or own_metric
        _check_factory(factory, count)
        index = _make(factory, encode.dim, metric)

        documents = _stored(partial / DOCUMENTS)
        model_sha256 = files.content_hash(folder)
        shards = Shards(partial / "shards", ShardKey(documents.sha256, model_sha256, normalized, shard_size))
        numbers = range(-(-count // shard_size))
        reused = len(shards.finished)
        _encode_shards(encode, partial / DOCUMENTS, shards, shard_size, count, track)

        if not index.is_trained:
            with _refusals(factory, metric, count):
                index.train(_sample(shards, numbers, index, count, seed))
        for shard in track(numbers, "indexing"):
            with _refusals(factory, metric, count):
                index.add(shards.load(shard))
        faiss.write_index(index, str(partial / FAISS_INDEX))
        dim = index.d
        del index
        ask = TextEncoder(encoder, role="query", normalize=normalized or None, batch_size=batch_size)
        vectors, own = _queries(asked, ask, shards, count, seed)
        all_vectors = (shards.load(shard) for shard in track(numbers, "finding true neighbours"))
        find_truth(vectors, own, all_vectors, count, METRICS[metric]).write(partial / TRUTH)
        shutil.rmtree(partial / "shards")
        info = IndexInfo(
            model=model,
            model_path=str(folder.resolve()),
            model_sha256=model_sha256,
            dim=dim,
            metric=metric,
            normalized=normalized,
            factory=factory,
            count=count,
            corpus=source_name(corpus),
            document_prompt=encode.prompt_name,
            query_prompt=ask.prompt_name,
            seed=seed,
            tool_version=__version__,
            preset=preset,
            files={DOCUMENTS: documents, **{name: _stored(partial / name) for name in (FAISS_INDEX, OFFSETS, TRUTH)}},
        )
        write_info(partial, info)
    return BuildReport(
        info, len(numbers), reused, shards.discarded, skipped.shown, skipped.count, encode.tokens, encode.truncation
    )


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


def _copy_corpus(
    corpus: str, target: Path, offsets: Path, on_bad: Callable[[DataError], None] | None, track: Track
) -> int:
    """Writes documents.jsonl and where its lines begin; how many there are.

    Raises:
        DataError: two documents have the same id, beside what `read_texts` raises.
    """
    begins, ids, position = array("q"), array("Q"), 0
    with target.open("wb") as stream:
        for document in track(read_texts(corpus, on_bad=on_bad), "reading"):
            line = json.dumps({"id": document.id, "text": document.text}, ensure_ascii=False).encode() + b"\n"
            stream.write(line)
            begins.append(position)
            ids.append(_hash(document.id))
            position += len(line)
    hashes = np.frombuffer(ids, np.uint64)
    if len(np.unique(hashes)) < len(hashes):
        _refuse_twice(target, hashes, source_name(corpus))
    np.frombuffer(begins, np.int64).astype("<i8").tofile(offsets)
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


def _queries(
    asked: list[str] | None, ask: TextEncoder, shards: Shards, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of the user's queries, or of documents drawn at random, and the rows of these."""
    if asked is not None:
        return ask(asked), np.full(len(asked), -1)
    rows = np.sort(np.random.default_rng(seed).choice(count, min(count, QUERIES), replace=False))
    return shards.rows(rows), rows


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


def _sample(shards: Shards, numbers: range, index: faiss.Index, count: int, seed: int) -> np.ndarray:
    """All vectors, or of a large corpus a random sample: float32 `[rows, dim]`."""
    inverted = faiss.try_extract_index_ivf(index)
    wanted = max(_TRAINING_ROWS, _ROWS_PER_CLUSTER * inverted.nlist if inverted else 0)
    if count <= wanted:
        return np.concatenate([shards.load(i) for i in numbers])
    return shards.rows(np.sort(np.random.default_rng(seed).choice(count, wanted, replace=False)))
