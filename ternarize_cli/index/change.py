"""Deletes documents of an index, and makes what was deleted go away; what all changes share (`add` is the other).

Deleting writes down which rows are dead (`format`: deleted-N.bin), whatever kind the index is: searches leave them out,
and the vectors stay where they are, since FAISS can't take a node out of an HNSW graph and would renumber the rows of
others. Compacting takes them out: rows of a list or an array are dropped as they are, without encoding or quantising
again; a graph is built anew from its vectors.

Adding and compacting write a new folder beside the index and change its place with it in one step, so that a search
that runs, or a kill, sees the index before or after.
"""

import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from ternarize_cli.data.corpora import Skipped
from ternarize_cli.encoders.loading import checked_threads
from ternarize_cli.errors import DataError, InputError, OutputError
from ternarize_cli.index.documents import read_documents, rows_of, write_documents
from ternarize_cli.index.faiss_file import read_faiss, trust
from ternarize_cli.index.fill import levels
from ternarize_cli.index.format import (
    DELETED,
    DOCUMENTS,
    FAISS_INDEX,
    LISTS,
    OFFSETS,
    TRUTH,
    IndexInfo,
    check_files,
    read_deleted,
    read_info,
    stored_file,
    write_info,
)
from ternarize_cli.index.truth import Truth, read_truth
from ternarize_cli.storage import files
from ternarize_cli.storage.workplace import discard, recover

__all__ = [
    "ChangeReport",
    "changed_folder",
    "compact_index",
    "delete_documents",
    "finish",
    "for_change",
    "shown_ids",
]

_SHOWN = 3
_DEAD_WORK = re.compile(r"\.(deleted-\d+\.bin|index\.json)\.partial")


@dataclass(frozen=True)
class ChangeReport:
    """What a change did.

    Attributes:
        info: the index's record afterwards.
        added, deleted: documents; of those added, replaced had an id that was there.
        missing: ids to delete that the index does not have.
        skipped: what of the corpus was left out.
        truncation: as `TextEncoder` says it.
    """

    info: IndexInfo
    added: int = 0
    deleted: int = 0
    replaced: int = 0
    missing: int = 0
    skipped: Skipped | None = None
    truncation: str | None = None


def delete_documents(folder: Path, ids: Collection[str], *, missing_ok: bool = False) -> ChangeReport:
    """Marks documents as deleted: searches no longer find them.

    Args:
        folder: the index.
        ids: of the documents.
        missing_ok: whether there may be ids that the index does not have.

    Raises:
        DataError: an id is not there; then nothing is deleted.
        OutputError: the folder can't be written, or another process changes it.
    """
    with for_change(folder) as info:
        check_files(folder, info, {DOCUMENTS, info.deleted_file or DOCUMENTS})  # a deletion gives rows a new digest
        dead = read_deleted(folder, info)
        found = rows_of(folder, set(ids), dead)
        missing = [identity for identity in dict.fromkeys(ids) if identity not in found]
        if missing and not missing_ok:
            raise DataError(
                f"{folder} has no documents {shown_ids(missing)}; nothing was deleted", hint="--missing-ok skips them"
            )
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
        OutputError: another process changes it.
        TernarizeError: as `files.atomic_folder`.
    """
    if threads is not None:
        faiss.omp_set_num_threads(checked_threads(threads))
    with for_change(folder) as info:
        dead = read_deleted(folder, info)
        if not len(dead):
            return ChangeReport(info)
        if not info.live:
            raise InputError(f"all documents of {folder} are deleted", hint="remove the folder")
        if LISTS in info.files:
            raise InputError(
                f"the lists of {folder} are on disk, where FAISS can't shorten them", hint="build it again"
            )
        with changed_folder(folder, info, documents=False) as (partial, index):
            changed = _compacted(folder, partial, index, info, dead)
    return ChangeReport(changed, deleted=len(dead))


def _compacted(folder: Path, partial: Path, index: faiss.Index, info: IndexInfo, dead: np.ndarray) -> IndexInfo:
    keep = np.ones(info.count, bool)
    keep[dead] = False
    try:
        _drop(index, keep)
    except RuntimeError as e:
        raise InputError(
            f"FAISS takes no vectors out of an index {info.factory!r}", hint="build the index again"
        ) from e
    live = ((identity, text) for row, (identity, text) in enumerate(read_documents(folder)) if keep[row])
    for _ in write_documents(live, partial):
        pass
    truth = read_truth(folder / TRUTH, count=info.count, dim=info.dim).without(dead)
    new = np.cumsum(keep) - 1
    own = np.where(truth.own >= 0, new[truth.own], -1)
    Truth(truth.queries, own, new[truth.neighbours], truth.scores).write(partial / TRUTH)
    return finish(partial, index, info, info.live, dead[:0])


def shown_ids(ids: list[str]) -> str:
    """The first few ids, for messages."""
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(map(repr, ids[:_SHOWN])) + more


@contextmanager
def for_change(folder: Path) -> Iterator[IndexInfo]:
    """The record of an index that no other process changes meanwhile; what a killed change has left is removed."""
    recover(folder)
    read_info(folder)
    with files.locked_folder(folder):
        info = read_info(folder)
        _clear(folder, info)
        yield info


def _clear(folder: Path, info: IndexInfo) -> None:
    """Removes what killed deletions have left in an index: files of dead rows that its record does not name."""
    for path in folder.iterdir():
        if DELETED.fullmatch(path.name) and path.name != info.deleted_file:
            path.unlink(missing_ok=True)
        elif found := _DEAD_WORK.fullmatch(path.name):
            discard(folder / found[1])


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise OutputError(f"can't write to {folder}: {e.strerror or e}", hint="make it writable, or make room") from e


@contextmanager
def changed_folder(folder: Path, info: IndexInfo, *, documents: bool = True) -> Iterator[tuple[Path, faiss.Index]]:
    """A new folder that will take the index's place, with its documents (if asked for), and the index in memory.

    What is copied gets a new digest, so it is compared with the old one before.
    """
    check_files(folder, info)
    with files.atomic_folder(folder, force=True) as partial:
        for name in (*((DOCUMENTS, OFFSETS) if documents else ()), *({LISTS} & info.files.keys())):
            shutil.copyfile(folder / name, partial / name)
        shutil.copyfile(folder / FAISS_INDEX, partial / FAISS_INDEX)
        lists = partial / LISTS if LISTS in info.files else None
        yield partial, read_faiss(partial / FAISS_INDEX, info.faiss_digests, lists, writable=True)


def finish(partial: Path, index: faiss.Index, info: IndexInfo, count: int, dead: np.ndarray) -> IndexInfo:
    """Writes index.faiss and index.json."""
    faiss.write_index(index, str(partial / FAISS_INDEX))
    del index
    names = (DOCUMENTS, FAISS_INDEX, OFFSETS, TRUTH, *({LISTS} & info.files.keys()))
    stored = {name: stored_file(partial / name) for name in names}
    info = _with_dead(partial, replace(info, count=count, files=stored, deleted=0), dead)
    trust(info.faiss_digests, partial / FAISS_INDEX, partial / LISTS if LISTS in stored else None)
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
