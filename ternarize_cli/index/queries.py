"""Reads queries for an index: texts from arguments and files, or images; and finds those that are documents, too."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ternarize_cli.data.images import read_parts
from ternarize_cli.data.records import Document
from ternarize_cli.data.texts import STDIN, read_lines, read_texts, source_name
from ternarize_cli.errors import DataError, InputError, quoted
from ternarize_cli.storage.bounds import Held, user_path, utf8_name

__all__ = ["own_rows", "read_documents_of", "read_queries"]


def read_documents_of(source: str) -> list[Document]:
    """Reads all texts of a source with their ids.

    Raises:
        DataError: the source can't be read or holds no usable text (see `texts.read_texts`), or the texts don't fit in
            memory.
    """
    found, held = [], Held(source_name(source), DataError)
    for document in read_texts(source):
        held.add(document.text)
        found.append(document)
    return found


def own_rows(queries: Sequence[Document], documents: Iterable[tuple[str, str]]) -> np.ndarray:
    """Finds queries that are documents, too: int64 `[queries]`, the row of the document, or -1.

    Such a query has the document's id, and its text, perhaps without the title before it. The id alone does not tell,
    since queries and documents are often numbered from 1 each.

    Args:
        queries: the queries.
        documents: the id and the text of each document, in order.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for place, query in enumerate(queries):
        places[query.id].append(place)
    own = np.full(len(queries), -1)
    for row, (identity, text) in enumerate(documents):
        for place in places.get(identity, ()):
            if text.endswith(queries[place].text):
                own[place] = row
    return own


def read_queries(
    kind: str, index: Path, texts: Sequence[str], file: str | None, images: Sequence[str]
) -> tuple[list[str], list[Any]]:
    """Reads queries; returns their names and the queries, which are texts or RGB images.

    Args:
        kind: "text" or "image", the kind of documents that the index holds.
        index: the folder of the index, for messages.
        texts: queries from the command line; `-` stands for the lines of stdin.
        file: a file with more queries, one per line; `-` is stdin; None reads no file.
        images: image files, or folders of image files.

    Raises:
        InputError: the queries are not of `kind`, one is empty, or stdin is named twice.
        DataError: a file can't be read.
    """
    if kind == "image" and (texts or file is not None):
        raise InputError(f"{index} is an index of images", hint=f"ternarize index search {quoted(index)} --image FILE")
    if kind == "text" and images:
        raise InputError(f"{index} is an index of texts", hint=f'ternarize index search {quoted(index)} "your query"')
    if kind == "text":
        if [*texts, file].count(STDIN) > 1:
            raise InputError("stdin is named twice, and can be read once", hint="leave one - out")
        asked = [query for text in texts for query in (read_lines([STDIN]) if text == STDIN else [text])]
        asked += read_lines([file]) if file is not None else []
        if not all(text.strip() for text in asked):
            raise InputError("a query is empty", hint="leave it out: an empty query finds nothing")
        return asked, asked
    names: list[str] = []
    pictures: list[Any] = []
    for source in images:
        for part in read_parts(source).values():
            shown, alone = utf8_name(source), len(part) == 1 and os.path.isfile(user_path(source))
            names += [shown] if alone else [f"{shown}/{i}" for i in part.ids]
            pictures += list(part)
    return names, pictures
