"""Turns errors of Arrow into errors that name the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ternarize_cli.errors import DataError, reason

__all__ = ["reading_parquet"]


@contextmanager
def reading_parquet(path: Path) -> Iterator[None]:
    """Turns any error that a damaged Parquet file raises in Arrow, while the body reads it, into a DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as e:  # a damaged file, or a value without a Python type, can raise any error
        raise DataError(f"{path} can't be read as Parquet: {reason(e)}", hint="fetch the file again") from e
