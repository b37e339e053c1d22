"""Builds an index folder from a corpus.

Each step leaves its result in the partial folder: texts are copied to documents.jsonl (so that stdin works too and the
text that answers come from is the text that was encoded), vectors are computed shard by shard (`vector_shards`), FAISS
trains the index on a sample if its kind needs that and takes the shards in (`fill`), queries are compared with all
vectors (`truth`), and index.json is written. The shards are then deleted and the folder gets its name. Beside the index
itself, memory holds 16 bytes a document.

How vectors are compared follows the model: cosine (the usual case) means inner product of vectors of length 1, "dot"
inner product of the vectors as they are, "euclidean" their distance.
"""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from ternarize_cli import __version__
from ternarize_cli.data.corpora import Skipped, open_corpus, unique
from ternarize_cli.data.texts import STDIN, read_lines
from ternarize_cli.encoders.loading import checked_threads
from ternarize_cli.errors import DataError, InputError
from ternarize_cli.index.documents import read_documents, write_documents
from ternarize_cli.index.faiss_file import check_name, trust
from ternarize_cli.index.fill import METRICS, Plan, check_metric, fill, plan
from ternarize_cli.index.format import DOCUMENTS, FAISS_INDEX, LISTS, OFFSETS, TRUTH, IndexInfo, stored_file, write_info
from ternarize_cli.index.truth import QUERIES, find_truth
from ternarize_cli.progress import Track, silent
from ternarize_cli.storage import files
from ternarize_cli.vectors.batch_encoder import TextEncoder
from ternarize_cli.vectors.encode import EncoderOptions, OpenModel, image_folder, open_model, text_folder
from ternarize_cli.vectors.vector_folder import RECORD, VectorFolder, VectorRecord, read_record
from ternarize_cli.vectors.vector_shards import ShardOptions, encode_to_folder, record_of

__all__ = ["DEFAULT_FACTORY", "BuildReport", "IndexOptions", "build_index", "index_vectors"]

DEFAULT_FACTORY = "auto"
_SHARDS = "vectors"


@dataclass(frozen=True)
class IndexOptions:
    """What index to make.

    Attributes:
        factory: a name of `presets.PRESETS`, or a FAISS factory string, e.g. HNSW32, IVF256,Flat, OPQ48,IVF1024,PQ48.
        metric: "ip" or "l2"; None: as the model compares vectors, or as the preset needs.
        memory: bytes that the preset "auto" may use.
        on_disk: build the lists of an IVF index on disk, and leave them there.
        seed: of the sample that FAISS trains on where the corpus is larger than it needs, and of queries.
    """

    factory: str = DEFAULT_FACTORY
    metric: str | None = None
    memory: int | None = None
    on_disk: bool = False
    seed: int = 0

    def check(self) -> None:
        """Refuses what there is not, or does not go together.

        Raises:
            InputError: as said.
        """
        check_metric(self.metric)
        if self.memory is not None and (self.factory != "auto" or self.on_disk):
            what = "lists on disk" if self.on_disk else f"an index {self.factory!r}"
            raise InputError(f"--memory lets `auto` choose, and {what} is asked for", hint="leave --memory out")


@dataclass(frozen=True)
class BuildReport:
    """What a build did: the index's record, and how the work went.

    Attributes:
        info: the record.
        shards, reused: how many shards there were, and how many an earlier run had finished.
        discarded: whether an earlier run's work was of no use.
        skipped: what of the corpus was left out.
        note: on the training of the index, as `fill.fill` says it.
        tokens, truncation: as `TextEncoder` counts them.
    """

    info: IndexInfo
    shards: int
    reused: int
    discarded: bool
    skipped: Skipped
    note: str | None
    tokens: int
    truncation: str | None


def build_index(
    corpus: str,
    output: Path,
    *,
    model: str,
    options: IndexOptions = IndexOptions(),
    encoder: EncoderOptions = EncoderOptions(),
    queries: str | None = None,
    skip_bad: bool = False,
    shard_size: int | None = None,
    force: bool = False,
    resume: bool = False,
    track: Track = silent,
) -> BuildReport:
    """Encodes a corpus and writes an index folder.

    Args:
        corpus: as `corpora.open_corpus`.
        output: the folder to write, atomically.
        model: MODEL; its content hash is recorded, and searching insists on it.
        options: what index to make.
        encoder: how to encode.
        queries: a file of texts to judge the index by (`truth`); None: documents.
        skip_bad: skip what of the corpus can't be read.
        shard_size: documents per shard, the unit of work that a kill can lose; None: 8,192 texts or 1,024 images.
        force, resume: as `files.atomic_folder`; resuming skips the shards that an earlier run finished.

    Raises:
        DataError: the corpus can't be read, or two of its documents have the same id.
        InputError: the factory string is unknown, or asks for more than this corpus or metric gives.
        TernarizeError: as `encode.open_model` and `files.atomic_folder`.
    """
    options.check()
    check_name(output)
    source = open_corpus(corpus, skip_bad=skip_bad, documents=True)
    if queries is not None and source.kind != "text":
        raise InputError("--queries takes texts, and the corpus is of images", hint="leave --queries out")
    folder = (image_folder if source.kind == "image" else text_folder)(model, allow_pickle=encoder.allow_pickle)
    inputs = [folder, *([Path(corpus)] if corpus != STDIN and Path(corpus).exists() else [])]
    files.check_output(output, force=force, inputs=inputs)
    with files.atomic_folder(output, force=force, resume=resume, inputs=inputs) as partial:
        for path in partial.iterdir():
            if path.name != _SHARDS:
                files.remove(path)
        items: Iterable[tuple[str, Any]] = source.items
        count = source.count or 0
        if source.kind == "text":  # so that a line that can't be read is found before the work
            written = write_documents(track(source.items, "reading", source.count), partial)
            count = sum(1 for _ in unique(written, source.name, lambda: read_documents(partial)))
            items = read_documents(partial)
        else:
            items = unique(write_documents(source.items, partial), source.name)
        asked = None if queries is None else read_lines([queries])
        opened = open_model(folder, source.kind, encoder, role="document")
        if encoder.threads is not None:
            faiss.omp_set_num_threads(checked_threads(encoder.threads))
        record = record_of(model, opened, ShardOptions("npy", "fp32", shard_size))
        _planned(options, record, count)
        discarded = _discard(partial / _SHARDS, record)
        report = encode_to_folder(opened.encode, items, partial / _SHARDS, record, total=count, track=track)
        vectors = VectorFolder(partial / _SHARDS)
        made = _planned(options, record, vectors.count)
        info, note = _index(vectors, made, options, partial, source.name, _encoded(asked, opened), track)
        shutil.rmtree(partial / _SHARDS)
        write_info(partial, info)
    tokens = opened.encode.tokens if isinstance(opened.encode, TextEncoder) else 0
    truncation = opened.encode.truncation
    return BuildReport(info, vectors.shards, report.reused, discarded, source.skipped, note, tokens, truncation)


def index_vectors(
    vectors: Path,
    output: Path,
    *,
    options: IndexOptions = IndexOptions(),
    threads: int | None = None,
    force: bool = False,
    track: Track = silent,
) -> BuildReport:
    """Writes an index folder from vectors that are there already. It names what it finds by id, and has no texts.

    Args:
        vectors: a folder that `vector_shards.encode_to_folder` finished.
        output, options, force, track: as `build_index`.
        threads: CPU threads.

    Raises:
        DataError: a shard is missing or damaged, or two vectors have the same id.
        InputError, TernarizeError: as `build_index`.
    """
    options.check()
    files.check_output(output, force=force, inputs=[vectors])
    if threads is not None:
        faiss.omp_set_num_threads(checked_threads(threads))
    source = VectorFolder(vectors)
    with files.atomic_folder(output, force=force, inputs=[vectors]) as partial:
        items = ((identity, "") for identity in track(source.ids(), "reading", source.count))
        for _ in unique(write_documents(items, partial), str(vectors), lambda: read_documents(partial)):
            pass
        made = _planned(options, source.record, source.count)
        info, note = _index(source, made, options, partial, str(vectors), None, track)
        write_info(partial, info)
    return BuildReport(info, source.shards, source.shards, False, Skipped(), note, 0, None)


def _planned(options: IndexOptions, record: VectorRecord, count: int) -> Plan:
    return plan(
        options.factory,
        options.metric,
        count,
        record.dim,
        similarity=record.similarity,
        normalized=record.normalized,
        memory=options.memory,
        on_disk=options.on_disk,
    )


def _index(
    vectors: VectorFolder,
    made: Plan,
    options: IndexOptions,
    partial: Path,
    corpus: str,
    queries: np.ndarray | None,
    track: Track,
) -> tuple[IndexInfo, str | None]:
    """Fills the index and finds the truth; queries are documents drawn at random if there are none."""
    note = fill(made, vectors, partial, options.seed, on_disk=options.on_disk, track=track)
    if queries is None:
        draw = np.random.default_rng(options.seed)
        own = np.sort(draw.choice(vectors.count, min(vectors.count, QUERIES), replace=False))
        queries = vectors.rows(own)
    else:
        own = np.full(len(queries), -1)
    shards: Iterator[np.ndarray] = map(vectors.load, track(range(vectors.shards), "finding true neighbours"))
    find_truth(queries, own, shards, vectors.count, METRICS[made.metric]).write(partial / TRUTH)
    names = (DOCUMENTS, FAISS_INDEX, OFFSETS, TRUTH, *([LISTS] if options.on_disk else []))
    info = IndexInfo(
        **vectors.record.origin,
        dim=made.dim,
        metric=made.metric,
        factory=made.factory,
        count=vectors.count,
        corpus=corpus,
        seed=options.seed,
        tool_version=__version__,
        preset=made.preset,
        files={name: stored_file(partial / name) for name in names},
    )
    trust(info.faiss_digests, partial / FAISS_INDEX, partial / LISTS if options.on_disk else None)
    return info, note


def _discard(folder: Path, record: VectorRecord) -> bool:
    """Removes vectors of another model or shard size; whether there were any."""
    if not folder.exists():
        return False
    try:
        if read_record(folder) == record:
            return False
    except DataError:
        if not (folder / RECORD).exists() and not any(folder.glob("*.json")):
            return False
    shutil.rmtree(folder)
    return True


def _encoded(texts: list[str] | None, opened: OpenModel) -> np.ndarray | None:
    if texts is None:
        return None
    ask = TextEncoder(opened.encode.encoder, role="query", normalize=opened.normalized or None)
    return ask(texts)
