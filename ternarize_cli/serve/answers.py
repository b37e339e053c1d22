"""Answers, and errors in the formats of OpenAI and of text-embeddings-inference (TEI).

OpenAI   {"error": {"message": "…", "type": "invalid_request_error", "param": "input", "code": null}}
TEI      {"error": "…", "error_type": "Validation"}
"""

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import orjson

__all__ = ["JSON", "Answer", "Fault", "Refusal", "empty", "json_answer"]

Headers = list[tuple[bytes, bytes]]
JSON = (b"content-type", b"application/json")


class Answer(NamedTuple):
    """What a request is answered with.

    Attributes:
        status: the HTTP status.
        headers: headers besides the length of the body.
        pieces: the body in parts.
    """

    status: int
    headers: Headers
    pieces: Sequence[bytes]


def empty() -> Answer:
    """Makes an answer that says only that all is well."""
    return Answer(200, [], (b"",))


def json_answer(value: object, status: int = 200, headers: Headers | None = None) -> Answer:
    """Makes an answer of a value that orjson writes, NumPy arrays included."""
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return Answer(status, [JSON, *(headers or ())], (body,))


class _Kind(NamedTuple):
    status: int
    type: str
    code: str | None
    tei_status: int
    error_type: str


class Fault(_Kind, Enum):
    """Why a request is refused: status, type and code for OpenAI's clients, status and error_type for those of TEI."""

    NOT_JSON = (400, "invalid_request_error", None, 400, "Validation")
    INVALID = (400, "invalid_request_error", None, 422, "Validation")
    EMPTY = (400, "invalid_request_error", "empty", 400, "Empty")
    TOO_LARGE = (413, "invalid_request_error", "too_large", 413, "Validation")
    WRONG_KIND = (400, "invalid_request_error", "wrong_kind_of_model", 424, "Backend")
    NO_MODEL = (404, "invalid_request_error", "model_not_found", 404, "Validation")
    NO_PATH = (404, "invalid_request_error", "unknown_url", 404, "Validation")
    NO_METHOD = (405, "invalid_request_error", "method_not_supported", 405, "Validation")
    WRONG_HOST = (403, "invalid_request_error", "wrong_host", 403, "Validation")
    NO_KEY = (401, "invalid_request_error", "invalid_api_key", 401, "Validation")
    ENCODED = (415, "invalid_request_error", "unsupported_media_type", 415, "Validation")
    TOO_SLOW = (408, "invalid_request_error", "timeout", 408, "Validation")
    LONG_HEAD = (431, "invalid_request_error", "headers_too_large", 431, "Validation")
    OVERLOADED = (429, "rate_limit_error", "rate_limit_exceeded", 429, "Overloaded")
    FAILED = (500, "server_error", None, 424, "Backend")
    FULL = (503, "server_error", "too_many_connections", 503, "Overloaded")
    UNHEALTHY = (503, "server_error", None, 503, "Unhealthy")


class Refusal(Exception):
    """A request that is answered with an error.

    Attributes:
        fault: why.
        param: the field of the request that is wrong; None if it is no single one.
        headers: headers that the answer has, such as Retry-After.
    """

    def __init__(self, fault: Fault, message: str, *, param: str | None = None, headers: Headers | None = None) -> None:
        super().__init__(message)
        self.fault, self.param, self.headers = fault, param, headers or []

    def answer(self, *, openai: bool) -> Answer:
        """Makes the answer, in the format of OpenAI or of TEI."""
        fault, message = self.fault, str(self)
        if openai:
            about = {"message": message, "type": fault.type, "param": self.param, "code": fault.code}
            return json_answer({"error": about}, fault.status, self.headers)
        return json_answer({"error": message, "error_type": fault.error_type}, fault.tei_status, self.headers)
