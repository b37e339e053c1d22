"""Reads index.faiss safely, even if a stranger wrote it.

FAISS reads a binary format of its own in C++ and does not check its numbers: a wrong number makes a search read memory
outside the index. An index folder may come from anybody, and its digests only show that it is what its author wrote. So

- reading is bounded by the size of the file (with FAISS's limits on allocations and loops), maps files read-only, and
  finds lists only beside the index, where its record names them;
- the index that was read is checked: dimensions from level to level, numbers of rows, the place of each list within its
  file, and row numbers in graphs and lists (`check_structure`);
- a file that this user's ternarize did not write is first read, checked and searched in another process, which may
  crash, hang or run out of memory without harm. A file that passes is remembered in the cache (`trust`), by its sha256
  and by its inode and times of change, so this costs half a second once for each file.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from ternarize_cli.errors import DataError, InputError
from ternarize_cli.index.fill import levels
from ternarize_cli.model_folder.integrity import verifying
from ternarize_cli.storage.bounds import utf8_name
from ternarize_cli.storage.cache_folder import cache_folder, check_own, keep_file
from ternarize_cli.storage.library_output import library_output

__all__ = ["check_name", "check_structure", "read_faiss", "trust"]

_AGAIN = "build the index again"
_SECONDS, _BYTES_A_SECOND = 15, 10 << 20
"""Time limit of the other process: these seconds, and one second more for each of so many bytes."""
_ROOM = 4 << 30
"""Bytes of memory that the other process may take, besides three times the size of the file."""
_LEAST = 1 << 20
_QUERIES, _NEIGHBOURS = 16, 10


def read_faiss(path: Path, digests: tuple[str, ...], lists: Path | None, *, writable: bool = False) -> faiss.Index:
    """Opens the FAISS index in a file. Its vectors stay on disk and are read when a search needs them.

    Args:
        path: the file, whose digest was verified.
        digests: sha256 of the file and, if there is one, of the file of lists.
        lists: the file of lists that the index's record names, beside the index; None if the record names none.
        writable: read the index into memory, so that it can be changed; lists stay in their file and are changed there.

    Raises:
        DataError: the file is damaged, or holds values that no valid index has.
        InputError: the path is not UTF-8.
    """
    check_name(path)
    stamps = _stamps(digests, path, lists)
    trusted = _is_kept(stamps[0 if verifying() else 1])  # digests that were not verified may not be the file's
    if not trusted:
        _try_apart(path, lists)
    index = _read(path, lists, writable=writable)
    if not trusted:
        check_structure(index, path, lists)
    if verifying():
        trust(digests, path, lists)
    return index


def check_name(folder: Path) -> None:
    """Refuses a folder whose path can't be passed to FAISS.

    Raises:
        InputError: the path is not UTF-8.
    """
    try:
        str(folder.absolute()).encode()
    except UnicodeEncodeError as e:
        raise InputError(
            f"FAISS takes only paths in UTF-8, and {utf8_name(folder)} is not UTF-8",
            hint="choose another name for the index",
        ) from e


def trust(digests: tuple[str, ...], path: Path, lists: Path | None) -> None:
    """Remembers that files were written by this user's ternarize, or passed all checks.

    Args:
        digests: the sha256 of each file.
        path, lists: the file of the index and the file of its lists (None if it has none), with these digests.
    """
    with suppress(OSError, InputError):  # without a cache, the files are checked again the next time
        for stamp in _stamps(digests, path, lists):
            if not _is_kept(stamp):
                keep_file(cache_folder("indexes") / stamp, lambda stream: stream.write(faiss.__version__.encode()))


def _is_kept(stamp: str) -> bool:
    try:
        path = cache_folder("indexes") / stamp
        return check_own(path) and path.read_text(encoding="utf-8") == faiss.__version__
    except (OSError, InputError, ValueError):
        return False


def _stamps(digests: tuple[str, ...], path: Path, lists: Path | None) -> tuple[str, str]:
    """Names two files in the cache: one stands for contents with these digests, one for the files as they are now."""
    states = [one.stat() for one in (path, lists) if one is not None]
    state = repr([(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in states])
    return "-".join(digest[:32] for digest in digests), hashlib.sha256(state.encode()).hexdigest()[:32]


def _read(path: Path, lists: Path | None, *, writable: bool = False) -> faiss.Index:
    """Reads the file, and checks where its lists are before anything reads them."""
    flags = faiss.IO_FLAG_ONDISK_SAME_DIR
    if not writable:
        flags |= faiss.IO_FLAG_READ_ONLY | (0 if lists else faiss.IO_FLAG_MMAP_IFC)
    size = _size(path, lists)
    try:
        with library_output(to_stderr=False), _limits(max(size, _LEAST)):
            index = faiss.read_index(str(path), flags)
    except (RuntimeError, MemoryError) as e:
        raise DataError(f"{path} is damaged: FAISS can't read it", hint=_AGAIN) from e
    _check_place_of_lists(index, path, lists)
    return index


def _size(path: Path, lists: Path | None) -> int:
    return path.stat().st_size + (lists.stat().st_size if lists else 0)


@contextmanager
def _limits(size: int) -> Iterator[None]:
    """Sets FAISS's limits for reading: no vector has more bytes than the file, and no loop more rounds than that."""
    before = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
    faiss.set_deserialization_vector_byte_limit(size)
    faiss.set_deserialization_loop_limit(size)
    try:
        yield
    finally:
        faiss.set_deserialization_vector_byte_limit(before[0])
        faiss.set_deserialization_loop_limit(before[1])


def _check_place_of_lists(index: faiss.Index, path: Path, lists: Path | None) -> None:
    """Checks that lists on disk lie in the file that the record names, and each within that file."""
    for level in levels(index):
        if not isinstance(level, faiss.IndexIVF):
            continue
        inverted = _inverted_lists(level, path)
        if not isinstance(inverted, faiss.OnDiskInvertedLists):
            continue
        if lists is None or Path(inverted.filename).resolve() != lists.resolve():
            raise _damaged(path, f"it keeps lists in {inverted.filename}, which its record does not name")
        size, row = lists.stat().st_size, inverted.code_size + 8
        if inverted.totsize > size or inverted.nlist != level.nlist:
            raise _damaged(path, f"its lists take {inverted.totsize} bytes, and {lists.name} has {size}")
        places: Any = inverted.lists  # FAISS's stubs call it a list
        for number in range(inverted.nlist):
            one = places.at(number)
            if one.size > one.capacity or (one.capacity and one.offset + one.capacity * row > size):
                raise _damaged(path, f"list {number} does not lie within {lists.name}")


def check_structure(index: faiss.Index, path: Path, lists: Path | None) -> None:
    """Checks an index that was read: its levels fit each other, and every row number is valid.

    Args:
        index: the index.
        path: its file, for messages.
        lists: the file of its lists; None if it has none on disk.

    Raises:
        DataError: two levels don't fit each other, or a row number is out of range.
    """
    _check_place_of_lists(index, path, lists)
    count, dim = index.ntotal, index.d
    for level in levels(index):
        if level.ntotal != count or level.d != dim:
            raise _damaged(
                path, f"a level has {level.ntotal} rows of {level.d} dimensions, the one around it {count} of {dim}"
            )
        if isinstance(level, faiss.IndexPreTransform):
            dim = _check_chain(level, path)
        elif isinstance(level, faiss.IndexRefine):
            refine = faiss.downcast_index(level.refine_index)
            if (refine.ntotal, refine.d) != (count, dim):
                raise _damaged(
                    path, f"it refines {count} rows of {dim} dimensions by {refine.ntotal} rows of {refine.d}"
                )
            _check_codes(refine, path)
        _check_codes(level, path)
        if isinstance(level, faiss.IndexIVF):
            _check_lists(level, path)
        graph = getattr(level, "hnsw", None)
        if graph is not None:
            _check_storage(level, path)
            _check_rows(_ints(graph.neighbors), count, path)
            if not -1 <= graph.entry_point < max(count, 1) or graph.levels.size() != count:
                raise _damaged(path, "its graph has an entry point or levels that are not valid")
        if isinstance(level, faiss.IndexNSG):
            _check_storage(level, path)
            _check_nsg(level, path)


def _check_chain(level: Any, path: Path) -> int:
    """Checks that each transform takes the dimensions that the one before it gives; returns the last dimension."""
    width = level.d
    for position in range(level.chain.size()):
        step = faiss.downcast_VectorTransform(level.chain.at(position))
        if step.d_in != width:
            raise _damaged(path, f"a transform takes vectors of {step.d_in} dimensions, and gets {width}")
        matrix = getattr(step, "A", None)
        if isinstance(step, faiss.LinearTransform) and matrix is not None and matrix.size() != step.d_in * step.d_out:
            raise _damaged(path, f"a matrix has {matrix.size()} numbers, not {step.d_in} × {step.d_out}")
        width = step.d_out
    return int(width)


def _check_codes(level: Any, path: Path) -> None:
    if isinstance(level, faiss.IndexFlatCodes) and level.codes.size() != level.ntotal * level.code_size:
        raise _damaged(path, f"{level.ntotal} rows of {level.code_size} bytes do not fit {level.codes.size()} bytes")


def _check_storage(level: Any, path: Path) -> None:
    storage = faiss.downcast_index(level.storage)
    if (storage.ntotal, storage.d) != (level.ntotal, level.d):
        raise _damaged(path, f"its graph is over {level.ntotal} rows, and {storage.ntotal} are stored")
    _check_codes(storage, path)


def _check_lists(level: Any, path: Path) -> None:
    inverted = _inverted_lists(level, path)
    quantizer = faiss.downcast_index(level.quantizer)
    if quantizer.ntotal != level.nlist or quantizer.d != level.d or inverted.nlist != level.nlist:
        raise _damaged(path, f"it has {level.nlist} lists and {quantizer.ntotal} centroids of {quantizer.d} dimensions")
    _check_codes(quantizer, path)
    if hasattr(quantizer, "hnsw"):
        _check_storage(quantizer, path)
        _check_rows(_ints(quantizer.hnsw.neighbors), quantizer.ntotal, path)
    total = 0
    for number in range(level.nlist):
        size = inverted.list_size(number)
        total += size
        if total > level.ntotal:
            break
        if size:
            ids = faiss.rev_swig_ptr(inverted.get_ids(number), size)
            if int(ids.min()) < 0 or int(ids.max()) >= level.ntotal:
                raise _damaged(path, f"list {number} names a row that is out of range")
    if total != level.ntotal:
        raise _damaged(path, f"its lists hold other rows than the {level.ntotal} that it counts")


def _inverted_lists(level: Any, path: Path) -> Any:
    if level.invlists is None:
        raise _damaged(path, "it has no lists")
    return faiss.downcast_InvertedLists(level.invlists)


def _check_nsg(level: Any, path: Path) -> None:
    if not level.is_built:
        return
    graph = level.nsg.get_final_graph()
    if level.ntotal != graph.N or not 0 <= level.nsg.enterpoint < max(level.ntotal, 1):
        raise _damaged(path, f"its graph is over {graph.N} rows, and {level.ntotal} are stored")
    _check_rows(faiss.rev_swig_ptr(graph.data, graph.N * graph.K), level.ntotal, path)


def _ints(vector: Any) -> np.ndarray:
    """Views a FAISS vector as an array, without a copy: int32 `[n]`."""
    size = vector.size()
    return faiss.rev_swig_ptr(vector.data(), size) if size else np.empty(0, np.int32)


def _check_rows(rows: np.ndarray, count: int, path: Path) -> None:
    if len(rows) and (int(rows.min()) < -1 or int(rows.max()) >= count):
        raise _damaged(path, "its graph names a row that is out of range")


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path} is damaged: {why}", hint=_AGAIN)


def _try_apart(path: Path, lists: Path | None) -> None:
    """Reads, checks and searches the file in another process.

    Raises:
        DataError: that process found a fault, crashed, or took too much time or memory.
    """
    command = [sys.executable, "-P", "-m", "ternarize_cli.index.faiss_file", str(path.resolve())]
    command += [str(lists.resolve())] if lists else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    seconds = _SECONDS + _size(path, lists) // _BYTES_A_SECOND
    try:
        ended = subprocess.run(command, capture_output=True, env=environment, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as e:
        raise _damaged(path, f"FAISS did not finish reading it within {seconds} seconds") from e
    if ended.returncode == 2:
        raise _damaged(path, ended.stderr.decode(errors="replace").strip().splitlines()[-1])
    if ended.returncode != 0:
        raise _damaged(path, "FAISS crashes on it, or needs far more memory than the file has bytes")


def _apart(path: Path, lists: Path | None) -> None:
    """Runs in the other process: reads and checks the file, and searches it with the lists of many clusters."""
    try:
        import resource

        limit = 3 * _size(path, lists) + _ROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):  # this system has no such limit
        pass
    index = _read(path, lists)
    check_structure(index, path, lists)
    queries = np.random.default_rng(0).standard_normal((_QUERIES, index.d)).astype(np.float32)
    _, rows = index.search(queries, min(_NEIGHBOURS, max(index.ntotal, 1)))
    if rows.min(initial=-1) < -1 or rows.max(initial=-1) >= max(index.ntotal, 1):
        raise _damaged(path, "a search finds rows that it does not have")


if __name__ == "__main__":
    _path, *_lists = (Path(argument) for argument in sys.argv[1:])
    try:
        _apart(_path, _lists[0] if _lists else None)
    except DataError as error:
        print(str(error).partition(" is damaged: ")[2] or error, file=sys.stderr)
        sys.exit(2)
