"""Writes outputs that are either whole or absent.

An output is written in a hidden folder `.NAME.partial` beside its place (`workplace`), synced to disk and renamed. A
run may be killed at any moment: nothing half-written stands under the final name, and an older output is still there.
Where `--force` replaces a folder, old and new change places in one system call (Linux), so that one of them is always
there. A lock keeps two runs from writing the same output; the system releases it when the process ends.
"""

import ctypes
import errno
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ternarize_cli.errors import InputError, OutputError, OutputExistsError, quoted
from ternarize_cli.storage.cache_folder import cache_folder
from ternarize_cli.storage.locks import lock, require_locks
from ternarize_cli.storage.views import origin
from ternarize_cli.storage.workplace import Workplace, held, holder_path, partial_path, recover, remove

__all__ = [
    "atomic_file",
    "atomic_folder",
    "cache_folder",
    "check_apart",
    "check_output",
    "empty",
    "existing",
    "locked_folder",
    "partial_path",
    "remove",
]

_REFUSED = (errno.EACCES, errno.EPERM, errno.EISDIR, errno.EROFS, errno.ENAMETOOLONG, errno.EFBIG)
_SHORT = re.compile(r"\d+ requested and \d+ written|problem writing element \d+ to file *")
"""What numpy says of an array that did not get into a file."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_OURS = ("config.json", "index.json", "documentation.jsonl", "export.json")
"""Files by which --force recognises a folder that it may replace: those of a model, an index, a demo and an export."""
_NEVER_READ = (".npy", ".html", ".htm", ".xml", ".svg", ".pdf")
"""Kinds of files that are written, and that no model and no folder of texts, images or tasks has among what is read."""


def check_output(output: Path, *, force: bool, inputs: Sequence[Path] = (), folder: bool = True) -> None:
    """Checks, before any work is done, that an output can be written and would destroy nothing.

    Removes what a killed run has left beside the output, unless it holds work that --resume could go on from.

    Args:
        output: the file or folder to write.
        force: replace an output that exists; a folder only if it is empty or holds a file that ternarize writes.
        inputs: files and folders that are read. A folder may be none of these, nor contain one or lie in one. A file
            may replace none of these, nor a file of a folder among them, but for kinds that are not read, such as .npy.
        folder: whether the output is a folder.

    Raises:
        OutputExistsError: the output exists and may not be replaced, or is the working directory or contains it.
        InputError: the output is `-`, or overlaps an input, or `.NAME.partial` exists and ternarize did not make it.
        OutputError: the parent folder of the output is missing or not writable.
    """
    if str(output) == "-":
        raise InputError("- is stdout, to which nothing is written here", hint="-o NAME")
    resolved, here = output.resolve(), Path.cwd()
    if resolved == here or resolved in here.parents:
        raise OutputExistsError(f"{output} is the working folder or holds it; it can't be the output", hint="-o NAME")
    if folder:
        check_apart(output, inputs)
    elif output.exists():
        _check_replaced(output, inputs)
    recover(output)
    if output.exists() or output.is_symlink():
        if not force:
            raise OutputExistsError(f"{output} exists already", hint="--force replaces it, or name another output")
        if output.is_dir() != folder:
            kind = "folder" if output.is_dir() else "file"
            raise OutputExistsError(
                f"{output} is a {kind}, which --force does not replace", hint="name another with -o"
            )
        if output.exists() and not output.is_dir() and not output.is_file():
            raise OutputExistsError(
                f"{output} is a device or a pipe, which --force does not replace", hint="name another with -o"
            )
        if folder and any(output.iterdir()) and not any((output / name).is_file() for name in _OURS):
            raise OutputExistsError(
                f"{output} holds other files, and nothing that ternarize wrote; --force does not replace it",
                hint="name another with -o, or remove it yourself",
            )
    parent = output.parent
    if not parent.is_dir():
        raise _no_parent(output)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"can't write {output}: no permission in {parent}", hint="name a writable place with -o")


def check_apart(output: Path, inputs: Sequence[Path]) -> None:
    """Checks that an output is none of the inputs, contains none and lies in none.

    Raises:
        InputError: the output is an input, contains one or lies in one.
    """
    resolved = output.resolve()
    for path in inputs:
        other = origin(path)
        if resolved == other or resolved in other.parents or (path.is_dir() and other in resolved.parents):
            raise InputError(f"the output {output} and the input {path} overlap", hint="name another output with -o")


def existing(*names: str | Path) -> list[Path]:
    """Gives those of some names, of models or of data, that are files or folders here; - is stdin, and is none."""
    return [Path(name) for name in names if str(name) != "-" and os.path.exists(name)]


def _check_replaced(output: Path, inputs: Sequence[Path]) -> None:
    """Checks that a file that would be replaced is no input, nor a file of an input's folder.

    Raises:
        InputError: it is.
    """
    resolved = output.resolve()
    for path in inputs:
        other = origin(path)
        may_be_read = other in resolved.parents and output.suffix.lower() not in _NEVER_READ
        if resolved == other or may_be_read:
            raise InputError(f"the output {output} and the input {path} overlap", hint="name another output with -o")


@contextmanager
def atomic_folder(
    output: Path, *, force: bool = False, resume: bool = False, keep: bool = False, inputs: Sequence[Path] = ()
) -> Iterator[Path]:
    """Yields an empty partial folder, and renames it to `output` after the body; if the body raises, removes it.

    Args:
        output: the final folder.
        force: replace an output that exists, if it is empty or holds a file that ternarize writes.
        resume: start with what an earlier run left in the partial folder, and keep that folder if this run fails.
        keep: keep the partial folder if this run fails, but start with an empty one.
        inputs: files and folders that are read. The output may be none of these, nor contain one or lie in one.

    Raises:
        OutputExistsError: the output exists and may not be replaced, or is the working directory or contains it.
        InputError: the output overlaps an input, or the partial folder holds something that ternarize did not make.
        OutputError: the parent folder is missing or not writable, another process writes this output, or the disk is
            full. An older output is then still in place.
        UnavailableError: this platform has no locks.
    """
    check_output(output, force=force, inputs=inputs)
    with _working(output) as place:
        try:
            if resume and os.path.lexists(place.work):
                place.check_work()
            else:
                remove(place.work)
                place.work.mkdir()
            yield place.work
            _sync_tree(place.work)
            check_output(output, force=force, inputs=inputs)
            _put_in_place(place)
        except BaseException:
            place.settle()
            if not (resume or keep) or not place.work.is_dir() or not any(place.work.iterdir()):
                place.close()
            raise
        place.close()


@contextmanager
def atomic_file(output: Path, *, force: bool = False, inputs: Sequence[Path] = ()) -> Iterator[Path]:
    """Yields the path of an empty partial file, and renames it to `output` after the body; if it raises, removes it.

    Args:
        output: the final file.
        force: replace a file that exists.
        inputs: files and folders that are read, which the file may not replace, as `check_output` says.

    Raises:
        OutputExistsError: the output exists and may not be replaced, or is a folder, a device or a pipe.
        InputError: the output would replace an input, or `.NAME.partial` beside it exists, and ternarize did not make
            it.
        OutputError: the parent folder is missing or not writable, another process writes this output, or the disk is
            full. An older output is then still in place.
        UnavailableError: this platform has no locks.
    """
    check_output(output, force=force, inputs=inputs, folder=False)
    with _working(output) as place:
        try:
            remove(place.work)
            place.work.touch(exist_ok=False)
            yield place.work
            _sync(place.work)
            check_output(output, force=force, inputs=inputs, folder=False)
            place.work.replace(output)
            _sync(output.parent)
        finally:
            place.close()


@contextmanager
def _working(output: Path) -> Iterator[Workplace]:
    """Yields the workplace of an output; errors of the disk in the body are raised as errors about the output."""
    with _reporting_disk(output), held(output) as place:
        yield place


@contextmanager
def locked_folder(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds a lock on an existing folder while the body runs, so that one process at a time changes the folder.

    Args:
        folder: the folder. The folder itself is locked, so no lock file is needed in it.
        wait: wait while another process holds the lock.

    Raises:
        OutputError: another process holds the lock, and `wait` is False.
        UnavailableError: this platform has no locks.
    """
    descriptor = _open_locked(folder, wait=wait)
    try:
        yield
    finally:
        os.close(descriptor)


def _open_locked(folder: Path, *, wait: bool) -> int:
    """Opens and locks a folder; returns the descriptor, which holds the lock until it is closed."""
    require_locks()
    while True:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            lock(descriptor, wait=wait)
            if _is_still(folder, descriptor):
                return descriptor
        except BlockingIOError as e:
            os.close(descriptor)
            raise OutputError(f"another process is changing {folder}", hint="wait for it") from e
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # another process has replaced the folder between our two calls


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _reporting_disk(output: Path) -> Iterator[None]:
    """Names the output in errors that the disk is to blame for, and never the hidden folder where the work is done."""
    try:
        yield
    except Exception as e:
        full = isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT)
        # safetensors reports a failed write as its own error class with the system's text in it, numpy as a number.
        full = full or "No space left on device" in str(e) or _SHORT.fullmatch(str(e)) is not None
        if full:
            raise OutputError(
                f"the disk is full: {output} was not written", hint="free some space or name another place with -o"
            ) from e
        if isinstance(e, OSError) and not output.parent.is_dir():
            raise _no_parent(output) from e
        if isinstance(e, OSError) and (e.errno in _REFUSED or str(e.filename).startswith(str(holder_path(output)))):
            raise OutputError(f"can't write {output}: {e.strerror}", hint="name a writable place with -o") from e
        raise


def _no_parent(output: Path) -> OutputError:
    if output.parent.exists():
        return OutputError(f"can't write {output}: {output.parent} is a file", hint="name another place with -o")
    return OutputError(
        f"can't write {output}: there is no folder {output.parent}", hint=f"mkdir -p {quoted(output.parent)}"
    )


def _put_in_place(place: Workplace) -> None:
    partial, output = place.work, place.output
    if not (output.exists() or output.is_symlink()):
        partial.rename(output)
    else:
        place.note_placing()
        if output.is_symlink() or not _exchange(partial, output):
            output.rename(place.old)
            partial.rename(output)
    _sync(output.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two paths in one system call; returns False where the system or the file system lacks that call."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0)


def empty(folder: Path) -> None:
    """Removes everything in a folder, and keeps the folder."""
    for entry in folder.iterdir():
        remove(entry)


def _sync_tree(folder: Path) -> None:
    """Flushes a folder, and all files and folders in it, to disk."""
    for path in [*folder.rglob("*"), folder]:
        if not path.is_symlink() and (path.is_file() or path.is_dir()):
            _sync(path)


def _sync(path: Path) -> None:
    """Flushes one file, or the entries of one folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
