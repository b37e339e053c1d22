"""Reads task files: small TOML or JSON files that describe a task.

    type = "pair-classification"     # the only keys that every file has: type and path
    path = "duplicates.parquet"      # relative to this file
    name = "duplicates"              # name in tables and gates; if left out, the name of this file
    sentence1 = "question"           # the other keys depend on the type, and may be left out

    type                   path                          options
    sts                    CSV, TSV, JSONL or Parquet    sentence1, sentence2, score: names of columns
    pair-classification    CSV, TSV, JSONL or Parquet    sentence1, sentence2, label: names of columns
    bitext                 any of these, or a text file  sentence1, sentence2; translations: a file of lines
    classification         label TAB text, or any        label, text; train: a training file
    clustering             label TAB text, or any        label, text
    retrieval              a folder                      split: of qrels, such as "dev"; where: "KEY=VALUE"
    image-classification   labelled images               limit: test images
    zero-shot              labelled images               limit; template: "a photo of a {}"; labels: label → its name

An unknown key or type is refused, and so is a value of a kind that the key does not take, so that a misspelt option is
never ignored.
"""

import difflib
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ternarize_cli.data.lines import check_encodable, lines, readable_file
from ternarize_cli.errors import DataError, reason, shown
from ternarize_cli.storage.bounds import parse_json, read_bytes, user_path

__all__ = ["TaskFile", "read_task_file"]

_COLUMNS = {"sentence1": str, "sentence2": str}
_OPTIONS: dict[str, dict[str, type]] = {
    "sts": {**_COLUMNS, "score": str},
    "pair-classification": {**_COLUMNS, "label": str},
    "bitext": {**_COLUMNS, "translations": Path},
    "classification": {"label": str, "text": str, "train": Path},
    "clustering": {"label": str, "text": str},
    "retrieval": {"split": str, "where": str},
    "image-classification": {"limit": int},
    "zero-shot": {"limit": int, "template": str, "labels": dict},
}
_ALWAYS: dict[str, type] = {"type": str, "name": str, "path": Path}
_MAX_BYTES = 1 << 20
_KINDS = {str: "a text", Path: "a path", int: "a whole number above 0", dict: "a table of texts"}


@dataclass(frozen=True)
class TaskFile:
    """The checked content of a task file.

    Attributes:
        file: the task file.
        type: type of the task; the docstring of this module lists them.
        name: name of the task; None means the name of the task file.
        path: path of the task's data.
        options: keyword arguments for the function that reads the data.
    """

    file: Path
    type: str
    name: str | None
    path: Path
    options: dict[str, Any]


def read_task_file(file: Path) -> TaskFile:
    """Reads and checks a task file.

    Raises:
        DataError: the file is missing, larger than a megabyte, or neither TOML nor JSON; a key or the type is unknown
            or missing; or a value is of the wrong kind. The message names file, line and value.
    """
    file = readable_file(file)
    read_bytes(file, limit=_MAX_BYTES, error=DataError)
    text = "".join(line for _, line in lines(file))
    content = _parse(file, text)
    kind = content.get("type")
    if not isinstance(kind, str) or kind not in _OPTIONS:
        if kind is None:
            raise DataError(f'{file}: there is no "type"', hint=f"one of: {', '.join(_OPTIONS)}")
        raise DataError(
            f"{_where(file, text, 'type')}: there is no task type {shown(kind)}", hint=_near(kind, _OPTIONS)
        )
    known = _ALWAYS | _OPTIONS[kind]
    for key, value in content.items():
        where = _where(file, text, key)
        if key not in known:
            raise DataError(f"{where}: a task of the type {kind} has no {shown(key)}", hint=_near(key, known))
        if not _fits(value, known[key]):
            raise DataError(f"{where}: {key} is {shown(value)}, not {_KINDS[known[key]]}")
    if "path" not in content:
        raise DataError(f'{file}: there is no "path"', hint='path = "the file or folder of the data"')
    name = content.get("name")
    if name is not None and (re.search(r"[/=\\]|\s$|^\s", name) or not name.isprintable()):
        raise DataError(f"{_where(file, text, 'name')}: the name {shown(name)} can't be one", hint="no /, \\ or =")
    values = {k: file.parent / user_path(v) if known[k] is Path else v for k, v in content.items()}
    return TaskFile(file, kind, name, values["path"], {k: v for k, v in values.items() if k not in _ALWAYS})


def _parse(file: Path, text: str) -> dict[str, Any]:
    if file.suffix.lower() == ".toml":
        try:
            return tomllib.loads(text)
        except (ValueError, RecursionError) as e:  # no TOML, a number of thousands of digits, or lists in lists
            raise DataError(f"{file} is not valid TOML: {reason(e)}") from e
    if file.suffix.lower() != ".json":
        raise DataError(
            f"{file} is neither .toml nor .json", hint='type = "sts" and path = "pairs.csv" in a .toml file'
        )
    content = parse_json(text, str(file), error=DataError, hint='{"type": "sts", "path": "pairs.csv"}')
    if not isinstance(content, dict):
        raise DataError(f"{file} holds no JSON object", hint='{"type": "sts", "path": "pairs.csv"}')
    check_encodable(content, str(file))
    json.loads(text, object_pairs_hook=lambda pairs: _once(file, text, pairs))
    return content


def _once(file: Path, text: str, pairs: list[tuple[str, Any]]) -> None:
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise DataError(f"{_where(file, text, key)}: {shown(key)} is there twice")


def _where(file: Path, text: str, key: str) -> str:
    """Names file and line of a key: the first line that has it as a key of TOML or JSON."""
    pattern = re.compile(rf"""(^|[\s{{,\[])["']?{re.escape(key)}["']?\s*[]=:]""")
    number = next((n for n, line in enumerate(text.split("\n"), start=1) if pattern.search(line)), None)
    return f"{file}, line {number}" if number else str(file)


def _fits(value: object, kind: type) -> bool:
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and value > 0
    if kind is dict:
        return isinstance(value, dict) and all(isinstance(v, str) and v.strip() for v in value.values())
    return isinstance(value, str) and bool(value.strip())


def _near(name: object, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(known)}"
