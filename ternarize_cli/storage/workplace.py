"""Where work towards an output is done: a folder of ours beside the output, which goes when the work is done.

    .NAME.partial/                  mode 0700; made by us, or empty and ours: anything else is refused, never emptied
        ternarize-partial           says to a human what the folder is, and to us that it is ours; locked while we work
        NAME                        the file or folder that will be the output
        NAME.placed                 which file or folder NAME was before it changed places with the old output
        NAME.old                    the old output, where the two can't change places in one step

A run that is killed leaves the folder. The next one finds by it what is left to do: where the old output was moved away
and the new one not yet in its place, it is put back; what is left of a change of places that was made is removed; and
work that was not finished is removed or taken up, as the run wants. No link is followed and none is kept.
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
"""Flags that open a folder and no link. Windows lacks them, and locks: nothing is opened with them there."""


def holder_path(output: Path) -> Path:
    """The folder beside an output that holds the work towards it: `.NAME.partial`."""
    return output.parent / f".{output.name}.partial"


def partial_path(output: Path) -> Path:
    """Where work towards `output` is done: `.NAME.partial/NAME`."""
    return holder_path(output) / output.name


class Workplace:
    """The folder `.NAME.partial`, held by this process.

    Attributes:
        holder: the folder.
        work: the file or folder in it that will be the output.
        old: where the old output is moved to if it must be.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.holder = holder_path(output)
        self.work = partial_path(output)
        self.old = self.holder / f"{output.name}.old"
        self._placed = self.holder / f"{output.name}.placed"

    def note_placing(self) -> None:
        """Writes down which file or folder the work is, before it changes places with the old output."""
        status = self.work.lstat()
        with suppress(FileNotFoundError):
            self._placed.unlink()
        descriptor = os.open(self._placed, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(f"{status.st_dev} {status.st_ino}")
            stream.flush()
            os.fsync(descriptor)

    def settle(self) -> bool:
        """Ends the change of places that a killed run had begun; whether unfinished work is left after that."""
        if _is_there(self.old) and not _is_there(self.output):
            self.old.rename(self.output)
        remove(self.old)
        if self._was_placed():
            remove(self.work)
        with suppress(FileNotFoundError):
            self._placed.unlink()
        return _is_there(self.work)

    def _was_placed(self) -> bool:
        """Whether the output is what was worked on before: then what is in its place here is the old one."""
        try:
            if not stat.S_ISREG(self._placed.lstat().st_mode):
                return False
            device, number = self._placed.read_text().split()
            status = self.output.lstat()
        except (OSError, ValueError):
            return False
        return (device, number) == (str(status.st_dev), str(status.st_ino))

    def check_work(self) -> None:
        """Checks that what an earlier run left consists of files and folders of ours, before it is taken up.

        Raises:
            InputError: there is a link, a file with other names, a device, or something of another user in it.
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
        """Removes the folder, as far as it can; the marker goes last, so that a kill leaves it known as ours."""
        with suppress(OSError):
            self.settle()
            remove(self.work)
            marker = self.holder / _marker(self.output)
            if os.listdir(self.holder) == [marker.name]:  # not so where something could not be removed
                marker.unlink()
                self.holder.rmdir()


@contextmanager
def held(output: Path) -> Iterator[Workplace]:
    """Makes the folder, or takes over one that an earlier run left, and keeps other processes out of it.

    What a killed run had begun is settled; its unfinished work is still there.

    Raises:
        InputError: something else is in the place of the folder.
        OutputError: another process works there.
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
    """Settles what a killed run had begun, and removes its folder if no unfinished work is in it.

    Does nothing where there is no such folder, or a process works in it.

    Raises:
        InputError: something else is in the place of the folder.
    """
    _recover(output, unfinished=False)


def discard(output: Path) -> None:
    """As `recover`, and removes unfinished work, too.

    Raises:
        InputError: something else is in the place of the folder.
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
    """Removes a file, a link, or a folder and all in it; a file or link may be missing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _marker(output: Path) -> str:
    return MARKER if output.name != MARKER else f"{MARKER}-of"


def _open(output: Path, *, make: bool) -> int:
    """Opens and locks the marker in the folder; the lock lasts until the descriptor is closed.

    It is on the marker, since network file systems lock files that are open for writing, and no folders.
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
