"""/embed, /embed_all, /tokenize, /info, /health and /metrics answer as text-embeddings-inference does."""

import json
import re
import shutil
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient

from serve.conftest import Running, Start, save_packed
from ternarize_cli import __version__
from ternarize_cli.runtime import Encoder
from ternarize_cli.storage.digests import content_hash

TEXTS = ["the cat", "a dog by the river"]


def test_embed_gives_a_list_of_vectors(server: Running, encoder: Encoder) -> None:
    expected = encoder.encode(TEXTS)
    for inputs, rows in ((TEXTS, [0, 1]), (TEXTS[0], [0]), (encoder.tokenize(TEXTS[1:])[0].ids, [1])):
        answer = server.post("/embed", {"inputs": inputs})
        np.testing.assert_array_equal(np.array(answer.json(), dtype=np.float32), expected[rows])
    assert answer.headers["x-compute-tokens"] == "7"
    assert set(answer.headers) >= {"x-compute-time", "x-queue-time", "x-inference-time", "x-tokenization-time"}


def test_the_first_model_answers_a_post_to_the_root(server: Running) -> None:
    assert server.post("/", {"inputs": TEXTS}).json() == server.post("/embed", {"inputs": TEXTS}).json()


def test_vectors_are_left_as_pooled_and_cut_on_request(server: Running, encoder: Encoder) -> None:
    answer = server.post("/embed", {"inputs": TEXTS, "normalize": False, "dimensions": 5})
    expected = encoder.encode(TEXTS, normalize=False, dimensions=5)
    np.testing.assert_array_equal(np.array(answer.json(), dtype=np.float32), expected)


def test_embed_all_gives_a_vector_of_each_token(server: Running, encoder: Encoder) -> None:
    made = server.post("/embed_all", {"inputs": TEXTS}).json()
    for vectors, expected in zip(made, encoder.token_vectors(encoder.tokenize(TEXTS)), strict=True):
        np.testing.assert_array_equal(np.array(vectors, dtype=np.float32), expected)


@pytest.mark.slow
def test_embed_all_is_bounded_in_tokens(packed: Path, start: Start) -> None:
    server = start(packed, "--max-client-batch-size", 8000)
    answer = server.post("/embed_all", {"inputs": ["cat " * 100] * 5000})
    assert answer.status_code == 413
    assert answer.json()["error"] == "the inputs have more than the 262,144 tokens that are answered at once"


def test_tokenize_lists_tokens_with_their_places_in_bytes(server: Running) -> None:
    made = server.post("/tokenize", {"inputs": ["thé cat", "cat"]}).json()
    special = {"special": True, "start": None, "stop": None}
    assert made == [
        [
            {"id": 2, "text": "[CLS]", **special},
            {"id": 5, "text": "thé", "special": False, "start": 0, "stop": 4},
            {"id": 16, "text": "cat", "special": False, "start": 5, "stop": 8},
            {"id": 3, "text": "[SEP]", **special},
        ],
        [
            {"id": 2, "text": "[CLS]", **special},
            {"id": 16, "text": "cat", "special": False, "start": 0, "stop": 3},
            {"id": 3, "text": "[SEP]", **special},
        ],
    ]
    plain = server.post("/tokenize", {"inputs": "thé cat", "add_special_tokens": False}).json()
    assert plain == [made[0][1:3]]


def test_info_describes_the_model_and_the_bounds(server: Running, packed: Path) -> None:
    info = server.get("/info").json()
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (info["model_id"], info["model_sha"], info["version"]) == ("tiny", content_hash(packed), __version__)
    assert (info["max_input_length"], info["max_client_batch_size"], info["auto_truncate"]) == (64, 2048, True)
    assert server.get("/info?model=tiny").json() == info
    assert server.get("/info?model=other").status_code == 404


def test_prompts_are_put_before_texts_by_name(tiny_bert: Path, start: Start, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_bert, tmp_path / "source")
    prompts = {"query": "search ", "passage": "index "}
    path = source / "config_sentence_transformers.json"
    path.write_text(json.dumps({"prompts": prompts, "default_prompt_name": "passage"}))
    folder = save_packed(source, tmp_path / "prompted")
    server, encoder = start(folder), Encoder(folder)
    for name in ("query", "passage"):
        answer = server.post("/embed", {"inputs": TEXTS, "prompt_name": name}).json()
        expected = encoder.encode(TEXTS, prompt_name=name)
        np.testing.assert_array_equal(np.array(answer, dtype=np.float32), expected)
    assert server.post("/embed", {"inputs": TEXTS}).json() == answer
    openai = server.post("/v1/embeddings", {"input": TEXTS}).json()
    assert [item["embedding"] for item in openai["data"]] == answer
    tokens = server.post("/tokenize", {"inputs": "cat", "prompt_name": "query"}).json()
    assert [token["text"] for token in tokens[0]] == ["[CLS]", "search", "cat", "[SEP]"]
    ids = encoder.tokenize(["cat"], prompt="")[0].ids
    mixed = server.post("/embed", {"inputs": [ids, "cat"], "prompt_name": "query"}).json()
    np.testing.assert_array_equal(
        np.array(mixed, dtype=np.float32),
        np.concatenate([encoder.encode(["cat"], prompt=prompt) for prompt in ("", "search ")]),
    )


def test_several_models_answer_by_name(packed: Path, start: Start) -> None:
    server = start(packed, f"other={packed}")
    assert [model["id"] for model in server.get("/v1/models").json()["data"]] == ["tiny", "other"]
    for name in ("tiny", "other"):
        assert server.post("/v1/embeddings", {"model": name, "input": "cat"}).json()["model"] == name
        assert server.get(f"/info?model={name}").json()["model_id"] == name
    assert server.post("/embed", {"model": "other", "inputs": "cat"}).status_code == 200


def test_hugging_face_s_client_gets_the_vectors(
    server: Running, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # which also bars requests to this machine
    expected = encoder.encode(TEXTS)
    for url in (server.url, f"{server.url}/embed"):
        np.testing.assert_array_equal(InferenceClient(url).feature_extraction(TEXTS), expected)
    pooled = InferenceClient(server.url).feature_extraction(TEXTS[0], normalize=False, truncate=True)
    np.testing.assert_array_equal(pooled, encoder.encode(TEXTS[:1], normalize=False))


def test_metrics_count_in_prometheus_format(packed: Path, start: Start) -> None:
    server = start(packed)
    for inputs in ("cat", ["cat", "dog"], ["cat"] * 5):
        server.post("/embed", {"inputs": inputs})
    server.post("/embed", {"inputs": []})
    server.post("/embed", {"inputs": "cat", "model": "gpt"})
    httpx.post(f"{server.url}/embed", content=b"{", timeout=60)
    answer = server.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = answer.text.splitlines()
    for line in (
        "# TYPE te_request_count counter",
        'te_request_count{method="single"} 2',
        'te_request_success{method="single"} 1',
        'te_request_count{method="batch"} 3',
        'te_request_success{method="batch"} 2',
        'te_request_failure{err="no_model"} 1',
        'te_request_failure{err="not_json"} 1',
        'te_request_failure{err="empty"} 1',
        "te_embed_success 8",
        "te_queue_size 0",
        "te_batch_next_size_sum 8",
        "te_batch_next_tokens_sum 24",
        "te_request_input_length_count 3",
        'te_request_duration_bucket{le="+Inf"} 3',
    ):
        assert line in lines
    sample = re.compile(r'[a-z_]+(\{[a-z]+="[^"]*"\})? [\d.e+-]+')
    assert all(line.startswith(("# HELP te_", "# TYPE te_")) or sample.fullmatch(line) for line in lines)
    counts = [float(line.split()[1]) for line in lines if line.startswith("te_request_duration_bucket")]
    assert counts == sorted(counts)


@pytest.mark.parametrize("path", ["/health", "/ping", "/"])
def test_a_healthy_server_says_so(server: Running, path: str) -> None:
    answer = server.get(path)
    assert (answer.status_code, answer.content) == (200, b"")
