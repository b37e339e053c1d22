"""Explains exceptions to the user: with a sentence, the next thing to try, and an exit code."""

import errno
import os
import sys
from collections.abc import Iterator
from typing import NamedTuple

from ternarize_cli.errors import InputError, TernarizeError

__all__ = ["Failure", "debugging", "explained"]

_NO_MEMORY_NOW = ("cannot allocate memory", "failed to map segment")  # the system's words, whatever a file asks for
_NO_MEMORY = (
    *_NO_MEMORY_NOW,
    "error return without exception set",  # a library's C code did not check an allocation
    "can't allocate memory",
    "unable to allocate",
    "out of memory",
    "std::bad_alloc",
)
_NO_FILES = "too many open files"
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)


class Failure(NamedTuple):
    """Describes how a command fails.

    Attributes:
        message: what went wrong.
        hint: the next thing to try; None if there is no advice.
        code: the exit code.
    """

    message: str
    hint: str | None
    code: int


def debugging() -> bool:
    """Returns whether errors are shown with a traceback: TERNARIZE_DEBUG is set and not 0."""
    return os.environ.get("TERNARIZE_DEBUG", "") not in ("", "0")


def explained(error: Exception) -> Failure:
    """Makes the message, hint and exit code for an exception of ternarize, of Python or of any library."""
    texts = [f"{type(e).__name__}: {e}".lower() for e in _chain(error)]
    if isinstance(error, TernarizeError):
        if isinstance(error, InputError) and any(words in text for words in _NO_MEMORY_NOW for text in texts[1:]):
            return _no_memory()  # the file that a library could not read is not to blame
        return Failure(str(error), error.hint, error.exit_code)
    if any(_NO_FILES in text for text in texts):
        return Failure(f"too many open files: {_limit()}", "ulimit -n 1024, and run it again", 1)
    if any("outofmemoryerror" in text or "cuda out of memory" in text for text in texts):
        return Failure("the memory of the GPU is full", "use a smaller --batch-size, or --device cpu", 1)
    if any(isinstance(e, MemoryError) for e in _chain(error)) or any(n in t for n in _NO_MEMORY for t in texts):
        return _no_memory()
    if isinstance(error, UnicodeEncodeError):
        return Failure(
            f"{error.object[:200]!a} can't be written: it has characters that {error.encoding} lacks",
            "rename the file so that its name is UTF-8, or set PYTHONUTF8=1",
            1,
        )
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return Failure(f"{error.strerror or error}{where}", _next_thing(error), 1)
    text = " ".join(str(error).split())
    strange = [argument for argument in sys.argv if not _is_utf8(argument)]
    if strange:
        return Failure(
            f"the name {strange[0]!a} is not UTF-8, and a library can't work with it: {text[:100]}",
            "rename the file, or pass a link to it that has a UTF-8 name",
            2,
        )
    return Failure(
        f"unexpected {type(error).__name__}: {text[:300]}",
        "run the command again with TERNARIZE_DEBUG=1, and report the traceback",
        1,
    )


def _no_memory() -> Failure:
    return Failure(
        "there is not enough memory",
        "use a smaller --batch-size, fewer --threads or --calibration-tokens, or a machine with more memory",
        1,
    )


def _next_thing(error: OSError) -> str | None:
    if error.errno == errno.ENOSPC:
        return "free some space or write elsewhere"
    if error.errno in _UNWRITABLE and (".cache" in str(error.filename) or error.filename == os.path.expanduser("~")):
        return "set MTEB_CACHE, HF_HOME and TERNARIZE_CACHE to folders that you can write to"
    return None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an exception, its cause, the cause's cause, and so on."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)


def _limit() -> str:
    if sys.platform == "win32":
        return "the system allows no more"
    import resource

    return f"a process may have {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} here"
