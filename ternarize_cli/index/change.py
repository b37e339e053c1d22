"""Adds documents to an index, deletes some, and makes what was deleted go away.

Deleting writes down which rows are dead (`format`: deleted-N.bin), whatever kind the index is: searches leave them out,
and the vectors stay where they are, since FAISS can't take a node out of an HNSW graph and would renumber the rows of
others. Compacting takes them out: rows of a list or an array are dropped as they are, without encoding or quantising
again; a graph is built anew from its vectors.

Adding and compacting write a new folder beside the index and change its place with it in one step, so that a search
that runs, or a kill, sees the index before or after.
"""

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from ternarize_cli import files
from ternarize_cli.errors import DataError, InputError, OutputError
from ternarize_cli.index.corpora import Skipped, open_corpus, unique
from ternarize_cli.index.documents import read_documents, rows_of, write_documents
from ternarize_cli.index.encode import EncoderOptions, encoded, open_model
from ternarize_cli.index.fill import METRICS, levels, silent_faiss
from ternarize_cli.index.format import (
    DOCUMENTS,
    FAISS_INDEX,
    LISTS,
    OFFSETS,
    TRUTH,
    IndexInfo,
    read_deleted,
    read_info,
    stored_file,
    write_info,
)
from ternarize_cli.index.search import model_for
from ternarize_cli.index.truth import Truth, find_truth, read_truth
from ternarize_cli.index.vector_folder import RECORD, VectorFolder
from ternarize_cli.progress import Track, silent

__all__ = ["ChangeReport", "add_documents", "compact_index", "delete_documents"]

_SHOWN = 3


@dataclass(frozen=True)
class ChangeReport:
    """What a change did.

    Attributes:
        info: the index's record afterwards.
        added, deleted: documents; of those added, replaced had an id that was there.
        missing: ids to delete that the index does not have.
        skipped: lines or images that could not be read.
        truncation: as `TextEncoder` says it.
    """

    info: IndexInfo
    added: int = 0
    deleted: int = 0
    replaced: int = 0
    missing: int = 0
    skipped: Skipped | None = None
    truncation: str | None = None


def add_documents(
    folder: Path,
    corpus: str,
    *,
    model: str | None = None,
    replace_known: bool = False,
    skip_bad: bool = False,
    encoder: EncoderOptions = EncoderOptions(),
    track: Track = silent,
) -> ChangeReport:
    """Encodes documents and adds them to an index.

    Args:
        folder: the index.
        corpus: as `corpora.open_corpus`, or a folder of vectors of the same model.
        model: the index's model, if it moved.
        replace_known: delete documents whose ids come again, instead of refusing them.
        skip_bad: skip what of the corpus can't be read.
        encoder: how to encode.
        track: progress.

    Raises:
        DataError: the corpus or the index can't be read; an id comes twice, or is there already.
        InputError: the model or the kind of vectors is another.
        TernarizeError: as `encode.open_model` and `files.atomic_folder`.
    """
    info, skipped = read_info(folder), Skipped()
    if encoder.threads is not None:
        faiss.omp_set_num_threads(encoder.threads)
    vectors = VectorFolder(Path(corpus)) if (Path(corpus) / RECORD).is_file() else None
    source = None if vectors else open_corpus(corpus, on_bad=skipped if skip_bad else None)
    _check_kind(info, corpus, vectors.record.kind if vectors else source.kind if source else "")
    opened = None
    if vectors is not None:
        _check_vectors(info, corpus, vectors)
    else:
        where, student = model_for(info, model, asymmetric=False)
        if student:
            raise InputError(
                f"{model} is a student of the model that made this index: it may ask, but its documents don't fit",
                hint=f"add with {info.model}",
            )
        opened = open_model(where, info.kind, replace(encoder, normalize=info.normalized or None), role="document")
    with _changed(folder, info) as (partial, index):
        known = info.count
        if vectors is not None:
            written = write_documents(((identity, "") for identity in vectors.ids()), partial, append=True)
            ids = [identity for identity, _ in unique(written, corpus)]
            parts: Iterator[np.ndarray] = map(vectors.load, track(range(vectors.shards), "adding"))
        else:
            assert source is not None
            assert opened is not None
            ids = []
            written = write_documents(unique(source.items, source.name), partial, append=True)
            parts = _encoding(opened.encode, track(written, "adding", source.count), ids)
        fresh = _Truth(read_truth(folder / TRUTH), METRICS[info.metric])
        for part in parts:
            with silent_faiss():  # it says how it makes room in lists on disk
                index.add(part)
            fresh.add(part, known + fresh.rows)
        if not ids:
            raise DataError(f"{corpus} holds nothing that could be added")
        dead = read_deleted(folder, info)
        again = rows_of(folder, set(ids), dead)
        if again and not replace_known:
            shown = ", ".join(repr(identity) for identity in list(again)[:_SHOWN])
            more = f" and {len(again) - _SHOWN} more" if len(again) > _SHOWN else ""
            raise DataError(f"{folder} has documents {shown}{more} already", hint="--replace puts these in their place")
        dead = np.union1d(dead, np.fromiter(again.values(), np.int64, len(again)))
        fresh.truth.write(partial / TRUTH)
        info = _finish(partial, index, info, known + len(ids), dead)
    truncation = opened.encode.truncation if opened else None
    return ChangeReport(
        info, added=len(ids), deleted=len(again), replaced=len(again), skipped=skipped, truncation=truncation
    )


def delete_documents(folder: Path, ids: Collection[str], *, missing_ok: bool = False) -> ChangeReport:
    """Marks documents as deleted: searches no longer find them.

    Args:
        folder: the index.
        ids: of the documents.
        missing_ok: whether there may be ids that the index does not have.

    Raises:
        DataError: an id is not there; then nothing is deleted.
        OutputError: the folder can't be written.
    """
    info = read_info(folder)
    dead = read_deleted(folder, info)
    found = rows_of(folder, set(ids), dead)
    missing = [identity for identity in dict.fromkeys(ids) if identity not in found]
    if missing and not missing_ok:
        shown = ", ".join(map(repr, missing[:_SHOWN])) + (f" and {len(missing) - _SHOWN} more" if missing[3:] else "")
        raise DataError(f"{folder} has no documents {shown}; nothing was deleted", hint="--missing-ok skips them")
    if found:
        with _writing(folder):
            changed = _with_dead(folder, info, np.union1d(dead, np.fromiter(found.values(), np.int64, len(found))))
            write_info(folder, changed)
            if info.deleted_file:
                (folder / info.deleted_file).unlink(missing_ok=True)
        info = changed
    return ChangeReport(info, deleted=len(found), missing=len(missing))


def compact_index(folder: Path, *, threads: int | None = None) -> ChangeReport:
    """Takes deleted documents out of an index; the others' vectors stay as they are stored.

    Args:
        folder: the index.
        threads: CPU threads, for a graph that is built anew.

    Raises:
        InputError: FAISS can't take vectors out of an index of this kind, or there would be none left.
        TernarizeError: as `files.atomic_folder`.
    """
    info = read_info(folder)
    dead = read_deleted(folder, info)
    if threads is not None:
        faiss.omp_set_num_threads(threads)
    if not len(dead):
        return ChangeReport(info)
    if not info.live:
        raise InputError(f"all documents of {folder} are deleted", hint="remove the folder")
    if LISTS in info.files:
        raise InputError(f"the lists of {folder} are on disk, where FAISS can't shorten them", hint="build it again")
    keep = np.ones(info.count, bool)
    keep[dead] = False
    with _changed(folder, info, documents=False) as (partial, index):
        try:
            _drop(index, keep)
        except RuntimeError as e:
            raise InputError(
                f"FAISS takes no vectors out of an index {info.factory!r}", hint="build the index again"
            ) from e
        live = ((identity, text) for row, (identity, text) in enumerate(read_documents(folder)) if keep[row])
        for _ in write_documents(live, partial):
            pass
        truth, new = read_truth(folder / TRUTH).without(dead), np.cumsum(keep) - 1
        own = np.where(truth.own >= 0, new[truth.own], -1)
        Truth(truth.queries, own, new[truth.neighbours], truth.scores).write(partial / TRUTH)
        changed = _finish(partial, index, info, info.live, dead[:0])
    return ChangeReport(changed, deleted=len(dead))


class _Truth:
    """The truth of an index, kept true while vectors come."""

    def __init__(self, truth: Truth, metric: int) -> None:
        self.truth, self.rows, self._metric = truth, 0, metric

    def add(self, vectors: np.ndarray, first: int) -> None:
        """Compares the queries with more vectors, whose rows begin at `first`."""
        none = np.full(len(self.truth.queries), -1)
        near = find_truth(self.truth.queries, none, [vectors], len(vectors), self._metric)
        if len(near.queries):
            self.truth = self.truth.joined(replace(near, neighbours=near.neighbours + first), self._metric)
        self.rows += len(vectors)


def _check_kind(info: IndexInfo, corpus: str, kind: str) -> None:
    if kind != info.kind:
        what = {"text": "texts", "image": "images"}
        raise InputError(f"{corpus} holds {what[kind]}, and the index is of {what[info.kind]}")


def _check_vectors(info: IndexInfo, corpus: str, vectors: VectorFolder) -> None:
    record = vectors.record
    if (record.model_sha256, record.normalized) != (info.model_sha256, info.normalized):
        raise InputError(
            f"the vectors in {corpus} are of another model than the index's ({record.model}, {info.model})",
            hint="encode with the index's model",
        )


def _encoding(encode: Any, items: Iterator[tuple[str, Any]], ids: list[str]) -> Iterator[np.ndarray]:
    for names, vectors in encoded(encode, items):
        ids += names
        yield vectors


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise OutputError(f"can't write to {folder}: {e.strerror or e}", hint="make it writable, or make room") from e


@contextmanager
def _changed(folder: Path, info: IndexInfo, *, documents: bool = True) -> Iterator[tuple[Path, faiss.Index]]:
    """A new folder that will take the index's place, with its documents (if asked for), and the index in memory."""
    with files.atomic_folder(folder, force=True) as partial:
        for name in (*((DOCUMENTS, OFFSETS) if documents else ()), *({LISTS} & info.files.keys())):
            shutil.copyfile(folder / name, partial / name)
        shutil.copyfile(folder / FAISS_INDEX, partial / FAISS_INDEX)
        try:
            with silent_faiss():
                index = faiss.read_index(str(partial / FAISS_INDEX), faiss.IO_FLAG_ONDISK_SAME_DIR)
        except (RuntimeError, MemoryError) as e:
            raise DataError(f"{folder / FAISS_INDEX} is damaged", hint="build the index again") from e
        yield partial, index


def _finish(partial: Path, index: faiss.Index, info: IndexInfo, count: int, dead: np.ndarray) -> IndexInfo:
    """Writes index.faiss and index.json."""
    faiss.write_index(index, str(partial / FAISS_INDEX))
    del index
    names = (DOCUMENTS, FAISS_INDEX, OFFSETS, TRUTH, *({LISTS} & info.files.keys()))
    stored = {name: stored_file(partial / name) for name in names}
    info = _with_dead(partial, replace(info, count=count, files=stored, deleted=0), dead)
    write_info(partial, info)
    return info


def _with_dead(folder: Path, info: IndexInfo, dead: np.ndarray) -> IndexInfo:
    """The record with other dead rows, which are written."""
    kept = {name: file for name, file in info.files.items() if name != info.deleted_file}
    info = replace(info, deleted=len(dead), files=kept)
    if info.deleted_file is None:
        return info
    with files.atomic_file(folder / info.deleted_file, force=True) as partial:
        dead.astype("<i8").tofile(partial)
    return replace(info, files={**kept, info.deleted_file: stored_file(folder / info.deleted_file)})


def _drop(index: faiss.Index, keep: np.ndarray) -> None:
    """Takes the rows that are not kept out of an index, and numbers the others anew.

    Raises:
        RuntimeError: FAISS can't, with this kind.
    """
    gone: Any = np.flatnonzero(~keep)  # FAISS's types know its selectors only
    *wrappers, inner = levels(index)
    for level in wrappers:
        if isinstance(level, faiss.IndexRefine):
            faiss.downcast_index(level.refine_index).remove_ids(gone)
    if isinstance(inner, faiss.IndexHNSW):
        stored = inner.reconstruct_n(0, inner.ntotal)[keep]
        inner.reset()
        inner.add(stored)
    else:
        inner.remove_ids(gone)
    if isinstance(inner, faiss.IndexIVF):  # which keeps the rows' numbers
        new = np.cumsum(keep) - 1
        lists = faiss.downcast_InvertedLists(inner.invlists)  # type: ignore[arg-type]
        for number in range(inner.nlist):
            if size := lists.list_size(number):
                ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
                ids[:] = new[ids]
    for level in (*wrappers, inner):
        level.ntotal = int(keep.sum())
