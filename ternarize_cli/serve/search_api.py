"""The paths of an index: /search finds documents, and /documents reads them.

The server knows an index only as a `SearchIndex`, since a server without one needs no FAISS; `index_folder` opens one.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ternarize_cli.errors import shown
from ternarize_cli.serve.answers import Answer, Fault, Refusal, json_answer
from ternarize_cli.serve.inputs import check_count, checked_text
from ternarize_cli.serve.request import Request
from ternarize_cli.serve.service import Service
from ternarize_cli.serve.tasks import Prepared, Task

__all__ = ["Found", "SearchApi", "SearchIndex"]

_MOST_HITS = 10_000
"""The most hits that all queries of a request may ask for, and the most documents that a request may."""
_PAGE = 100


class Found(NamedTuple):
    """A document that was found for a query.

    Attributes:
        id: its id.
        score: how near it is, as the index measures.
        text: its text.
    """

    id: str
    score: float
    text: str


class SearchIndex(Protocol):
    """An open index. All calls come from one thread.

    Attributes:
        count: the number of documents.
    """

    count: int

    def search(self, queries: Sequence[str], k: int) -> list[list[Found]]:
        """Finds up to `k` documents for each query, best first."""

    def by_id(self, ids: Sequence[str]) -> list[tuple[str, str] | None]:
        """Returns the id and text of each document; None where there is none of that id."""

    def page(self, offset: int, limit: int) -> list[tuple[str, str]]:
        """Returns the id and text of up to `limit` documents, behind the first `offset` ones."""


@dataclass(frozen=True)
class _OfIndex(Task):
    """A task of an index: its items cost a token each.

    Attributes:
        index: the index.
    """

    index: SearchIndex

    @property
    def group(self) -> Hashable:
        return self

    def prepare(self, items: Sequence[Any]) -> list[Prepared]:
        return [Prepared(item, 1) for item in items]

    def join(self, parts: list[list[Any]]) -> list[Any]:
        return [one for part in parts for one in part]


@dataclass(frozen=True)
class _Search(_OfIndex):
    """Finds documents: results are a list of hits for each query.

    Attributes:
        k: the most hits of a query.
    """

    k: int

    def prepare(self, items: Sequence[str]) -> list[Prepared]:
        return [Prepared(item, 1 + len(item) // 4) for item in items]

    def run(self, contents: Sequence[str]) -> Any:
        return self.index.search(contents, self.k)


@dataclass(frozen=True)
class _ById(_OfIndex):
    """Reads documents by their ids."""

    def run(self, contents: Sequence[str]) -> Any:
        return self.index.by_id(contents)


@dataclass(frozen=True)
class _Page(_OfIndex):
    """Reads pages of documents: items are pairs of offset and limit."""

    def run(self, contents: Sequence[tuple[int, int]]) -> Any:
        return [self.index.page(*item) for item in contents]


class SearchApi:
    """Answers requests to an index."""

    def __init__(self, service: Service, index: SearchIndex) -> None:
        self._service, self._index = service, index

    async def search(self, request: Request) -> Answer:
        """POST /search: finds documents for a query, or for each of several."""
        fields = await request.fields()
        single = not isinstance(fields.value("query"), list)
        self._service.begin(request, single=single)
        query, k = fields.required("query"), fields.get("k", int, 10)
        queries = self._texts([query] if isinstance(query, str) else query, "query")
        if not 1 <= k <= _MOST_HITS // len(queries):
            most = f"a request may have {_MOST_HITS:,} hits in all"
            raise Refusal(Fault.INVALID, f"`k` is {shown(k)} for each of {len(queries):,} queries; {most}", param="k")
        with_text = fields.get("with_text", bool, True)
        job = await self._service.compute(request, _Search(self._index, k), queries)
        listed = [
            [{"id": hit.id, "score": hit.score} | ({"text": hit.text} if with_text else {}) for hit in hits]
            for hits in job.result
        ]
        return json_answer({"results": listed[0] if single else listed})

    async def page(self, request: Request) -> Answer:
        """GET /documents?offset=0&limit=100: reads documents in the order of the index."""
        offset, limit = (self._number(request, name, usual) for name, usual in (("offset", 0), ("limit", _PAGE)))
        if limit > _MOST_HITS:
            raise Refusal(Fault.TOO_LARGE, f"`limit` is {limit:,}, more than {_MOST_HITS:,}", param="limit")
        job = await self._service.compute(request, _Page(self._index), [(offset, limit)])
        documents = [{"id": identity, "text": text} for identity, text in job.result[0]]
        return json_answer({"count": self._index.count, "documents": documents})

    async def by_id(self, request: Request) -> Answer:
        """POST /documents: reads documents by their ids."""
        fields = await request.fields()
        self._service.begin(request, single=False)
        ids = self._texts(fields.required("ids"), "ids")
        job = await self._service.compute(request, _ById(self._index), ids)
        found = [{"id": one[0], "text": one[1]} for one in job.result if one is not None]
        missing = [identity for identity, one in zip(ids, job.result, strict=True) if one is None]
        return json_answer({"documents": found, "missing": missing})

    def _texts(self, value: Any, name: str) -> list[str]:
        if not isinstance(value, list):
            raise Refusal(Fault.INVALID, f"`{name}` is no list of texts", param=name)
        if not value:
            raise Refusal(Fault.EMPTY, f"`{name}` is an empty list", param=name)
        check_count(len(value), name, self._service.options)
        return [checked_text(text, name, self._service.options) for text in value]

    def _number(self, request: Request, name: str, usual: int) -> int:
        value = request.query(name)
        if value is None:
            return usual
        if not (value.isascii() and value.isdecimal() and len(value) < 16):
            raise Refusal(Fault.INVALID, f"`{name}` is {shown(value)}, not a number from 0 on", param=name)
        return int(value)
