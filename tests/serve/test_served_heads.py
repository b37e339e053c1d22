"""/rerank and /predict answer as text-embeddings-inference does."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from serve.conftest import Running, Start, fits, save_packed, start_server
from support.heads import save_headed
from ternarize_cli.runtime.head_weights import ACTIVATIONS
from ternarize_cli.runtime.heads import Classifier, Reranker

QUERY = "the cat in a tree"
TEXTS = ["the dog by the river", "light", "a big green house with stone", "write and close the file"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A packed reranker, and a packed classifier of three labels."""
    folder = tmp_path_factory.mktemp("heads")
    return {
        name: save_packed(save_headed(folder / f"{name}-source", labels=labels), folder / name)
        for name, labels in (("ranker", 1), ("sorter", 3))
    }


@pytest.fixture(scope="module")
def heads(folders: dict[str, Path], packed: Path) -> Iterator[Running]:
    """A server of an encoder, a reranker and a classifier."""
    running = start_server(packed, *folders.values())
    yield running
    said = "tiny: text encoder, 32 dimensions\nranker: reranker, 1 label\nsorter: classifier, 3 labels\n"
    assert running.end() == (0, said)


def sigmoid(scores: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-scores.astype(np.float64)))


@pytest.mark.parametrize("raw", [False, True])
def test_rerank_scores_texts_best_first(heads: Running, folders: dict[str, Path], raw: bool) -> None:
    made = heads.post("/rerank", {"query": QUERY, "texts": TEXTS, "raw_scores": raw}).json()
    raws = Reranker(folders["ranker"]).score([(QUERY, text) for text in TEXTS], raw=True)
    expected = raws if raw else sigmoid(raws)
    order = np.argsort(-expected)
    assert [rank["index"] for rank in made] == order.tolist()
    np.testing.assert_allclose([rank["score"] for rank in made], expected[order], rtol=1e-6)
    assert all(set(rank) == {"index", "score"} for rank in made)


@pytest.mark.parametrize(
    ("inputs", "accepted"),
    [
        ("light", True),
        (["light"], True),
        (["light", "fire"], True),
        ([["light"], ["light", "fire"]], True),
        (["a", "b", "c"], False),
        ([["a", "b", "c"]], False),
        ([[]], False),
        ([["a"], "b"], False),
        ([], False),
    ],
    ids=str,
)
def test_predict_accepts_what_is_described(heads: Running, inputs: object, accepted: bool) -> None:
    schemas = heads.get("/openapi.json").json()["components"]["schemas"]
    assert fits(inputs, schemas["PredictRequest"]["properties"]["inputs"]) == accepted
    assert (heads.post("/predict", {"inputs": inputs}).status_code == 200) == accepted


def test_scores_follow_tei_s_rule_and_not_the_model_s_activation(start: Start, tmp_path: Path) -> None:
    source = save_headed(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    identity = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
    (source / "config.json").write_text(json.dumps(config | identity))
    folder = save_packed(source, tmp_path / "ranker")
    raws = Reranker(folder).score([(QUERY, text) for text in TEXTS])
    np.testing.assert_array_equal(raws, Reranker(folder).score([(QUERY, text) for text in TEXTS], raw=True))
    made = start(folder).post("/rerank", {"query": QUERY, "texts": TEXTS}).json()
    scores = np.array([rank["score"] for rank in made], dtype=np.float32)
    np.testing.assert_array_equal(scores, ACTIVATIONS["sigmoid"](raws)[[rank["index"] for rank in made]])


def test_the_document_tells_tei_s_rule(heads: Running) -> None:
    schemas = heads.get("/openapi.json").json()["components"]["schemas"]
    for name in ("RerankRequest", "PredictRequest"):
        told = schemas[name]["properties"]["raw_scores"]["description"]
        assert "one score gets a sigmoid, and several get a softmax" in told
        assert "whatever activation the model's config names" in told


def test_rerank_repeats_texts_on_request(heads: Running) -> None:
    made = heads.post("/rerank", {"query": QUERY, "texts": TEXTS, "return_text": True}).json()
    assert [rank["text"] for rank in made] == [TEXTS[rank["index"]] for rank in made]


def test_a_score_does_not_depend_on_who_shares_the_pass(heads: Running) -> None:
    together = heads.post("/rerank", {"query": QUERY, "texts": TEXTS}).json()
    for rank in together:
        alone = heads.post("/rerank", {"query": QUERY, "texts": [TEXTS[rank["index"]]]}).json()
        assert alone == [{"index": 0, "score": rank["score"]}]


def test_predict_scores_labels_of_texts_and_pairs_best_first(heads: Running, folders: dict[str, Path]) -> None:
    classifier = Classifier(folders["sorter"])
    assert classifier.labels == ("LABEL_0", "LABEL_1", "LABEL_2")

    def expected(item: str | tuple[str, str], raw: bool = False) -> list[tuple[str, float]]:
        scores = classifier.classify([item], raw=True)[0].astype(np.float64)
        scores = scores if raw else np.exp(scores) / np.exp(scores).sum()
        return [(classifier.labels[i], scores[i]) for i in np.argsort(-scores)]

    def check(made: list[dict[str, object]], wanted: list[tuple[str, float]]) -> None:
        assert [one["label"] for one in made] == [label for label, _ in wanted]
        np.testing.assert_allclose([one["score"] for one in made], [score for _, score in wanted], rtol=1e-5)

    for inputs, item in (("light", "light"), (["light"], "light"), (["light", "fire"], ("light", "fire"))):
        check(heads.post("/predict", {"inputs": inputs, "model": "sorter"}).json(), expected(item))
    many = heads.post("/predict", {"inputs": [["light"], ["light", "fire"]], "raw_scores": True}).json()
    for made, item in zip(many, ("light", ("light", "fire")), strict=True):
        check(made, expected(item, raw=True))


def test_predict_of_a_reranker_gives_its_one_label(heads: Running, folders: dict[str, Path]) -> None:
    made = heads.post("/predict", {"inputs": [QUERY, TEXTS[0]], "model": "ranker"}).json()
    score = sigmoid(Reranker(folders["ranker"]).score([(QUERY, TEXTS[0])], raw=True))
    assert [one["label"] for one in made] == ["LABEL_0"]
    np.testing.assert_allclose(made[0]["score"], score[0], rtol=1e-6)


def test_info_tells_the_labels(heads: Running) -> None:
    numbers = {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    labels = {"id2label": numbers, "label2id": {label: int(i) for i, label in numbers.items()}}
    assert heads.get("/info?model=sorter").json()["model_type"] == {"classifier": labels}
    assert list(heads.get("/info?model=ranker").json()["model_type"]) == ["reranker"]


def test_each_path_takes_the_first_model_that_can_answer(heads: Running) -> None:
    assert len(heads.post("/embed", {"inputs": "cat"}).json()[0]) == 32
    assert len(heads.post("/rerank", {"query": "cat", "texts": ["dog"]}).json()) == 1
    assert len(heads.post("/predict", {"inputs": "cat"}).json()) == 3
    assert heads.post("/v1/embeddings", {"input": "cat", "model": "ranker"}).status_code == 400
    assert heads.post("/rerank", {"query": "cat", "texts": ["dog"], "model": "sorter"}).status_code == 424


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/rerank", {"texts": ["a"]}, 422, "`query` is missing"),
        ("/rerank", {"query": "a", "texts": []}, 400, "`texts` is an empty list"),
        ("/rerank", {"query": "a", "texts": "b"}, 422, "`texts` is no list"),
        ("/rerank", {"query": ["a"], "texts": ["b"]}, 422, "`query` has ['a'] where a text is expected"),
        ("/rerank", {"query": "a", "texts": ["b", 5]}, 422, "`texts` has 5 where a text is expected"),
        ("/rerank", {"query": "a", "texts": ["b"] * 3000}, 413, "3,000 elements"),
        ("/rerank", {"query": "a", "texts": ["cat " * 99], "truncate": False}, 422, "more than the"),
        ("/predict", {"inputs": []}, 400, "`inputs` is an empty list"),
        ("/predict", {"inputs": ["a", "b", "c"]}, 422, "neither a list of a text nor of two texts"),
        ("/predict", {"inputs": [["a"], "b"]}, 422, "neither a list of a text nor of two texts"),
        ("/predict", {"inputs": [["a"], []]}, 422, "neither a list of a text nor of two texts"),
        ("/predict", {"inputs": {"a": "b"}}, 422, "neither a text, nor a pair"),
    ],
    ids=str,
)
def test_bad_requests_are_refused(heads: Running, path: str, body: object, status: int, message: str) -> None:
    answer = heads.post(path, body)
    assert answer.status_code == status
    assert message in answer.json()["error"]
