"""Builds an index folder from a corpus.

Four steps, each of which leaves its result in the partial folder: the corpus is copied to documents.jsonl (so that
stdin works too and the text that answers come from is the text that was encoded), its vectors are computed shard by
shard, FAISS trains the index on a sample if its kind needs that and takes the shards in, and index.json is written.
The shards are then deleted and the folder gets its name.

How vectors are compared follows the model: cosine (the usual case) means inner product of vectors of length 1, "dot"
inner product of the vectors as they are, "euclidean" their distance.
"""

import json
import re
import shutil
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import faiss
import numpy as np

from ternarize_cli import __version__, files, models
from ternarize_cli.errors import InputError
from ternarize_cli.index.encode import encoded, text_folder
from ternarize_cli.index.encoders import TextEncoder
from ternarize_cli.index.format import DOCUMENTS, FAISS_INDEX, IndexInfo, StoredFile, write_info
from ternarize_cli.index.shards import ShardKey, Shards
from ternarize_cli.progress import Track, silent
from ternarize_cli.texts import STDIN, read_texts, source_name

__all__ = ["DEFAULT_FACTORY", "METRICS", "BuildReport", "build_index"]

METRICS = {"ip": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}
DEFAULT_FACTORY = "Flat"
_TRAINING_ROWS = 262_144
_ROWS_PER_CLUSTER = 64


@dataclass(frozen=True)
class BuildReport:
    """What a build did: the index's record, and how the work went."""

    info: IndexInfo
    shards: int
    reused: int
    discarded: bool
    tokens: int
    truncation: str | None


def build_index(
    corpus: str,
    output: Path,
    *,
    model: str,
    factory: str = DEFAULT_FACTORY,
    metric: str | None = None,
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
        factory: a FAISS factory string, e.g. Flat, HNSW32, IVF256,Flat, OPQ48,IVF1024,PQ48.
        metric: "ip" or "l2"; None: as the model compares vectors.
        shard_size: texts per shard, the unit of work that a kill can lose.
        seed: of the sample that FAISS trains on where the corpus is larger than it needs.
        force, resume: as `files.atomic_folder`; resuming skips the shards that an earlier run finished.

    Raises:
        DataError: the corpus can't be read.
        InputError: the factory string is unknown, or asks for more than this corpus or metric gives.
        TernarizeError: as `models.load_encoder` and `files.atomic_folder`.
    """
    if metric not in (None, *METRICS):
        raise InputError(f"there is no metric {metric!r}", hint="--metric takes ip or l2")
    folder = text_folder(model)
    inputs = [folder] if corpus == STDIN else [folder, Path(corpus)]
    files.check_output(output, force=force, inputs=inputs)
    with files.atomic_folder(output, force=force, resume=resume, inputs=inputs) as partial:
        count = _copy_corpus(corpus, partial / DOCUMENTS, track)
        _check_factory(factory, count)
        encoder = models.load_encoder(folder, backend=backend, device=device, threads=threads)
        if threads is not None:
            faiss.omp_set_num_threads(threads)
        similarity = encoder.similarity_fn_name
        normalized = similarity not in ("dot", "euclidean")
        metric = metric or ("l2" if similarity == "euclidean" else "ip")
        encode = TextEncoder(encoder, role="document", normalize=normalized or None, batch_size=batch_size)
        index = _make(factory, encode.dim, metric)

        documents = StoredFile((partial / DOCUMENTS).stat().st_size, files.sha256(partial / DOCUMENTS))
        model_sha256 = files.content_hash(folder)
        shards = Shards(partial / "shards", ShardKey(documents.sha256, model_sha256, normalized, shard_size))
        numbers = range(-(-count // shard_size))
        reused = len(shards.finished)
        _encode_shards(encode, partial / DOCUMENTS, shards, shard_size, count, track)

        if not index.is_trained:
            with _refusals(factory, metric, count):
                index.train(_sample(shards, numbers, index, count, shard_size, seed))
        for shard in track(numbers, "indexing"):
            with _refusals(factory, metric, count):
                index.add(shards.load(shard))
        faiss.write_index(index, str(partial / FAISS_INDEX))
        shutil.rmtree(partial / "shards")
        stored = StoredFile((partial / FAISS_INDEX).stat().st_size, files.sha256(partial / FAISS_INDEX))
        info = IndexInfo(
            model=model,
            model_path=str(folder.resolve()),
            model_sha256=model_sha256,
            dim=index.d,
            metric=metric,
            normalized=normalized,
            factory=factory,
            count=count,
            corpus=source_name(corpus),
            document_prompt=encode.prompt_name,
            query_prompt=TextEncoder(encoder, role="query").prompt_name,
            seed=seed,
            tool_version=__version__,
            files={FAISS_INDEX: stored, DOCUMENTS: documents},
        )
        write_info(partial, info)
    return BuildReport(info, len(numbers), reused, shards.discarded, encode.tokens, encode.truncation)


def _copy_corpus(corpus: str, target: Path, track: Track) -> int:
    count = 0
    with target.open("w", encoding="utf-8") as stream:
        for document in track(read_texts(corpus), "reading"):
            stream.write(json.dumps({"id": document.id, "text": document.text}, ensure_ascii=False) + "\n")
            count += 1
    return count


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


def _sample(shards: Shards, numbers: range, index: faiss.Index, count: int, size: int, seed: int) -> np.ndarray:
    """All vectors, or of a large corpus a random sample: float32 `[rows, dim]`."""
    inverted = faiss.try_extract_index_ivf(index)
    wanted = max(_TRAINING_ROWS, _ROWS_PER_CLUSTER * inverted.nlist if inverted else 0)
    if count <= wanted:
        return np.concatenate([shards.load(i) for i in numbers])
    rows = np.sort(np.random.default_rng(seed).choice(count, wanted, replace=False))
    return np.concatenate([shards.load(i)[rows[rows // size == i] - i * size] for i in numbers])
