"""Keeps what C++ and Rust libraries print off stdout, where only results belong.

They write to descriptor 1 past Python: FAISS about files of lists, the tokenizers library about options that it does
not know. While such a library reads a file, the descriptor leads elsewhere.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["library_output"]


@contextmanager
def library_output(*, to_stderr: bool) -> Iterator[None]:
    """Sends what is written to descriptor 1 to stderr, or drops it.

    Args:
        to_stderr: where it goes: to descriptor 2, or nowhere.
    """
    flush = ctypes.CDLL(None).fflush
    with suppress(AttributeError, OSError, ValueError):  # there is no stdout, or nobody reads it
        sys.stdout.flush()
    flush(None)
    try:
        kept = os.dup(1)
    except OSError:  # stdout is closed: nothing can be printed there
        yield
        return
    target = os.open(os.devnull, os.O_WRONLY) if not to_stderr else None
    try:
        os.dup2(2 if target is None else target, 1)
        yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(kept)
        if target is not None:
            os.close(target)
