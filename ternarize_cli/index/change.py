"""Deletes documents from an index, and compacts it; also holds what `add` and these changes share.

Deleting only writes down which rows are deleted (`format`: deleted-N.bin), whatever kind the index is. Searches leave
these rows out, and their vectors stay, because FAISS can't remove a node from an HNSW graph and would renumber the rows
of other kinds. Compacting removes the vectors: rows of a list or an array are dropped, without encoding or quantising
the others again; a graph is built anew from its vectors.

Adding and compacting write a new folder beside the index and swap the two in one step. So a running search, or a kill,
finds the index as it was before or as it is after, and nothing between. What else lies in the folder is copied.
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
    INFO,
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
_OWN = (DOCUMENTS, FAISS_INDEX, INFO, LISTS, OFFSETS, TRUTH)
_DEAD_WORK = re.compile(r"\.(deleted-\d+\.bin|index\.json)\.partial")


@dataclass(frozen=True)
class ChangeReport:
    """What a change did to an index.

    Attributes:
        info: the index's record afterwards.
        added, deleted: number of documents added and deleted.
        replaced: number of added documents whose id the index had already.
        missing: ids to delete that the index does not have.
        skipped: rows of the corpus that could not be read.
        truncation: a sentence about texts that were cut (`TextEncoder.truncation`); None if none was.
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
        folder: the folder of the index.
        ids: ids of the documents to delete.
        missing_ok: pass over ids that the index does not have.

    Raises:
        DataError: the index lacks one of `ids`; then nothing is deleted.
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
    """Removes deleted documents from the files of an index; the other vectors stay as they are stored.

    Args:
        folder: the folder of the index.
        threads: CPU threads for building a graph anew; None leaves the choice to FAISS.

    Raises:
        InputError: FAISS can't remove vectors from an index of this kind, or all documents are deleted.
        OutputError: another process changes the index.
        TernarizeError: the new folder can't be written (`files.atomic_folder`).
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
    """Names the first few ids for a message, and counts the rest."""
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(map(repr, ids[:_SHOWN])) + more


@contextmanager
def for_change(folder: Path) -> Iterator[IndexInfo]:
    """Locks an index for a change, removes what a killed change has left, and yields its record."""
    recover(folder)
    read_info(folder)
    with files.locked_folder(folder):
        info = read_info(folder)
        _clear(folder, info)
        yield info


def _clear(folder: Path, info: IndexInfo) -> None:
    """Removes files of deleted rows that the record does not name, which killed deletions have left."""
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
    """Yields a new folder that will replace the index, and the FAISS index in memory.

    What lies in the old folder and is not the index's own is copied at the end. Copied files of the index get new
    digests, so they are compared with their old digests first.

    Args:
        folder: the folder of the index.
        info: its record.
        documents: copy the documents into the new folder.
    """
    check_files(folder, info)
    with files.atomic_folder(folder, force=True) as partial:
        for name in (*((DOCUMENTS, OFFSETS) if documents else ()), *({LISTS} & info.files.keys())):
            shutil.copyfile(folder / name, partial / name)
        shutil.copyfile(folder / FAISS_INDEX, partial / FAISS_INDEX)
        lists = partial / LISTS if LISTS in info.files else None
        yield partial, read_faiss(partial / FAISS_INDEX, info.faiss_digests, lists, writable=True)
        _carry_over(folder, partial)


def _carry_over(folder: Path, new: Path) -> None:
    """Copies what is not the index's own, such as a model or notes, from the folder of an index into the new folder."""
    for path in folder.iterdir():
        if path.name in _OWN or DELETED.fullmatch(path.name) or _DEAD_WORK.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True)
        else:
            shutil.copy2(path, new / path.name, follow_symlinks=False)


def finish(partial: Path, index: faiss.Index, info: IndexInfo, count: int, dead: np.ndarray) -> IndexInfo:
    """Writes index.faiss and index.json of a changed index; returns the new record."""
    faiss.write_index(index, str(partial / FAISS_INDEX))
    del index
    names = (DOCUMENTS, FAISS_INDEX, OFFSETS, TRUTH, *({LISTS} & info.files.keys()))
    stored = {name: stored_file(partial / name) for name in names}
    info = _with_dead(partial, replace(info, count=count, files=stored, deleted=0), dead)
    trust(info.faiss_digests, partial / FAISS_INDEX, partial / LISTS if LISTS in stored else None)
    write_info(partial, info)
    return info


def _with_dead(folder: Path, info: IndexInfo, dead: np.ndarray) -> IndexInfo:
    """Writes the numbers of deleted rows, and returns the record that names their file."""
    kept = {name: file for name, file in info.files.items() if name != info.deleted_file}
    info = replace(info, deleted=len(dead), files=kept)
    if info.deleted_file is None:
        return info
    with files.atomic_file(folder / info.deleted_file, force=True) as partial:
        dead.astype("<i8").tofile(partial)
    return replace(info, files={**kept, info.deleted_file: stored_file(folder / info.deleted_file)})


def _drop(index: faiss.Index, keep: np.ndarray) -> None:
    """Removes the rows where `keep` is false from an index, and renumbers the others.

    Raises:
        RuntimeError: FAISS can't remove rows from this kind of index.
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
    if isinstance(inner, faiss.IndexIVF):  # an IVF index keeps the old row numbers
        new = np.cumsum(keep) - 1
        lists = faiss.downcast_InvertedLists(inner.invlists)  # type: ignore[arg-type]
        for number in range(inner.nlist):
            if size := lists.list_size(number):
                ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
                ids[:] = new[ids]
    for level in (*wrappers, inner):
        level.ntotal = int(keep.sum())
