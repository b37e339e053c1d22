"""Makes documents of records, which are objects of JSON or rows of a table, and chooses the column of their texts.

A record of JSON has its text in the field `text`. Of a table, the names and types of the columns decide, so that no
choice depends on how the first rows happen to look: `text`, or else the only column of texts that has a usual name, or
else the only column of texts. If that leaves several columns, the user has to name one: FILE:COLUMN.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ternarize_cli.errors import DataError, shown

__all__ = ["PAIRED", "Document", "Wanted", "document_of", "documents_of", "text_column"]

PAIRED = (
    *("anchor", "query", "question", "sentence", "sentence1", "sentence2", "premise", "hypothesis"),
    *("positive", "pos", "negative", "neg", "hard_negative", "answer", "passage", "document", "context"),
)
"""Names of columns and fields that hold the texts of pairs and triples in training sets."""
_USUAL = {"text", "texts", "sentence", "content", "document", "passage", "body"}
_IDS = ("_id", "id")
_SHOWN = 60


class Document(NamedTuple):
    """A text, and the id that names it in results."""

    id: str
    text: str


@dataclass(frozen=True)
class Wanted:
    """What is read of each record.

    Attributes:
        column: the name of the field or column of the text.
        also: fields that are read if there is no `column`; each of their texts is a document of its own.
        prefix: text in front of ids that are numbers of lines or rows.
        nulls: whether records whose text is null are passed over.
        ids: whether a record may not have an id that is null, NaN or empty.
    """

    column: str = "text"
    also: tuple[str, ...] = ()
    prefix: str = ""
    nulls: bool = False
    ids: bool = False


def text_column(texts: Sequence[str], columns: Sequence[str], where: str) -> str:
    """Chooses the column of texts of a table by its name.

    Args:
        texts: names of the columns whose type is text.
        columns: names of all columns.
        where: the name of the table in messages.

    Raises:
        DataError: there is no column of texts, `text` is of another type, or none of several columns has a usual name.
    """
    listed = ", ".join(name[:_SHOWN] for name in columns[:12]) or "none"
    named = "text" if "text" in columns else next((name for name in columns if name.lower() == "text"), None)
    if named is not None and named in texts:
        return named
    if named is not None:
        raise DataError(
            f"{where}: the column {shown(named)} does not hold texts, by its type",
            hint=f"name another after the file, as in FILE:COLUMN; columns: {listed}",
        )
    candidates = [name for name in texts if name.lower() not in _IDS]
    if not candidates:
        raise DataError(f"{where} has no column of texts; columns: {listed}", hint="name the column `text`")
    usual = [name for name in candidates if name.lower() in _USUAL]
    candidates = [name for name in candidates if name.lower() != "title"] or candidates
    for found in (usual, candidates):
        if len(found) == 1:
            return found[0]
    raise DataError(
        f"{where} has several columns that may be the text, and none is called `text`: {', '.join(candidates)[:400]}",
        hint=f"name one after the file, as in {where.split(',')[0][-80:]}:{candidates[0][:_SHOWN]}",
    )


def documents_of(record: Any, where: str, number: str, wanted: Wanted) -> Iterator[Document]:
    """Makes the documents of a record: one of its text, or one of each field in `wanted.also` if it has no text.

    Args:
        record: a text, or a dict with a text and perhaps `_id` or `id` and `title`, which goes before the text.
        where: file and line in messages.
        number: the id, without prefix, of a record that has none.
        wanted: what is read of it.

    Raises:
        DataError: the record is no text and no dict, its text or title is no string, its id is a list or dict, or
            missing where `wanted.ids` asks for it, or a string can't be written as UTF-8.
    """
    number = wanted.prefix + number
    if isinstance(record, str):
        yield document_of(record, where, number)
        return
    text = record.get(wanted.column) if isinstance(record, dict) else None
    if text is None and isinstance(record, dict) and (others := list(_strings(map(record.get, wanted.also)))):
        for other in others:
            _check_encodable(other, where)
            yield Document(number, other)
        return
    if text is None and wanted.nulls and wanted.column in record:
        return
    if not isinstance(text, str):
        raise _no_text(record, text, where, wanted)
    title = (record.get("title") if wanted.column != "title" else None) or ""
    if not isinstance(title, str):
        raise DataError(f"{where}: `title` is {_short(_json(title))}, not a string")
    identity = _identity(record, where, required=wanted.ids)
    joined = f"{title} {text}".strip()
    name = number if identity is None else str(identity)
    _check_encodable(name + joined, where, shown=joined)
    yield Document(name, joined)


def document_of(text: str, where: str, number: str) -> Document:
    """Makes the document of a text that has no fields, as most texts of a corpus of millions.

    Raises:
        DataError: the text can't be written as UTF-8.
    """
    text = text.strip()
    if not (text.isascii() and number.isascii()):
        _check_encodable(number + text, where, shown=text)
    return Document(number, text)


def _identity(record: dict[str, Any], where: str, *, required: bool) -> Any:
    """Reads the id of a record; None if it has no field for one, or none in the field and none is `required`."""
    given = [record[name] for name in _IDS if name in record]
    found = next((value for value in given if value not in (None, "") and value == value), None)
    if isinstance(found, dict | list | bool):
        raise DataError(f"{where}: the id is {_short(_json(found))}, not a string or a number")
    if found is None and given and required:
        what = "null" if given[0] is None else "empty" if given[0] == "" else "NaN"
        raise DataError(f"{where}: the id is {what}", hint="give each row an id, or none: then it is the row's number")
    return found


def _no_text(record: Any, text: Any, where: str, wanted: Wanted) -> DataError:
    """Says what a record holds in the place of its text."""
    hint = 'a line looks like {"_id": "1", "text": "…"}; --skip-bad leaves such rows out where a command has it'
    if not isinstance(record, dict) or wanted.column not in record:
        if isinstance(record, dict) and record:
            names = ", ".join(str(name)[:_SHOWN] for name in list(record)[:12])
            hint = f"fields: {names}; name that of the text after the file, as in FILE:FIELD"
        return DataError(f"{where}: no `{wanted.column[:_SHOWN]}` field: {_short(_json(record))}", hint=hint)
    what = "null" if text is None else f"{_short(_json(text))}, not a string"
    return DataError(f"{where}: `{wanted.column[:_SHOWN]}` is {what}: {_short(_json(record))}", hint=hint)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _strings(values: Iterable[object]) -> Iterator[str]:
    """Yields the strings that are not blank, and those inside lists."""
    for value in values:
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text.strip():
                yield text.strip()


def _check_encodable(text: str, where: str, shown: str | None = None) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as e:
        shown = (text if shown is None else shown)[e.start :]
        raise DataError(f"{where}: half of a surrogate pair in the text: {_short(ascii(shown))}") from e


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
