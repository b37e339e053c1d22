"""A server that needs no key answers only where it is meant to be reached, and no web page reads its answers."""

from pathlib import Path

import pytest

from serve.conftest import Running, Start, all_of, connected
from ternarize_cli.serve.hosts import is_loopback, names_of_loopback

WARNING = "warning: other machines reach this server (--host {}), and everybody there may ask; set TERNARIZE_API_KEY\n"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "localhost:", "127.0.0.1:80", "[::1]", "[::1]:8080"])
def test_a_server_on_a_loopback_address_is_called_by_its_own_names(server: Running, host: str) -> None:
    assert server.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "localhost.evil.example", "evil.localhost", "127.0.0.1.evil.example:80"],
)
def test_another_name_is_refused_in_words(server: Running, host: str) -> None:
    headers = {"host": host}
    answer = server.post("/embed", {"inputs": "the cat"}, headers=headers)
    assert (answer.status_code, answer.json()["error_type"]) == (403, "Validation")
    assert f"the Host header is '{host}', but a server on a loopback address" in answer.json()["error"]
    assert "set TERNARIZE_API_KEY" in answer.json()["error"]
    answer = server.post("/v1/embeddings", {"input": "the cat"}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "wrong_host")
    assert [server.get(path, headers=headers).status_code for path in ("/health", "/info", "/docs")] == [403] * 3


def test_a_client_that_names_no_host_is_no_browser(server: Running) -> None:
    with connected(server) as client:
        client.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert all_of(client).startswith(b"HTTP/1.1 200 ")


def test_pages_of_other_hosts_get_no_cors_headers(server: Running) -> None:
    origin = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    asked = server.get("/v1/embeddings", headers=origin), server.post("/embed", {"inputs": "cat"}, headers=origin)
    for answer in asked:
        assert not [name for name in answer.headers if name.startswith("access-control")]
    with connected(server) as client:
        client.sendall(
            b"OPTIONS /embed HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n"
            b"Access-Control-Request-Method: POST\r\nConnection: close\r\n\r\n"
        )
        answer = all_of(client).lower()
    assert answer.startswith(b"http/1.1 405 ")
    assert b"access-control" not in answer


@pytest.mark.slow
def test_with_a_key_or_on_other_addresses_all_names_are_answered(packed: Path, start: Start) -> None:
    for arguments in ((), ("--host", "0.0.0.0")):
        server = start(packed, *arguments, TERNARIZE_API_KEY="s3cret")
        assert _status(server, "example.org") == 200
        assert server.end() == (0, "tiny: text encoder, 32 dimensions\n")


@pytest.mark.slow
def test_a_server_that_others_reach_without_a_key_warns(packed: Path, start: Start) -> None:
    server = start(packed, "--host", "0.0.0.0", "--quiet")
    assert _status(server, "example.org") == 200
    assert server.end() == (0, WARNING.format("0.0.0.0"))


def _status(server: Running, host: str) -> int:
    with connected(server) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % host.encode())
        return int(all_of(client).split()[1])


def test_the_name_that_a_server_listens_on_is_answered_too() -> None:
    names = names_of_loopback("my-box", "127.0.1.1")
    for host in (b"my-box:8080", b"My-Box", b"127.0.1.1:8080", b"localhost", b"[::1]:80"):
        assert names.fullmatch(host), host
    for host in (
        b"my-box.org",
        b"127.0.1.2",
        b"127x0.1.1",
        b"localhost:80:80",
        b"localhost:80a",
        b"::1",
        b":80",
        b"\xff",
    ):
        assert not names.fullmatch(host), host


def test_loopback_addresses_are_told_from_others() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.0.1.1", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.5", "fe80::1%eth0", "::ffff:10.0.0.1")))
