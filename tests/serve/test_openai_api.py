"""/v1/embeddings and /v1/models answer as OpenAI's API does."""

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from openai import APIStatusError, NotFoundError, OpenAI

from serve.conftest import Running, Start, save_packed
from ternarize_cli.runtime import Encoder

TEXTS = ["the cat", "a dog by the river", "", "light \x00 and \U0001f600 water"]


def vectors_of(answer: dict[str, object]) -> np.ndarray:
    data = answer["data"]
    assert isinstance(data, list)
    assert [item["index"] for item in data] == list(range(len(data)))
    return np.array([item["embedding"] for item in data], dtype=np.float32)


def test_a_list_of_texts_gives_the_vectors_of_the_model_in_order(server: Running, encoder: Encoder) -> None:
    answer = server.post("/v1/embeddings", {"model": "tiny", "input": TEXTS}).json()
    np.testing.assert_array_equal(vectors_of(answer), encoder.encode(TEXTS))
    tokens = sum(len(tokens.ids) for tokens in encoder.tokenize(TEXTS))
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert (answer["object"], answer["model"], answer["data"][1]["object"]) == ("list", "tiny", "embedding")


def test_a_text_a_list_of_ids_and_lists_of_ids_are_inputs(server: Running, encoder: Encoder) -> None:
    ids = [tokens.ids for tokens in encoder.tokenize(TEXTS[:2])]
    expected = encoder.encode(TEXTS[:2])
    for value, rows in ((TEXTS[0], [0]), (ids[0], [0]), (ids, [0, 1]), ([TEXTS[0], ids[1]], [0, 1])):
        answer = server.post("/v1/embeddings", {"model": "tiny", "input": value}).json()
        np.testing.assert_array_equal(vectors_of(answer), expected[rows])


def test_base64_is_little_endian_float32_of_the_same_vectors(server: Running, encoder: Encoder) -> None:
    body = {"model": "tiny", "input": TEXTS, "encoding_format": "base64"}
    data = server.post("/v1/embeddings", body).json()["data"]
    made = [np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in data]
    np.testing.assert_array_equal(made, encoder.encode(TEXTS))


def test_dimensions_keep_the_first_ones_at_length_1(server: Running, encoder: Encoder) -> None:
    body = {"model": "tiny", "input": TEXTS, "dimensions": 7}
    made = vectors_of(server.post("/v1/embeddings", body).json())
    np.testing.assert_array_equal(made, encoder.encode(TEXTS, normalize=True, dimensions=7))
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-6)


def test_a_model_that_cuts_its_vectors_gives_all_dimensions_on_request(
    tiny_bert: Path, start: Start, tmp_path: Path
) -> None:
    source = shutil.copytree(tiny_bert, tmp_path / "source")
    (source / "config_sentence_transformers.json").write_text(json.dumps({"truncate_dim": 16}))
    folder = save_packed(source, tmp_path / "cut")
    server, encoder = start(folder), Encoder(folder)
    assert encoder.dim == 16
    made = vectors_of(server.post("/v1/embeddings", {"input": TEXTS}).json())
    np.testing.assert_array_equal(made, encoder.encode(TEXTS, normalize=True))
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-6)
    for dimensions in (7, 16, 24, 32):
        made = vectors_of(server.post("/v1/embeddings", {"input": TEXTS, "dimensions": dimensions}).json())
        np.testing.assert_array_equal(made, encoder.encode(TEXTS, normalize=True, dimensions=dimensions))
    answer = server.post("/v1/embeddings", {"input": TEXTS, "dimensions": 33})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "dimensions")


def test_many_texts_are_written_and_computed_in_parts(server: Running, encoder: Encoder) -> None:
    texts = [f"{text} cat" for text in TEXTS * 500]
    answer = server.post("/v1/embeddings", {"input": texts}).json()
    np.testing.assert_array_equal(vectors_of(answer), encoder.encode(texts))


def test_a_long_text_is_cut_and_counted_as_read(server: Running, encoder: Encoder) -> None:
    long = "cat " * 500
    answer = server.post("/v1/embeddings", {"input": long}).json()
    np.testing.assert_array_equal(vectors_of(answer), encoder.encode([long]))
    assert answer["usage"]["prompt_tokens"] == encoder.limit == 64


def test_models_are_listed_and_described(server: Running) -> None:
    listed = server.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [(m["id"], m["object"], m["owned_by"]) for m in listed["data"]] == [("tiny", "model", "ternarize")]
    assert server.get("/v1/models/tiny").json() == listed["data"][0]
    assert server.get("/v1/models/other").status_code == 404


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_openai_s_client_gets_the_vectors(server: Running, encoder: Encoder, encoding: str | None) -> None:
    asked = {} if encoding is None else {"encoding_format": encoding}
    with OpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
        made = client.embeddings.create(model="tiny", input=TEXTS, **asked)
        assert [model.id for model in client.models.list()] == ["tiny"]
        if encoding != "base64":  # the client leaves what was asked for as it came
            vectors = np.array([item.embedding for item in made.data], dtype=np.float32)
            np.testing.assert_array_equal(vectors, encoder.encode(TEXTS))
        assert made.usage.prompt_tokens == sum(len(tokens.ids) for tokens in encoder.tokenize(TEXTS))


def test_openai_s_client_understands_errors(server: Running) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        with pytest.raises(NotFoundError) as unknown:
            client.embeddings.create(model="gpt", input="the cat")
        assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
        assert "there is no model 'gpt' here, but: tiny" in unknown.value.message
        with pytest.raises(APIStatusError) as wide:
            client.embeddings.create(model="tiny", input="the cat", dimensions=33)
        assert (wide.value.status_code, wide.value.param) == (400, "dimensions")
