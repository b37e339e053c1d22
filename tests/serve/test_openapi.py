"""The description of the API agrees with what the server does."""

import json
import re
from html import unescape

import pytest

from serve.conftest import Running, fits


def test_each_described_path_is_there(server: Running) -> None:
    document = server.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    assert server.get("/api-doc/openapi.json").json() == document
    for path, operations in document["paths"].items():
        for method in operations:
            named = path.replace("{name}", "tiny")
            answer = server.get(named) if method == "get" else server.post(named, {})
            assert answer.status_code in ((200,) if method == "get" else (400, 422, 424)), path


def test_each_reference_leads_somewhere_and_bodies_list_what_is_required(server: Running) -> None:
    document = server.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    references = re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(document))
    assert set(references) == set(schemas)
    assert schemas["EmbeddingsRequest"]["required"] == ["input"]
    assert schemas["RerankRequest"]["required"] == ["query", "texts"]


INPUTS = [
    ("the cat", True),
    (["the cat", "a dog"], True),
    ([2, 16, 3], True),
    ([[2, 16, 3], [2, 3]], True),
    (["the cat", [2, 16, 3]], True),
    ([[2, 16, 3], "the cat"], True),
    ([], False),
    ([[]], False),
    ([2, "the cat"], False),
    ([-1], False),
    (5, False),
]


@pytest.mark.parametrize(("inputs", "accepted"), INPUTS, ids=str)
@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings", "/embed", "/embed_all"])
def test_the_inputs_that_are_described_are_those_that_are_accepted(
    server: Running, path: str, inputs: object, accepted: bool
) -> None:
    document = server.get("/openapi.json").json()
    body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    fields = document["components"]["schemas"][body.rpartition("/")[2]]
    (name,) = fields["required"]
    assert fits(inputs, fields["properties"][name]) == accepted
    assert (server.post(path, {name: inputs}).status_code == 200) == accepted


def test_the_page_needs_nothing_from_elsewhere(server: Running) -> None:
    answer = server.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert "<script" not in answer.text
    assert re.findall(r'(?:src|href)="([^"]*)"', answer.text) == ["/openapi.json"]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings", "/embed", "/embed_all", "/tokenize"])
def test_the_examples_of_the_page_work(server: Running, path: str) -> None:
    page = unescape(server.get("/docs").text)
    body = re.search(rf"curl localhost:8080{path} .*? -d '(.*?)'</pre>", page)
    assert body is not None
    assert server.post(path, json.loads(body[1])).status_code == 200
