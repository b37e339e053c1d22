"""The ASGI application: finds the handler of a path, and turns everything that can go wrong into an answer.

It speaks ASGI itself: a framework's routing and middleware would cost as much again as all else that the event loop
does for a request of one text.
"""

import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ternarize_cli.serve.answers import Answer, Fault, Refusal, empty, json_answer
from ternarize_cli.serve.openai_api import OpenAiApi
from ternarize_cli.serve.openapi import docs_page, openapi_document
from ternarize_cli.serve.request import BodyBudget, ClientGoneError, Receive, Request
from ternarize_cli.serve.search_api import SearchApi, SearchIndex
from ternarize_cli.serve.service import Service
from ternarize_cli.serve.tei_api import TeiApi

__all__ = ["Application"]

Handler = Callable[[Request], Awaitable[Answer]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_log = logging.getLogger(__name__)
_PUBLIC = frozenset({"/", "/health", "/ping", "/metrics", "/openapi.json", "/api-doc/openapi.json", "/docs"})
"""Paths that GET needs no API key for."""
_BODIES = 8
"""As many bodies of the largest size are held at one time."""
_JOINED = 1 << 17
"""The most bytes of an answer that is sent in one piece."""
_CLOSE = (b"connection", b"close")


class Application:
    """Answers the requests of a server.

    Args:
        service: the models, and what computes for them.
        index: an index that /search and /documents answer from.
        hosts: the Host headers that are answered; None: all.

    Attributes:
        is_closing: whether connections are closed after the next answer.
    """

    def __init__(
        self, service: Service, index: SearchIndex | None = None, hosts: re.Pattern[bytes] | None = None
    ) -> None:
        self._service, self._hosts = service, hosts
        options = service.options
        self._key = None if options.api_key is None else options.api_key.encode()
        self._budget = BodyBudget(options.max_body, _BODIES * options.max_body)
        self._document = openapi_document(service, with_index=index is not None)
        self._routes = self._all_routes()
        if index is not None:
            search = SearchApi(service, index)
            self._routes["/search"] = {"POST": search.search}
            self._routes["/documents"] = {"GET": search.page, "POST": search.by_id}
        self.is_closing = False

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answers a request; a request whose client has left is dropped."""
        request = Request(scope, receive, self._budget)
        try:
            answer = await self._answer(request)
        except ClientGoneError:
            self._service.metrics.failures.add(value="dropped")
            return
        finally:
            request.close()
        await self._send(answer, send)

    async def _answer(self, request: Request) -> Answer:
        metrics, began = self._service.metrics, time.perf_counter()
        try:
            if self._hosts is not None:
                request.check_host(self._hosts)
            handler = self._handler(request)
            if self._key is not None and not (request.path in _PUBLIC and request.method != "POST"):
                request.check_key(self._key)
            answer = await handler(request)
        except Refusal as e:
            metrics.failures.add(value=e.fault.name.lower())
            return e.answer(openai=request.path.startswith(("/v1/", "/embeddings")))
        except ClientGoneError:
            raise
        except Exception as e:
            _log.error("%s %s failed", request.method, request.path, exc_info=e)
            metrics.failures.add(value=Fault.FAILED.name.lower())
            refusal = Refusal(Fault.FAILED, "the server failed; its log says how")
            return refusal.answer(openai=request.path.startswith(("/v1/", "/embeddings")))
        if request.counted:
            metrics.successes.add(value=request.counted)
            metrics.seconds.observe(time.perf_counter() - began)
        return answer

    def _handler(self, request: Request) -> Handler:
        methods = self._routes.get(request.path)
        if methods is None and request.path.startswith("/v1/models/"):
            methods = self._routes["/v1/models/"]
        if methods is None:
            raise Refusal(Fault.NO_PATH, f"there is no {request.path[:200]} here; /docs has all paths")
        handler = methods.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            allowed = ", ".join(methods)
            what = f"{request.path} takes {allowed}, not {request.method}"
            raise Refusal(Fault.NO_METHOD, what, headers=[(b"allow", allowed.encode())])
        return handler

    async def _send(self, answer: Answer, send: Send) -> None:
        length = sum(map(len, answer.pieces))
        headers = [*answer.headers, (b"content-length", b"%d" % length)]
        if self.is_closing:
            headers.append(_CLOSE)
        pieces = answer.pieces if length > _JOINED else [b"".join(answer.pieces)]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        for piece in pieces[:-1]:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": pieces[-1]})

    def _all_routes(self) -> dict[str, dict[str, Handler]]:
        openai, tei = OpenAiApi(self._service), TeiApi(self._service)
        kind = next(iter(self._service.models.all.values())).model.kind
        first = {"encoder": tei.embed, "reranker": tei.rerank, "classifier": tei.predict}[kind]
        return {
            "/v1/embeddings": {"POST": openai.embeddings},
            "/embeddings": {"POST": openai.embeddings},
            "/v1/models": {"GET": openai.models},
            "/v1/models/": {"GET": openai.model},
            "/": {"GET": self._health, "POST": first},
            "/embed": {"POST": tei.embed},
            "/embed_all": {"POST": tei.embed_all},
            "/rerank": {"POST": tei.rerank},
            "/predict": {"POST": tei.predict},
            "/tokenize": {"POST": tei.tokenize},
            "/info": {"GET": tei.info},
            "/health": {"GET": self._health},
            "/ping": {"GET": self._health},
            "/metrics": {"GET": self._metrics},
            "/openapi.json": {"GET": self._openapi},
            "/api-doc/openapi.json": {"GET": self._openapi},
            "/docs": {"GET": self._docs},
        }

    async def _health(self, request: Request) -> Answer:
        if not self._service.batcher.is_alive:
            raise Refusal(Fault.UNHEALTHY, "unhealthy: the thread that computes has ended")
        return empty()

    async def _metrics(self, request: Request) -> Answer:
        text = self._service.metrics.text().encode()
        return Answer(200, [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")], (text,))

    async def _openapi(self, request: Request) -> Answer:
        return json_answer(self._document)

    async def _docs(self, request: Request) -> Answer:
        policy = (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'")
        page = docs_page(self._document).encode()
        return Answer(200, [(b"content-type", b"text/html; charset=utf-8"), policy], (page,))
