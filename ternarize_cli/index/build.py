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
from ternarize_cli.data.records import Document
from ternarize_cli.data.texts import STDIN
from ternarize_cli.encoders.loading import checked_threads
from ternarize_cli.errors import DataError, InputError, shown
from ternarize_cli.index.documents import read_documents, write_documents
from ternarize_cli.index.faiss_file import check_name, trust
from ternarize_cli.index.fill import METRICS, FillPlan, check_metric, fill, plan_fill
from ternarize_cli.index.format import DOCUMENTS, FAISS_INDEX, LISTS, OFFSETS, TRUTH, IndexInfo, stored_file, write_info
from ternarize_cli.index.options import IndexOptions
from ternarize_cli.index.queries import own_rows, read_documents_of
from ternarize_cli.index.truth import QUERIES, find_truth
from ternarize_cli.progress import Track, silent
from ternarize_cli.storage import files
from ternarize_cli.vectors.encode import EncoderOptions, OpenModel, image_folder, open_model, reads, text_folder
from ternarize_cli.vectors.text_batches import TextBatches
from ternarize_cli.vectors.vector_folder import RECORD, VectorFolder, VectorRecord, holds_vectors, read_record
from ternarize_cli.vectors.vector_shards import ShardOptions, encode_to_folder, record_of

__all__ = ["BuildReport", "IndexOptions", "build_index"]

_SHARDS = "vectors"


@dataclass(frozen=True)
class BuildReport:
    """What a build did: the index's record, and how the work went.

    Attributes:
        info: the record.
        shards, reused: how many shards there were, and how many an earlier run had finished.
        discarded: whether an earlier run's work was of no use.
        skipped: what of the corpus was left out.
        note: on the training of the index, as `fill.fill` says it.
        tokens, truncation: as `TextBatches` counts them.
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
    corpus: str | Path,
    output: str | Path,
    *,
    model: str | Path | None = None,
    options: IndexOptions | None = None,
    encoder: EncoderOptions | None = None,
    force: bool = False,
    track: Track = silent,
) -> BuildReport:
    """Encodes a corpus and writes a folder with a FAISS index, the documents, and what is needed to judge it.

        ternarize.build_index("corpus.jsonl", "my-index", model="my-model-packed")

    Args:
        corpus: a file of texts (one a line, JSONL with `text`, or Parquet), a folder of them or of images, a hub data
            set, "-" for stdin, or a folder of vectors that `ternarize encode --shards` wrote.
        output: the folder to write, atomically.
        model: what encodes the corpus; None only for a folder of vectors, whose model is recorded there.
        options: kind of index, memory, queries and shards; None: `IndexOptions()`.
        encoder: how the model runs; None: `EncoderOptions()`.
        force: replace the output if it exists.
        track: progress, as `ternarize_cli.progress` describes it.

    Returns:
        The index's record, and how the work went.

    Raises:
        InputError: a corpus of texts without a model, or options that do not go together.
        DataError: the corpus can't be read, or two of its documents have one id.
        ModelNotFoundError, CheckpointError, UnavailableError: the model can't be had, read or run.
        OutputError, OutputExistsError: the output can't be written, or exists and `force` is False.
    """
    options, encoder = options or IndexOptions(), encoder or EncoderOptions()
    corpus, folder, output = str(corpus), Path(corpus), Path(output)
    check_metric(options.metric)
    if corpus != STDIN and holds_vectors(folder):
        _check_unused(corpus, model, options, encoder)
        return _index_vectors(folder, output, options, threads=encoder.threads, force=force, track=track)
    if options.texts is not None:
        raise InputError(f"{corpus} holds no vectors, and keeps its own texts", hint="leave --texts out")
    if model is None:
        what = f"{corpus} holds no vectors, and anything else needs" if folder.is_dir() else "texts need"
        raise InputError(f"{what} a model", hint="--model MODEL")
    return _index_corpus(corpus, output, str(model), options, encoder, force=force, track=track)


def _check_unused(corpus: str, model: str | Path | None, options: IndexOptions, encoder: EncoderOptions) -> None:
    """Checks that no option of encoding is given for vectors."""
    if (model, options.queries) != (None, None):
        raise InputError(f"{corpus} holds vectors; their model is known", hint="leave --model and --queries out")
    given: list[tuple[str, object]] = [("resume", options.resume), ("skip_bad", options.skip_bad and not options.texts)]
    given += [(name, getattr(encoder, name)) for name in ("batch_size", "device")]
    given += [("backend", encoder.backend != "auto"), ("shard_size", options.shard_size)]
    if unused := [f"--{name.replace('_', '-')}" for name, value in given if value]:
        raise InputError(f"{corpus} holds vectors, and nothing is encoded", hint=f"leave {' and '.join(unused)} out")


def _index_corpus(
    corpus: str,
    output: Path,
    model: str,
    options: IndexOptions,
    encoder: EncoderOptions,
    *,
    force: bool,
    track: Track,
) -> BuildReport:
    options.check()
    check_name(output)
    if corpus == options.queries == STDIN:
        raise InputError("stdin is named twice, and can be read once", hint="write the queries to a file")
    source = open_corpus(corpus, skip_bad=options.skip_bad, documents=True, reads=reads(model, encoder))
    if options.queries is not None and source.kind != "text":
        raise InputError("--queries takes texts, and the corpus is of images", hint="leave --queries out")
    folder = (image_folder if source.kind == "image" else text_folder)(model, allow_pickle=encoder.allow_pickle)
    inputs = [folder, *([Path(corpus)] if corpus != STDIN and Path(corpus).exists() else [])]
    files.check_output(output, force=force, inputs=inputs)
    with files.atomic_folder(output, force=force, resume=options.resume, inputs=inputs) as partial:
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
        asked = None if options.queries is None else read_documents_of(options.queries)
        opened = open_model(folder, source.kind, encoder, role="document")
        if encoder.threads is not None:
            faiss.omp_set_num_threads(checked_threads(encoder.threads))
        record = record_of(model, opened, ShardOptions(size=options.shard_size, format="npy"))
        _planned(options, record, count)
        discarded = _discard(partial / _SHARDS, record)
        report = encode_to_folder(opened.encode, items, partial / _SHARDS, record, total=count, track=track)
        vectors = VectorFolder(partial / _SHARDS)
        made = _planned(options, record, vectors.count)
        info, note = _index(vectors, made, options, partial, source.name, _asked(asked, opened, partial), track)
        shutil.rmtree(partial / _SHARDS)
        write_info(partial, info)
    tokens = opened.encode.tokens if isinstance(opened.encode, TextBatches) else 0
    truncation = opened.encode.truncation
    return BuildReport(info, vectors.shards, report.reused, discarded, source.skipped, note, tokens, truncation)


def _index_vectors(
    vectors: Path, output: Path, options: IndexOptions, *, threads: int | None, force: bool, track: Track
) -> BuildReport:
    options.check()
    files.check_output(output, force=force, inputs=[vectors])
    if threads is not None:
        faiss.omp_set_num_threads(checked_threads(threads))
    source = VectorFolder(vectors)
    with files.atomic_folder(output, force=force, inputs=[vectors]) as partial:
        items = _with_texts(track(source.ids(), "reading", source.count), options.texts, skip_bad=options.skip_bad)
        for _ in unique(write_documents(items, partial), str(vectors), lambda: read_documents(partial)):
            pass
        made = _planned(options, source.record, source.count)
        info, note = _index(source, made, options, partial, str(vectors), None, track)
        write_info(partial, info)
    return BuildReport(info, source.shards, source.shards, False, Skipped(), note, 0, None)


def _with_texts(ids: Iterable[str], texts: str | None, *, skip_bad: bool) -> Iterator[tuple[str, str]]:
    """Yields each id of some vectors with its text, which is empty if there is no corpus of texts.

    Raises:
        DataError: the corpus can't be read, holds images, or lacks an id, or its ids are in another order.
    """
    if texts is None:
        yield from ((identity, "") for identity in ids)
        return
    corpus = open_corpus(texts, skip_bad=skip_bad, documents=True)
    if corpus.kind != "text":
        raise DataError(f"{texts} holds images, and an index keeps texts", hint="leave --texts out")
    items = iter(corpus.items)
    for identity in ids:
        text = next((content for known, content in items if known == identity), None)
        if text is None:
            raise DataError(
                f"{texts} has no text with the id {shown(identity)} after those before it",
                hint="--texts takes the corpus that `encode --shards` read, in its order",
            )
        yield identity, text


def _planned(options: IndexOptions, record: VectorRecord, count: int) -> FillPlan:
    return plan_fill(
        options.factory,
        options.metric,
        count,
        record.dim,
        similarity=record.similarity,
        normalized=record.normalized,
        memory=options.budget,
        on_disk=options.on_disk,
    )


def _index(
    vectors: VectorFolder,
    made: FillPlan,
    options: IndexOptions,
    partial: Path,
    corpus: str,
    asked: tuple[np.ndarray, np.ndarray] | None,
    track: Track,
) -> tuple[IndexInfo, str | None]:
    """Fills the index and finds the truth; if no queries are asked, they are documents drawn at random.

    Args:
        vectors, made, options, partial, corpus, track: as `build_index` has them.
        asked: the vectors of the queries, float32 `[queries, dim]`, and the row of the document that each of them is,
            int64 `[queries]`, -1 if it is none; None draws documents.
    """
    note = fill(made, vectors, partial, options.seed, on_disk=options.on_disk, track=track)
    if asked is None:
        draw = np.random.default_rng(options.seed)
        drawn = np.sort(draw.choice(vectors.count, min(vectors.count, QUERIES), replace=False))
        asked = vectors.rows(drawn), drawn
    shards: Iterator[np.ndarray] = map(vectors.load, track(range(vectors.shards), "finding true neighbours"))
    queries, own = asked
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
        if not (folder / RECORD).exists() and not any(folder.rglob("*.json")):
            return False
    shutil.rmtree(folder)
    return True


def _asked(queries: list[Document] | None, opened: OpenModel, folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Encodes queries, and finds those that are documents of the index in `folder`, too: these are no neighbours."""
    if queries is None or not isinstance(opened.encode, TextBatches):
        return None
    ask = opened.encode.for_role("query", normalize=opened.normalized or None)
    return ask([query.text for query in queries]), own_rows(queries, read_documents(folder))
