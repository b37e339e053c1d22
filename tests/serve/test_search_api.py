"""With --index, /search and /documents answer as `ternarize index search` does."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest

from serve.conftest import Running, start_server
from support.models import WORDS
from ternarize_cli.index.build import build_index
from ternarize_cli.index.change import delete_documents
from ternarize_cli.index.search import Searcher

DOCUMENTS = [{"id": f"doc-{i}", "text": f"{WORDS[i % 40]} {WORDS[i * 7 % 40]} {WORDS[i * 3 % 40]}"} for i in range(200)]
QUERIES = [f"the {word} and a {other}" for word, other in zip(WORDS[10:40], WORDS[5:35], strict=True)]


@pytest.fixture(scope="module")
def folder(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 200 documents, of which doc-3 is deleted."""
    where = tmp_path_factory.mktemp("index")
    (where / "corpus.jsonl").write_text("\n".join(map(json.dumps, DOCUMENTS)))
    build_index(where / "corpus.jsonl", where / "index", model=str(packed))
    delete_documents(where / "index", ["doc-3"])
    return where / "index"


@pytest.fixture(scope="module")
def searching(packed: Path, folder: Path) -> Iterator[Running]:
    running = start_server(packed, "--index", folder)
    yield running
    assert running.end() == (0, f"tiny: text encoder, 32 dimensions\n{folder}: 199 documents\n")


def test_search_finds_what_the_index_finds(searching: Running, folder: Path) -> None:
    hits = Searcher(folder).search(QUERIES[:1], 5)[0]
    made = searching.post("/search", {"query": QUERIES[0], "k": 5}).json()
    assert made == {"results": [{"id": hit.id, "score": hit.score, "text": hit.text} for hit in hits]}
    short = searching.post("/search", {"query": QUERIES[0], "k": 2, "with_text": False}).json()
    assert short == {"results": [{"id": hit.id, "score": hit.score} for hit in hits[:2]]}


def test_hits_do_not_depend_on_who_shares_a_pass(searching: Running) -> None:
    many = searching.post("/search", {"query": QUERIES}).json()["results"]
    assert [len(hits) for hits in many] == [10] * len(QUERIES)
    for query, hits in zip(QUERIES, many, strict=True):
        assert searching.post("/search", {"query": query}).json()["results"] == hits


def test_documents_are_read_by_page_and_by_id(searching: Running) -> None:
    live = [document for document in DOCUMENTS if document["id"] != "doc-3"]
    assert searching.get("/documents").json() == {"count": 199, "documents": live[:100]}
    assert searching.get("/documents?offset=150&limit=100").json() == {"count": 199, "documents": live[150:]}
    assert searching.get("/documents?offset=500").json() == {"count": 199, "documents": []}
    made = searching.post("/documents", {"ids": ["doc-9", "doc-3", "other", "doc-0"]}).json()
    assert made == {"documents": [DOCUMENTS[9], DOCUMENTS[0]], "missing": ["doc-3", "other"]}


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/search", {}, 422, "`query` is missing"),
        ("/search", {"query": []}, 400, "`query` is an empty list"),
        ("/search", {"query": 5}, 422, "`query` is no list of texts"),
        ("/search", {"query": ["a", 5]}, 422, "`query` has 5 where a text is expected"),
        ("/search", {"query": "a", "k": 0}, 422, "`k` is 0"),
        ("/search", {"query": ["a"] * 100, "k": 101}, 422, "a request may have 10,000 hits in all"),
        ("/search", {"query": "a", "k": "5"}, 422, "`k` is '5', not a whole number"),
        ("/documents", {"ids": "doc-1"}, 422, "`ids` is no list of texts"),
        ("/documents", {"ids": []}, 400, "`ids` is an empty list"),
        ("/documents?limit=-1", None, 422, "`limit` is '-1', not a number"),
        ("/documents?offset=x", None, 422, "`offset` is 'x', not a number"),
        ("/documents?limit=10001", None, 413, "`limit` is 10,001"),
    ],
    ids=str,
)
def test_bad_requests_are_refused(searching: Running, path: str, body: object, status: int, message: str) -> None:
    answer = searching.get(path) if body is None else searching.post(path, body)
    assert answer.status_code == status
    assert message in answer.json()["error"]


def test_the_page_describes_an_index_where_there_is_one(searching: Running, server: Running) -> None:
    page = unescape(searching.get("/docs").text)
    for path in ("/search", "/documents"):
        body = re.search(rf"curl localhost:8080{path} .*? -d '(.*?)'</pre>", page)
        assert body is not None
        assert searching.post(path, json.loads(body[1])).status_code == 200
        assert path not in server.get("/openapi.json").json()["paths"]
        assert server.post(path, {}).status_code == 404


def test_an_index_is_searched_where_torch_and_transformers_can_t_be_imported(folder: Path) -> None:
    script = f"""
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from pathlib import Path
from ternarize_cli.serve.index_folder import IndexFolder
index = IndexFolder(Path({str(folder)!r}), {{}})
print(index.count, [len(hits) for hits in index.search(["the cat", "a dog"], 3)])
"""
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("199 [3, 3]\n", "")
