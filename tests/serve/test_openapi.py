"""The description of the API agrees with what the server does."""

import json
import re
from html import unescape

import pytest

from serve.conftest import Running


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


def test_the_page_needs_nothing_from_elsewhere(server: Running) -> None:
    answer = server.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert "<script" not in answer.text
    assert re.findall(r'(?:src|href)="([^"]*)"', answer.text) == ["/openapi.json"]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed", "/embed_all", "/tokenize"])
def test_the_examples_of_the_page_work(server: Running, path: str) -> None:
    page = unescape(server.get("/docs").text)
    body = re.search(rf"curl localhost:8080{path} .*? -d '(.*?)'</pre>", page)
    assert body is not None
    assert server.post(path, json.loads(body[1])).status_code == 200
