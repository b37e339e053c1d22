"""Requests that can't be answered get an error with the right status, in the format of their API; the server lives."""

import json
import socket
import time
from contextlib import ExitStack, closing

import httpx2 as httpx
import pytest

from serve.conftest import HURRIED, Running, Start, all_of, connected, wait_until

EMBEDDINGS = [  # body, status, param, code, part of the message
    (b"", 400, None, None, "the body is not JSON"),
    (b"hello", 400, None, None, "the body is not JSON"),
    (b'{"input": "a"', 400, None, None, "the body is not JSON"),
    (b'{"input": "\xff"}', 400, None, None, "the body is not JSON"),
    (b'{"input": "\\ud800"}', 400, None, None, "surrogate"),
    (b'{"input": NaN}', 400, None, None, "the body is not JSON"),
    (b"[" * 100_000, 400, None, None, "the body is not JSON"),
    (b'["a"]', 400, None, None, "the body is a list, not a JSON object"),
    (b"null", 400, None, None, "the body is null, not a JSON object"),
    ({}, 400, "input", None, "`input` is missing"),
    ({"input": None}, 400, "input", None, "`input` is missing"),
    ({"input": []}, 400, "input", "empty", "`input` is an empty list"),
    ({"input": [[]]}, 400, "input", "empty", "empty list of token ids"),
    ({"input": 5}, 400, "input", None, "`input` is neither a text nor a list"),
    ({"input": {"text": "a"}}, 400, "input", None, "`input` is neither a text nor a list"),
    ({"input": ["a", 5]}, 400, "input", None, "`input` has 5 where a text is expected"),
    ({"input": ["a", None]}, 400, "input", None, "`input` has None where a text is expected"),
    ({"input": [{"text": "a"}]}, 400, "input", None, "`input` has an object where a text is expected"),
    ({"input": [True]}, 400, "input", None, "`input` has True where a text is expected"),
    ({"input": [1, "a"]}, 400, "input", None, "`input` has a list that is not of token ids"),
    ({"input": [1, -1]}, 400, "input", None, "`input` has a list that is not of token ids"),
    ({"input": [1, 1 << 40]}, 400, "input", None, "`input` has a list that is not of token ids"),
    ({"input": [1, 1.5]}, 400, "input", None, "`input` has a list that is not of token ids"),
    ({"input": [2, 99_999, 3]}, 400, None, None, "a token has the id 99999"),
    ({"input": [2] * 65}, 400, None, None, "an input has more than the 64 tokens that the model reads"),
    ({"input": "a", "model": "gpt"}, 404, "model", "model_not_found", "there is no model 'gpt' here, but: tiny"),
    ({"input": "a", "model": 7}, 400, "model", None, "`model` is 7, not a string"),
    ({"input": "a", "dimensions": 33}, 400, "dimensions", None, "`dimensions` is 33"),
    ({"input": "a", "dimensions": 0}, 400, "dimensions", None, "`dimensions` is 0"),
    ({"input": "a", "dimensions": -1}, 400, "dimensions", None, "`dimensions` is -1"),
    ({"input": "a", "dimensions": True}, 400, "dimensions", None, "not a whole number"),
    ({"input": "a", "dimensions": "4"}, 400, "dimensions", None, "not a whole number"),
    ({"input": "a", "dimensions": 1 << 70}, 400, "dimensions", None, "not a whole number"),
    ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format", None, "not float or base64"),
    ({"input": "a" * 10_000_000}, 413, None, "too_large", "more than the 8,000,000 bytes that are read"),
    ({"input": "a" * 200_000}, 413, "input", "too_large", "200,000 characters, more than the 131,072"),
    ({"input": ["a"] * 100_000}, 413, "input", "too_large", "100,000 elements, more than the 2,048"),
]


def _encoded(body: object) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


@pytest.mark.parametrize(
    ("body", "status", "param", "code", "message"), EMBEDDINGS, ids=[str(case[0])[:40] for case in EMBEDDINGS]
)
def test_openai_s_paths_give_openai_s_error_object(
    server: Running, body: object, status: int, param: str | None, code: str | None, message: str
) -> None:
    answer = httpx.post(f"{server.url}/v1/embeddings", content=_encoded(body), timeout=60)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert message in error.pop("message")
    assert error == {"type": "invalid_request_error", "param": param, "code": code}
    assert server.post("/v1/embeddings", {"input": "the cat"}).status_code == 200


TEI = [  # path, body, status, error_type, part of the message
    ("/embed", b"{", 400, "Validation", "the body is not JSON"),
    ("/embed", {}, 422, "Validation", "`inputs` is missing"),
    ("/embed", {"inputs": []}, 400, "Empty", "`inputs` is an empty list"),
    ("/embed", {"inputs": 5}, 422, "Validation", "`inputs` is neither"),
    ("/embed", {"inputs": "a", "normalize": "yes"}, 422, "Validation", "`normalize` is 'yes', not true or false"),
    ("/embed", {"inputs": "a", "truncate": 1}, 422, "Validation", "`truncate` is 1, not true or false"),
    ("/embed", {"inputs": "cat " * 99, "truncate": False}, 422, "Validation", "more than the 64 tokens"),
    ("/embed", {"inputs": "a", "prompt_name": "title"}, 422, "Validation", "has no prompt 'title'"),
    ("/embed", {"inputs": "a", "truncation_direction": "Left"}, 422, "Validation", "cut where"),
    ("/embed", {"inputs": "a", "truncation_direction": "up"}, 422, "Validation", "not right or left"),
    ("/embed", {"inputs": "a", "dimensions": 33}, 422, "Validation", "`dimensions` is 33"),
    ("/embed", {"inputs": "a", "model": "gpt"}, 404, "Validation", "there is no model 'gpt'"),
    ("/embed", {"inputs": ["a"] * 3000}, 413, "Validation", "3,000 elements"),
    ("/embed", {"inputs": [9999]}, 422, "Validation", "a token has the id 9999"),
    ("/embed_all", {"inputs": {}}, 422, "Validation", "`inputs` is neither"),
    ("/tokenize", {"inputs": [5]}, 422, "Validation", "`inputs` has 5 where a text is expected"),
    ("/tokenize", {"inputs": 5}, 422, "Validation", "`inputs` is neither"),
    ("/tokenize", {"inputs": []}, 400, "Empty", "`inputs` is an empty list"),
    ("/rerank", {"query": "a", "texts": ["b"]}, 424, "Backend", "no model here ranks texts"),
    (
        "/rerank",
        {"query": "a", "texts": ["b"], "model": "tiny"},
        424,
        "Backend",
        "tiny is an encoder, and not one that ranks texts",
    ),
    ("/predict", {"inputs": "a"}, 424, "Backend", "no model here classifies texts"),
    ("/nowhere", {}, 404, "Validation", "there is no /nowhere here"),
    ("/info", {}, 405, "Validation", "/info takes GET, not POST"),
]


@pytest.mark.parametrize(("path", "body", "status", "kind", "message"), TEI, ids=lambda v: str(v)[:30])
def test_tei_s_paths_give_tei_s_error_object(
    server: Running, path: str, body: object, status: int, kind: str, message: str
) -> None:
    answer = httpx.post(server.url + path, content=_encoded(body), timeout=60)
    assert (answer.status_code, answer.json()["error_type"]) == (status, kind)
    assert message in answer.json()["error"]
    assert set(answer.json()) == {"error", "error_type"}


def test_a_wrong_method_is_told_the_right_one(server: Running) -> None:
    answer = server.get("/v1/embeddings")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"]["code"] == "method_not_supported"
    assert httpx.head(f"{server.url}/health").status_code == 200


def test_a_compressed_body_is_refused(server: Running) -> None:
    headers = {"content-encoding": "gzip"}
    answer = httpx.post(f"{server.url}/embed", content=b"\x1f\x8b", headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (415, "a compressed body is not read")


def test_a_body_in_chunks_is_read_and_bounded(server: Running) -> None:
    whole = httpx.post(f"{server.url}/embed", content=iter([b'{"inputs": ', b'"the cat"}']))
    assert whole.status_code == 200
    endless = httpx.post(f"{server.url}/embed", content=(b" " * 100_000 for _ in range(100)), timeout=60)
    assert endless.status_code == 413


def test_no_garbage_on_the_connection_harms_the_server(server: Running) -> None:
    for garbage in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"POST /embed HTTP/1.1\r\nContent-Length: -5\r\n\r\n"):
        with closing(socket.create_connection(("127.0.0.1", server.port), timeout=60)) as connection:
            connection.sendall(garbage)
            assert connection.recv(100).startswith(b"HTTP/1.1 400")
    for begun in (b"POST /embed HTTP/1.1\r\nContent-Le", b"POST /embed HTTP/1.1\r\nContent-Length: 99\r\n\r\n{"):
        with closing(socket.create_connection(("127.0.0.1", server.port), timeout=60)) as connection:
            connection.sendall(begun)
    assert server.post("/embed", {"inputs": "the cat"}).status_code == 200


def test_an_api_key_is_needed_where_one_is_set(packed: object, start: Start) -> None:
    server = start(packed, TERNARIZE_API_KEY="s3cret")
    body = {"input": "the cat"}
    for headers, what in (
        ({}, "an API key is needed"),
        ({"authorization": "Bearer wrong"}, "the API key is wrong"),
        ({"authorization": "Bearer s3crets"}, "the API key is wrong"),
        ({"authorization": "Basic s3cret"}, "the API key is wrong"),
        ({"authorization": b"Bearer \xc3\xa9"}, "the API key is wrong"),
    ):
        answer = server.post("/v1/embeddings", body, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert what in answer.json()["error"]["message"]
        assert server.get("/info", headers=headers).status_code == 401
        assert server.post("/", {"inputs": "a"}, headers=headers).status_code == 401
    assert server.get("/health").status_code == 200
    assert server.post("/v1/embeddings", body, headers={"authorization": "Bearer s3cret"}).status_code == 200
    assert server.post("/v1/embeddings", body, headers={"authorization": "bearer s3cret"}).status_code == 200


def test_a_full_queue_refuses_with_the_time_to_come_back(packed: object, start: Start) -> None:
    server = start(packed, "--max-queue", 100, "--max-client-batch-size", 100, "--max-batch-tokens", 1)
    texts = ["the cat in a tree by the river"] * 100
    with httpx.Client(timeout=60) as client:
        statuses = []

        def flood() -> bool:
            import threading

            answers = []
            threads = [
                threading.Thread(
                    target=lambda: answers.append(client.post(f"{server.url}/embed", json={"inputs": texts}))
                )
                for _ in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            statuses.extend(answers)
            return any(answer.status_code == 429 for answer in answers)

        wait_until(flood)
    assert {answer.status_code for answer in statuses} == {200, 429}
    refused = next(answer for answer in statuses if answer.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error_type"] == "Overloaded"
    assert all(len(answer.json()) == 100 for answer in statuses if answer.status_code == 200)


def test_bodies_are_bounded_in_all(packed: object, start: Start) -> None:
    server = start(packed, "--max-body", 100_000)
    head = b"POST /embed HTTP/1.1\r\nContent-Length: 100000\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(8):  # which send all but the end of bodies that would be read
            stack.enter_context(connected(server)).sendall(head + b" " * 99_999)
        long = {"inputs": "a" * 80_000}
        wait_until(lambda: server.post("/embed", long).status_code == 429)
        refused = server.post("/embed", long)
        assert (refused.headers["retry-after"], refused.json()["error_type"]) == ("1", "Overloaded")
        assert server.post("/embed", {"inputs": "a" * 60_000}).status_code == 200  # a small body needs no room
    wait_until(lambda: server.post("/embed", long).status_code == 200)


@pytest.mark.slow
def test_a_body_that_stalls_is_ended(packed: object, start: Start) -> None:
    server = start(packed, first=HURRIED.format(seconds=1))
    for path, kind in (("/embed", b'"error_type":"Validation"'), ("/v1/embeddings", b'"code":"timeout"')):
        for begun in (b"", b"{", b"{" * 1500):
            with connected(server) as halfway:
                halfway.sendall(b"POST %b HTTP/1.1\r\nContent-Length: 2000\r\n\r\n" % path.encode() + begun)
                head, _, body = all_of(halfway).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 408 ")
            assert b"\r\nconnection: close" in head
            assert kind in body
            assert b"neither 1,000 bytes of the body nor its end came within 1 seconds" in body


@pytest.mark.slow
def test_a_body_that_comes_steadily_is_read(packed: object, start: Start) -> None:
    server = start(packed, first=HURRIED.format(seconds=3))
    body = b'{"inputs": "cat"' + b" " * 20_000 + b"}"
    with connected(server) as steady:
        steady.sendall(b"POST /embed HTTP/1.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        for first in range(0, len(body), 2000):  # in five seconds
            time.sleep(0.5)
            steady.sendall(body[first : first + 2000])
        assert all_of(steady).startswith(b"HTTP/1.1 200 ")
