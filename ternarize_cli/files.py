"""Outputs that are either whole or absent.

Work goes into a hidden sibling `.NAME.partial`, is synced to disk and renamed. Killed at any moment, nothing
half-written stands under the final name, and an output that was there before is still there. Where `--force` replaces
a folder, the old and the new one change places in one system call (Linux), so that there is no moment without either.
A lock on the partial folder keeps two runs from writing the same output; the system drops it with the process.
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ternarize_cli.errors import InputError, OutputError, OutputExistsError

__all__ = ["atomic_file", "atomic_folder", "check_output", "content_hash", "partial_path", "sha256"]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def partial_path(output: Path) -> Path:
    """Where work towards `output` is done: `.NAME.partial` beside it."""
    return output.parent / f".{output.name}.partial"


def check_output(output: Path, *, force: bool) -> None:
    """Refuses an output that can't be written, before any work is done.

    Raises:
        OutputExistsError: it exists and `force` is off, or it is the working folder or a root.
        OutputError: its parent is missing or not writable.
    """
    resolved = output.resolve()
    if resolved == Path.cwd() or resolved == Path(resolved.anchor) or resolved in Path.cwd().parents:
        raise OutputExistsError(f"{output} is the working folder or holds it; it can't be the output", hint="-o NAME")
    if (output.exists() or output.is_symlink()) and not force:
        raise OutputExistsError(f"{output} exists already", hint="--force replaces it, or name another with -o")
    parent = output.parent
    if not parent.is_dir():
        raise OutputError(f"can't write {output}: there is no folder {parent}", hint=f"mkdir -p {parent}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"can't write {output}: no permission in {parent}", hint="name a writable place with -o")


@contextmanager
def atomic_folder(output: Path, *, force: bool = False, resume: bool = False) -> Iterator[Path]:
    """Yields an empty partial folder; when the body ends well it becomes `output`, otherwise it is removed.

    Args:
        output: the final folder.
        force: replace an existing one.
        resume: keep what an earlier, killed run left in the partial folder, and keep it again if this one fails.

    Raises:
        OutputExistsError, OutputError: as `check_output`; also when another process writes the same output, or when
            the disk is full (the old output is then still in place).
    """
    check_output(output, force=force)
    partial = partial_path(output)
    with _reporting_disk(output):
        partial.mkdir(exist_ok=True)
        lock = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise OutputError(f"another process is writing {output}", hint="wait for it, or name another output") from e
        if not resume:
            _empty(partial)
        try:
            with _reporting_disk(output):
                yield partial
                _sync(partial)
                check_output(output, force=force)
                _put_in_place(partial, output)
        except BaseException:
            if not resume:
                shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(lock)


@contextmanager
def atomic_file(output: Path, *, force: bool = False) -> Iterator[Path]:
    """Yields the path of a partial file to write; when the body ends well it becomes `output`.

    Raises:
        OutputExistsError, OutputError: as `atomic_folder`.
    """
    check_output(output, force=force)
    if output.is_dir():
        raise InputError(f"{output} is a folder; a file is written there", hint="name a file with -o")
    partial = partial_path(output)
    try:
        with _reporting_disk(output):
            yield partial
            _sync(partial)
            check_output(output, force=force)
            partial.replace(output)
            _sync(output.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _reporting_disk(output: Path) -> Iterator[None]:
    """Names the output in errors that the disk is to blame for."""
    try:
        yield
    except Exception as e:
        full = isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT)
        # safetensors reports a failed write as its own error class with the system's text in it.
        full = full or "No space left on device" in str(e)
        if full:
            raise OutputError(
                f"the disk is full: {output} was not written", hint="free some space or name another place with -o"
            ) from e
        if isinstance(e, PermissionError | IsADirectoryError) or (isinstance(e, OSError) and e.errno == errno.EROFS):
            raise OutputError(f"can't write {output}: {e.strerror}", hint="name a writable place with -o") from e
        raise


def _put_in_place(partial: Path, output: Path) -> None:
    if not (output.exists() or output.is_symlink()):
        partial.rename(output)
    elif output.is_dir() and not output.is_symlink() and _exchange(partial, output):
        shutil.rmtree(partial)
    else:
        old = output.parent / f".{output.name}.old"
        _remove(old)
        output.rename(old)
        partial.rename(output)
        _remove(old)
    _sync(output.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two names in one step; False where the system or file system has no such call."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    return renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        _remove(entry)


def _sync(path: Path) -> None:
    """Flushes a file, or a folder with everything in it, to disk."""
    targets = [path, *path.rglob("*")] if path.is_dir() else [path]
    for target in targets:
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(path: Path) -> str:
    """The hex digest of one file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def content_hash(folder: Path) -> str:
    """A digest of everything in a model folder that decides its vectors: weights, configs, tokenizer.

    READMEs, images and hidden files don't count, so editing a model card keeps the hash. Computed as the sha256 over
    `relative/path NUL sha256 newline` in sorted order; 64 hex digits.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and _counts(p.relative_to(folder))):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256(path)}\n".encode())
    return digest.hexdigest()


def _counts(relative: Path) -> bool:
    return relative.suffix in (".safetensors", ".bin", ".json", ".txt", ".model") and not any(
        part.startswith(".") for part in relative.parts
    )
