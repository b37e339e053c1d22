"""Makes and cleans up the folder `.NAME.partial` beside an output NAME, in which the output is written.

    .NAME.partial/                  mode 0700; any folder but an empty one or one with the marker is refused
        ternarize-partial           the marker: tells a human what the folder is, and ternarize that it made it; a
                                    run locks it while it writes
        NAME                        the file or folder that will be the output
        NAME.placed                 device and inode number of NAME, written before NAME and the old output are swapped
        NAME.old                    the old output, where the system can't swap two paths in one call

A run that is killed leaves this folder, and the next run finds out from it what is left to do. If the old output was
moved away and the new one is not yet in its place, the old one is moved back. If the two were swapped, the old one is
removed. Unfinished work is removed, or taken up by a run with --resume. Links are neither followed nor kept.
"""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ternarize_cli.errors import InputError, OutputError, UnavailableError
from ternarize_cli.storage.locks import is_own, lock, require_locks

__all__ = ["MARKER", "Workplace", "discard", "held", "holder_path", "partial_path", "recover", "remove"]

MARKER = "ternarize-partial"
_SENTENCE = """\
This folder is where ternarize works towards the file or folder that it is named after. While no ternarize is running,
it is what a run that was stopped or killed has left. The same command removes it or, with --resume, goes on from it;
you may delete it.
"""
_FOLDER = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC"))
"""Flags with which `os.open` opens a folder but no link. Unused on Windows, which lacks them, as it lacks locks."""


def holder_path(output: Path) -> Path:
    """Returns the folder beside an output in which the output is written: `.NAME.partial`."""
    return output.parent / f".{output.name}.partial"


def partial_path(output: Path) -> Path:
    """Returns the file or folder that is renamed to `output` when it is complete: `.NAME.partial/NAME`."""
    return holder_path(output) / output.name


class Workplace:
    """The folder `.NAME.partial`, while this process holds its lock.

    Attributes:
        output: the final file or folder.
        holder: the folder `.NAME.partial`.
        work: the file or folder in `holder` that will be the output.
        old: the path in `holder` to which the old output is moved where the two can't be swapped in one call.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.holder = holder_path(output)
        self.work = partial_path(output)
        self.old = self.holder / f"{output.name}.old"
        self._placed = self.holder / f"{output.name}.placed"

    def note_placing(self) -> None:
        """Writes the device and inode number of `work` to a file, before `work` and the old output are swapped."""
        status = self.work.lstat()
        with suppress(FileNotFoundError):
            self._placed.unlink()
        descriptor = os.open(self._placed, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(f"{status.st_dev} {status.st_ino}")
            stream.flush()
            os.fsync(descriptor)

    def settle(self) -> bool:
        """Completes or undoes a replacement that a killed run had begun; returns whether unfinished work is left."""
        if _is_there(self.old) and not _is_there(self.output):
            self.old.rename(self.output)
        remove(self.old)
        if self._was_placed():
            remove(self.work)
        with suppress(FileNotFoundError):
            self._placed.unlink()
        return _is_there(self.work)

    def _was_placed(self) -> bool:
        """Returns whether `work` and `output` were swapped, so that `work` is now the old output."""
        try:
            if not stat.S_ISREG(self._placed.lstat().st_mode):
                return False
            device, number = self._placed.read_text().split()
            status = self.output.lstat()
        except (OSError, ValueError):
            return False
        return (device, number) == (str(status.st_dev), str(status.st_ino))

    def check_work(self) -> None:
        """Checks that `work`, as an earlier run left it, consists of regular files and folders of this user.

        Raises:
            InputError: `work` is or holds a symbolic link, a file with several hard links, a device, or something that
                belongs to another user.
        """
        pending = [self.work]
        while pending:
            path = pending.pop()
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                pending += path.iterdir()
            if not is_own(status) or not (
                stat.S_ISDIR(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink == 1)
            ):
                raise InputError(
                    f"{path} is nothing that ternarize made: it is a link, or of another user",
                    hint=f"remove {self.holder}, which starts anew",
                )

    def close(self) -> None:
        """Removes the folder; the marker goes last, so that a later run knows the folder if this one is killed.

        Errors of the file system are ignored: what can't be removed stays.
        """
        with suppress(OSError):
            self.settle()
            remove(self.work)
            marker = self.holder / _marker(self.output)
            if os.listdir(self.holder) == [marker.name]:  # not so where something could not be removed
                marker.unlink()
                self.holder.rmdir()


@contextmanager
def held(output: Path) -> Iterator[Workplace]:
    """Makes the folder `.NAME.partial` or takes over one that a killed run left, and locks it while the body runs.

    A replacement that the killed run had begun is completed or undone. Its unfinished work is still there.

    Raises:
        InputError: `.NAME.partial` exists, and ternarize did not make it.
        OutputError: another process is writing this output.
        UnavailableError: this platform has no locks.
        OSError: the folder can't be made.
    """
    require_locks()
    try:
        descriptor = _open(output, make=True)
        try:
            place = Workplace(output)
            place.settle()
            yield place
        finally:
            os.close(descriptor)
    except BaseException:
        with suppress(InputError):  # which is what is raised already
            recover(output)  # a signal may come between any two of our calls
        raise


def recover(output: Path) -> None:
    """Completes or undoes a replacement that a killed run had begun, and removes its folder if no work is left in it.

    Does nothing if there is no folder `.NAME.partial`, or if another process is writing in it.

    Raises:
        InputError: `.NAME.partial` exists, and ternarize did not make it.
    """
    _recover(output, unfinished=False)


def discard(output: Path) -> None:
    """Completes or undoes a replacement that a killed run had begun, and removes its folder and its unfinished work.

    Does nothing if there is no folder `.NAME.partial`, or if another process is writing in it.

    Raises:
        InputError: `.NAME.partial` exists, and ternarize did not make it.
    """
    _recover(output, unfinished=True)


def _recover(output: Path, *, unfinished: bool) -> None:
    try:
        descriptor = _open(output, make=False)
    except (OSError, OutputError, UnavailableError):
        return
    try:
        place = Workplace(output)
        if not place.settle() or unfinished:
            place.close()
    except OSError:
        return
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file, a link, or a folder with everything in it; does nothing if the path does not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _marker(output: Path) -> str:
    return MARKER if output.name != MARKER else f"{MARKER}-of"


def _open(output: Path, *, make: bool) -> int:
    """Opens and locks the marker in the folder `.NAME.partial`; the lock lasts until the descriptor is closed.

    The marker is locked and not the folder, since network file systems lock only files that are open for writing.

    Raises:
        FileNotFoundError: there is no such folder, and `make` is False.
        InputError: `.NAME.partial` exists, and ternarize did not make it.
        OutputError: another process is writing this output.
    """
    holder, marker = holder_path(output), _marker(output)
    while True:
        if make:
            with suppress(FileExistsError):
                holder.mkdir(0o700)
        try:
            folder = os.open(holder, _FOLDER)
        except FileNotFoundError:
            if make:
                continue  # another process has just removed it
            raise
        except OSError as e:
            other = _status(holder)
            if other is not None and (not stat.S_ISDIR(other.st_mode) or not is_own(other)):
                raise _strange(holder) from e
            raise
        try:
            descriptor = _lock_marker(folder, holder, marker, output)
            try:
                if _is_still(holder, folder) and _is_still_in(folder, marker, descriptor):
                    with suppress(OSError):  # a file system without modes
                        os.fchmod(folder, 0o700)
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # another process has removed it between our calls
        except FileNotFoundError:
            continue
        finally:
            os.close(folder)


def _lock_marker(folder: int, holder: Path, marker: str, output: Path) -> int:
    if not is_own(os.fstat(folder)):
        raise _strange(holder)
    try:
        status = os.stat(marker, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        if set(os.listdir(folder)) - {marker}:
            raise _strange(holder) from None
        with suppress(FileExistsError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            new = os.open(marker, flags, 0o600, dir_fd=folder)
            with os.fdopen(new, "w") as stream:
                stream.write(_SENTENCE)
        status = os.stat(marker, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode) or not is_own(status) or status.st_nlink != 1:
        raise _strange(holder)
    descriptor = os.open(marker, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        lock(descriptor)
    except BlockingIOError as e:
        os.close(descriptor)
        raise OutputError(f"another process is writing {output}", hint="wait for it, or name another output") from e
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _strange(holder: Path) -> InputError:
    return InputError(
        f"{holder} is nothing that ternarize made, and it is where the work would be done",
        hint="remove it, or name another output with -o",
    )


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None


def _is_there(path: Path) -> bool:
    return os.path.lexists(path)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _is_still_in(folder: int, name: str, descriptor: int) -> bool:
    return os.path.samestat(os.fstat(descriptor), os.stat(name, dir_fd=folder, follow_symlinks=False))
