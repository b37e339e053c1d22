"""Keeps the output of C++ and Rust libraries off stdout, where only results belong.

Such libraries write to file descriptor 1 directly: FAISS about files of lists, the tokenizers library about unknown
options. While such a library reads a file, descriptor 1 is redirected.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["library_output"]


@contextmanager
def library_output(*, to_stderr: bool) -> Iterator[None]:
    """Redirects what is written to file descriptor 1 (stdout) while the body runs.

    Args:
        to_stderr: True sends the output to descriptor 2 (stderr); False drops it.
    """
    flush = ctypes.CDLL(None).fflush
    with suppress(AttributeError, OSError, ValueError):  # stdout is missing, or its reader has ended
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
