"""Reads a retrieval task: a corpus, queries, and the documents that answer each query.

A folder holds corpus.jsonl (`_id`, `text`, optional `title`) and queries.jsonl (`_id`, `text`), and names relevant
documents in one of two ways:

    inside queries.jsonl    "relevant": ["id", …]          every query names at least one document
    qrels/test.tsv (BEIR)   query-id TAB corpus-id TAB score   with this header; score is a grade, relevant above 0

If qrels/test.tsv exists, it decides, and queries that it does not judge are left out, because BEIR keeps the queries of
all splits in one file. Another split can be named: dev is qrels/dev.tsv. A query that no document answers would score
zero for every model, so it is refused.

Where queries are documents, too (ArguAna, Quora), a query finds itself first. So a document that has a query's own id
is left out of what that query finds, as BEIR does it, unless some query is answered by the document of its own id.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ternarize_cli.data.lines import digest_of, filled, json_records, lines, readable_file
from ternarize_cli.errors import DataError, InputError, counted, shown
from ternarize_cli.storage.bounds import user_path

__all__ = ["Retrieval", "read_retrieval"]

_LARGEST = 1_000_000
_HEADER = ["query-id", "corpus-id", "score"]
_Records = dict[str, tuple[int, dict[str, Any]]]


@dataclass(frozen=True)
class Retrieval:
    """The data of a retrieval task.

    `corpus` holds rows of id, title and text; `queries` maps ids to texts; `relevant` maps a query's id to a dict from
    documents' ids to grades.
    """

    name: str
    path: Path
    sha256: str
    corpus: list[dict[str, str]]
    queries: dict[str, str]
    relevant: dict[str, dict[str, int]]
    modalities: ClassVar = frozenset({"text"})

    @property
    def size(self) -> int:
        """Number of queries."""
        return len(self.queries)

    @property
    def among_documents(self) -> bool:
        """Whether queries are documents, too: some share an id with a document, and none of these answers its query."""
        documents = {row["id"] for row in self.corpus}
        shared = [query for query in self.queries if query in documents]
        return bool(shared) and all(self.relevant[query].get(query, 0) <= 0 for query in shared)


def read_retrieval(folder: Path, name: str, where: str | None = None, split: str = "test") -> Retrieval:
    """Reads and checks a retrieval folder in either layout.

    Args:
        folder: the folder, in a layout that the docstring of this module shows.
        name: name of the task.
        where: `KEY=VALUE` takes only queries whose JSON field KEY is VALUE, as JSON or as plain text.
        split: name of the file in qrels.

    Raises:
        DataError: a file is missing or wrong; the message names file and line.
        InputError: `where` has no `=`.
    """
    folder = user_path(folder)
    if not os.path.isdir(folder):
        what = "is a file" if os.path.exists(folder) else "does not exist"
        raise DataError(f"{folder} {what}; retrieval needs a folder with corpus.jsonl and queries.jsonl")
    corpus_file, queries_file = readable_file(folder / "corpus.jsonl"), readable_file(folder / "queries.jsonl")
    qrels_file = folder / "qrels" / f"{split}.tsv"
    others = ", ".join(sorted(file.stem for file in folder.glob("qrels/*.tsv")))
    if split != "test" and not os.path.exists(qrels_file):
        raise DataError(f"there is no file {qrels_file}", hint=f"splits of this folder: {others or 'none'}")
    documents = json_records(corpus_file)
    queries = json_records(queries_file)
    kept = queries if where is None else _matching(queries, where, queries_file)
    if os.path.exists(qrels_file):
        judged = _qrels(readable_file(qrels_file), queries, documents)
        relevant = {query: grades for query, grades in judged.items() if query in kept}
        _check_answered(relevant, qrels_file)
    else:
        relevant = {query: _inline(queries_file, *kept[query], documents, others) for query in kept}
    return Retrieval(
        name=name,
        path=folder,
        sha256=digest_of(
            [file for file in (corpus_file, queries_file, qrels_file) if os.path.exists(file)], where or ""
        ),
        corpus=[_document(corpus_file, key, *documents[key]) for key in documents],
        queries={
            q: filled(kept[q][1]["text"], "query", f"{queries_file}, line {kept[q][0]}") for q in kept if q in relevant
        },
        relevant=relevant,
    )


def _document(path: Path, key: str, line: int, record: dict[str, Any]) -> dict[str, str]:
    title = record.get("title") or ""
    if not isinstance(title, str):
        raise DataError(f'{path}, line {line}: the "title" of {shown(key)} is not a text')
    return {"id": key, "title": title, "text": record["text"]}


def _matching(queries: _Records, where: str, path: Path) -> _Records:
    key, separator, value = where.partition("=")
    if not key or not separator:
        raise InputError(f"--queries-where {where!r} is not KEY=VALUE", hint="--queries-where seen=false")
    kept = {q: entry for q, entry in queries.items() if key in entry[1] and _shown(entry[1][key]) == value}
    if not kept:
        seen = sorted({_shown(record[key]) for _, record in queries.values() if key in record})
        fields = sorted({field for _, record in queries.values() for field in record})
        known = f"values of {key!r}: {', '.join(seen[:8])}" if seen else f"fields of a query: {', '.join(fields[:12])}"
        raise DataError(f"{path}: no query has {key}={value}", hint=known)
    return kept


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _check_answered(relevant: dict[str, dict[str, int]], path: Path) -> None:
    if not relevant:
        raise DataError(f"{path} judges none of the chosen queries", hint="choose more queries")
    silent = [query for query, grades in relevant.items() if max(grades.values()) <= 0]
    if silent:
        raise DataError(
            f"{path}: the query {shown(silent[0])} has no relevant document "
            f"({len(silent)} of {len(relevant)} have none)",
            hint="grades above 0 are relevant; delete the judgements of queries that nothing answers",
        )


def _inline(path: Path, line: int, query: dict[str, Any], documents: _Records, splits: str) -> dict[str, int]:
    ids = query.get("relevant")
    where = f"{path}, line {line}: the query {shown(query['_id'])}"
    if ids is None:
        raise DataError(
            f'{where} has no "relevant" ids, and there is no {path.parent / "qrels" / "test.tsv"}',
            hint=f'qrels has {splits}: write split = "…" into a task file'
            if splits
            else 'add "relevant": ["id of a document"] to each query, or qrels/test.tsv as BEIR has it',
        )
    if not isinstance(ids, list) or not all(isinstance(i, str | int) and not isinstance(i, bool) for i in ids):
        raise DataError(f'{where}: "relevant" is {shown(ids)}, not a list of document ids')
    if not ids:
        raise DataError(f"{where} has no relevant document", hint="delete the query or name a document in its list")
    for i in ids:
        if str(i) not in documents:
            raise DataError(f"{where}: its relevant id {shown(str(i))} is not in the corpus", hint="check corpus.jsonl")
    return {str(i): 1 for i in ids}


def _qrels(path: Path, queries: _Records, documents: _Records) -> dict[str, dict[str, int]]:
    judged: dict[str, dict[str, int]] = {}
    for number, line in lines(path):
        row, where = line.rstrip("\r\n").split("\t"), f"{path}, line {number}"
        if number == 1:
            if row != _HEADER:
                raise DataError(
                    f"{where}: the header line query-id, corpus-id, score is missing", hint="tabs between them"
                )
            continue
        if not line.strip():
            continue
        if len(row) != 3:
            raise DataError(
                f"{where}: {counted(len(row), 'column')} where 3 are needed: {', '.join(_HEADER)}",
                hint="separate by tabs",
            )
        query, document, score = row
        if query not in queries:
            raise DataError(f"{where}: the query {shown(query)} is not in queries.jsonl")
        if document not in documents:
            raise DataError(f"{where}: the document {shown(document)} is not in the corpus", hint="check corpus.jsonl")
        grades = judged.setdefault(query, {})
        if document in grades:
            raise DataError(f"{where}: {shown(query)} and {shown(document)} are judged twice")
        try:
            grades[document] = int(score)
        except ValueError:
            raise DataError(f"{where}: the score {shown(score)} is not a whole number") from None
        if abs(grades[document]) > _LARGEST:
            raise DataError(f"{where}: the score {shown(score)} is no grade", hint="grades are small whole numbers")
    if not judged:
        raise DataError(f"{path} holds no judgement", hint="each line is: query-id TAB corpus-id TAB score")
    return judged
