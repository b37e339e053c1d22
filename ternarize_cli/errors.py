"""Every error that ternarize raises on purpose, and the exit code each one ends a command with.

    TernarizeError                   1   the work failed
    ├── InputError                   2   wrong usage or unusable input, which the user can correct
    │   ├── ModelNotFoundError           no such folder, package or hub id
    │   ├── CheckpointError              a model's files are missing, damaged or of a kind that is refused
    │   │   └── FormatError              a ternary checkpoint or packed model breaks its format
    │   ├── DataError                    text, pairs or corpus files that can't be used
    │   ├── OutputExistsError            the output exists already and --force was not given
    │   └── SettingsError                ternarize.toml or an environment variable is wrong
    ├── OutputError                  1   the output can't be written (full disk, no permission)
    ├── GateMissedError              3   a quality gate was missed
    └── UnavailableError             4   an optional dependency or a required device is missing

A message says what happened with which value, in at most 2,000 characters; `hint` says what to do next. Catch
`TernarizeError` for all of them. An interrupt (Ctrl-C) ends a command with 130, SIGTERM with 143 and SIGHUP with 129.
"""

import re
import shlex

__all__ = [
    "CheckpointError",
    "DataError",
    "FormatError",
    "GateMissedError",
    "InputError",
    "ModelNotFoundError",
    "OutputError",
    "OutputExistsError",
    "SettingsError",
    "TernarizeError",
    "UnavailableError",
    "counted",
    "counted_were",
    "is_panic",
    "named",
    "panicked",
    "quoted",
    "reason",
    "shown",
]


_LONGEST = 2000


_PLAIN_NAME = re.compile(r"[\w./-]{1,80}")


class TernarizeError(Exception):
    """Base of all errors raised on purpose. `hint`, if given, says what the user can do next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message if len(message) <= _LONGEST else f"{message[:_LONGEST]}…")
        self.hint = hint


class InputError(TernarizeError):
    """Wrong usage or unusable input."""

    exit_code = 2


class ModelNotFoundError(InputError):
    """MODEL names no folder, installed package or reachable hub id."""


class CheckpointError(InputError):
    """A model folder is incomplete, damaged, or of a kind that is refused."""


class FormatError(CheckpointError):
    """A ternary checkpoint or packed model breaks the format; the message names the tensor."""


class DataError(InputError):
    """A text, pairs, corpus or query file can't be used; the message names file and line."""


class OutputExistsError(InputError):
    """The output exists and may not be replaced without --force."""


class SettingsError(InputError):
    """A settings file or environment variable is wrong."""


class OutputError(TernarizeError):
    """The output can't be written."""


class GateMissedError(TernarizeError):
    """A quality gate such as --min-retention was missed."""

    exit_code = 3


class UnavailableError(TernarizeError):
    """An optional dependency or a required device is missing."""

    exit_code = 4


def shown(value: object, limit: int = 80) -> str:
    """Formats a value for messages: Python's `repr`, cut after `limit` characters."""
    text = repr(value[: limit + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= limit + 2 else f"{text[:limit]}…"


def named(name: str) -> str:
    """Formats a key or name from a file for messages: unchanged if it is one short word, else as `shown` does."""
    return name if _PLAIN_NAME.fullmatch(name) else shown(name)


def counted(count: int, noun: str) -> str:
    """Writes a count with its noun, in the plural unless the count is 1: `1 shard`, `1,200 shards`."""
    plural = f"{noun[:-1]}ies" if noun.endswith("ry") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def counted_were(count: int, noun: str) -> str:
    """Writes a count with its noun and verb: `1 text was`, `2 texts were`."""
    return f"{counted(count, noun)} {'was' if count == 1 else 'were'}"


def quoted(path: object) -> str:
    """Formats a path or other word for a command in a hint: in quotes if the shell needs them."""
    return shlex.quote(str(path))


def reason(error: BaseException, limit: int = 200) -> str:
    """Gives a library error's message in one line of at most `limit` characters; its type if the message is empty."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def is_panic(error: BaseException) -> bool:
    """Tells whether an error is the panic of a library that is written in Rust, such as tokenizers.

    Such an error is no `Exception`. tokenizers panics, for one, where a pattern of tokenizer.json takes too many steps.
    """
    return type(error).__name__ == "PanicException" and type(error).__module__ == "pyo3_runtime"


def panicked(error: BaseException) -> CheckpointError:
    """Makes the error about the tokenizer of a model whose library panicked."""
    return CheckpointError(
        f"the model's tokenizer fails with a text: {reason(error)}",
        hint="fetch the model's tokenizer.json again: a pattern in it can't be applied to this text",
    )
