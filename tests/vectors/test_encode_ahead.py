"""Encoding on a GPU prepares and starts chunks ahead; the same stages run here on a CPU, where nothing is pinned."""

import errno
import io
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.models import WORDS, save_gpt2
from ternarize_cli.data.prefetch import ReadAhead, in_chunks, overlapped
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.errors import DataError
from ternarize_cli.layers.text_lengths import lengths_of
from ternarize_cli.vectors import gpu_batches
from ternarize_cli.vectors.encode import encode_to_stream, encoded, open_model
from ternarize_cli.vectors.image_encoder import ImageEncoder
from ternarize_cli.vectors.options import EncoderOptions, ShardOptions
from ternarize_cli.vectors.pace import Pace
from ternarize_cli.vectors.quick_tokenizing import quick_tokenizer
from ternarize_cli.vectors.text_encoder import TextEncoder
from ternarize_cli.vectors.vector_shards import encode_to_folder, record_of


def texts(count: int) -> list[str]:
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, size=draw.integers(0, 80))) for _ in range(count)]


def ahead(folder: Path, **options: str) -> TextEncoder:
    """An encoder that takes the way of a GPU."""
    encode = TextEncoder(load_encoder(folder, device="cpu"), **options)
    encode.on_gpu = True
    encode._chunk = 16
    return encode


def test_chunks_that_are_started_ahead_come_in_order(tiny_bert):
    items = [(str(i), text) for i, text in enumerate(texts(100))]
    encode = ahead(tiny_bert)
    parts = list(encoded(encode, items))
    assert [len(ids) for ids, _ in parts] == [16] * 6 + [4]
    assert [identity for ids, _ in parts for identity in ids] == [identity for identity, _ in items]
    expected = TextEncoder(load_encoder(tiny_bert, device="cpu"))([text for _, text in items])
    np.testing.assert_allclose(np.concatenate([vectors for _, vectors in parts]), expected, atol=1e-6)
    assert (encode.texts, encode.tokens > 0) == (100, True)


def test_an_error_ahead_comes_after_the_vectors_before_it(tiny_bert):
    def items() -> Iterator[tuple[str, str]]:
        yield from ((str(i), "the cat") for i in range(40))
        raise DataError("line 41")

    encode, seen = ahead(tiny_bert), []
    with pytest.raises(DataError, match="line 41"):
        seen.extend(ids for ids, _ in encoded(encode, items()))
    assert [len(ids) for ids in seen] == [16, 16, 8]


def test_what_is_encoded_before_an_error_is_written(tiny_bert):
    def items() -> Iterator[tuple[str, str]]:
        yield from ((str(i), "the cat") for i in range(40))
        raise DataError("line 41")

    stream = io.BytesIO()
    with pytest.raises(DataError, match="line 41"):
        encode_to_stream(ahead(tiny_bert), items(), stream, "jsonl", in_thread=True)
    assert [json.loads(line)["id"] for line in stream.getvalue().splitlines()] == [str(i) for i in range(40)]


def test_a_chunk_is_encoded_while_the_one_before_is_written_and_a_failure_to_write_ends_both(tiny_bert):
    class Full(io.RawIOBase):
        """Takes nothing, once more texts have been encoded than those that it is given."""

        def write(self, data: Any) -> int:
            assert encoded_more.wait(30)
            raise OSError(errno.ENOSPC, "full")

    def items() -> Iterator[tuple[str, str]]:
        yield from ((str(i), "the cat") for i in range(1000))

    encode, encoded_more = ahead(tiny_bert), threading.Event()
    finished = encode.finished

    def counting(*given: Any) -> np.ndarray:
        made = finished(*given)
        if encode.texts > 16:
            encoded_more.set()
        return made

    encode.finished = counting
    with pytest.raises(OSError, match="full"):
        encode_to_stream(encode, items(), Full(), "jsonl", in_thread=True)
    assert encode.texts < 100


def test_a_stage_works_on_the_next_chunk_while_the_caller_has_this_one():
    second = threading.Event()

    def start(number: int) -> int:
        if number == 2:
            second.set()
        return number

    numbers = overlapped(ReadAhead([1, 2, 3], 1), sum, start)
    assert next(numbers) == 1
    assert second.wait(30)
    assert list(numbers) == [2, 3]


def test_closing_ends_all_stages_while_they_wait():
    never = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        never.wait()

    for linger in (None, 0.01):
        numbers = overlapped(ReadAhead(items(), 1, linger=linger), sum, int)
        assert next(numbers) == 1
        numbers.close()
    never.set()


def test_items_before_an_error_are_a_chunk():
    def items() -> Iterator[int]:
        yield from (1, 2, 3)
        raise DataError("4")

    chunks = in_chunks(items(), 2)
    assert [next(chunks), next(chunks)] == [[1, 2], [3]]
    with pytest.raises(DataError):
        next(chunks)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("prompt", ["", "big red "])
def test_quick_tokenising_gives_what_sentence_transformers_gives(tiny_bert, side, prompt):
    model = load_encoder(tiny_bert, device="cpu")
    model.tokenizer.padding_side = model.tokenizer.truncation_side = side
    model.prompts = {"text": prompt}
    encode = TextEncoder(model, prompt_name="text")
    made = encode.prepare(texts(200))
    assert encode._quick is not None
    encode._quick = None
    expected = encode.prepare(texts(200))
    check_same(made, expected)
    assert made.truncated > 0


def test_tokenising_apart_gives_the_same_and_goes_on_here_if_the_process_ends(tiny_bert, caplog):
    encode = TextEncoder(load_encoder(tiny_bert, device="cpu"))
    expected = encode.prepare(texts(200))
    quick = encode._quick
    quick.apart()
    check_same(encode.prepare(texts(200)), expected)
    quick._child._process.kill()
    check_same(encode.prepare(texts(200)), expected)
    assert "texts are tokenised in this process" in caplog.text
    assert "signal 9" in caplog.text
    check_same(encode.prepare(texts(200)), expected)


def test_what_was_begun_in_a_process_that_ends_is_tokenised_here(tiny_bert, caplog):
    encode, few = TextEncoder(load_encoder(tiny_bert, device="cpu")), texts(20)
    expected = encode.prepare(few)
    quick = encode._quick
    quick.apart()
    quick._child._process.send_signal(signal.SIGSTOP)  # so that it has answered none
    waits = [quick.begun(few) for _ in range(3)]
    quick._child._process.kill()
    for wait in waits:
        check_same(encode._quickly_padded(few, quick, wait), expected)
    assert caplog.text.count("texts are tokenised in this process") == 1
    quick.apart()
    assert quick._child is None, "a process that failed is not started again"


def check_same(made, expected):
    assert (made.tokens, made.truncated) == (expected.tokens, expected.truncated)
    for (rows, features), (same_rows, same) in zip(made.batches, expected.batches, strict=True):
        assert rows == same_rows
        assert features.keys() == same.keys()
        for name, value in same.items():
            assert torch.equal(features[name], value) if isinstance(value, torch.Tensor) else features[name] == value


def test_a_model_that_reads_texts_in_its_own_way_is_not_tokenised_quickly(tiny_bert, tmp_path):
    model = load_encoder(tiny_bert, device="cpu")
    limit = model.max_seq_length
    assert quick_tokenizer(model.preprocess, model.tokenizer, "", limit) is not None
    for other in (
        lambda given: model.preprocess([text[::-1] for text in given]),
        lambda given: {**model.preprocess(given), "position_ids": torch.zeros(1)},
        lambda given: {**model.preprocess(given), "attention_mask": model.preprocess(given)["attention_mask"].int()},
    ):
        assert quick_tokenizer(other, model.tokenizer, "", limit) is None
    assert quick_tokenizer(model.preprocess, model.tokenizer, "", limit - 1) is None


def test_a_batch_says_how_long_its_texts_are(tiny_bert, tmp_path):
    for _, features in TextEncoder(load_encoder(tiny_bert, device="cpu")).prepare(texts(50)).batches:
        features = gpu_batches.on_device(features, torch.device("cpu"))
        mask = features["attention_mask"]
        np.testing.assert_array_equal(lengths_of(mask), mask.sum(dim=1))
        assert lengths_of(mask.clone()) is None
    left = load_encoder(tiny_bert, device="cpu")
    left.tokenizer.padding_side = "left"
    assert all(
        lengths_of(features["attention_mask"]) is None for _, features in TextEncoder(left).prepare(texts(9)).batches
    )


def test_images_are_started_ahead_too(tiny_vit):
    from PIL import Image

    draw = np.random.default_rng(0)
    images = [Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(9)]
    encode = ImageEncoder(load_encoder(tiny_vit, device="cpu"), batch_size=4)
    expected = np.concatenate([encode.forward(encode.prepare(images[at : at + 4])) for at in (0, 4, 8)])
    encode.on_gpu = True
    parts = list(encoded(encode, [(str(i), image) for i, image in enumerate(images)]))
    np.testing.assert_allclose(np.concatenate([vectors for _, vectors in parts]), expected, atol=1e-6)
    assert encode.images == 18


def test_empty_texts_without_special_tokens_are_tokenised_quickly_too(tmp_path):
    model = load_encoder(save_gpt2(tmp_path / "m"), device="cpu")
    encode = TextEncoder(model)
    vectors = encode(["", ""])
    assert vectors.shape == (2, encode.dim)
    assert not vectors.any()


def test_the_pace_leaves_the_first_chunk_out():
    pace = Pace()
    assert (pace.start_seconds, pace.per_second) == (None, None)
    pace.done(10)
    assert (pace.rest_count, pace.per_second) == (0, None)
    while pace.rest_seconds < 0.002:
        pace.done(5)
    assert pace.count == 10 + pace.rest_count
    assert pace.per_second == pytest.approx(pace.rest_count / pace.rest_seconds, rel=0.5)
    assert f"then {pace.per_second:,.0f}/s" in pace.summary


@pytest.mark.parametrize("shards", [False, True])
def test_encode_tells_its_start_from_its_rate(run, tiny_bert, corpus, tmp_path, monkeypatch, shards):
    monkeypatch.setattr("ternarize_cli.vectors.text_batches.CHUNK", 64)
    output = ("--shards", "-o", tmp_path / "v") if shards else ("-o", tmp_path / "v.npy")
    result = run("encode", tiny_bert, corpus, *output, "--device", "cpu", "--json")
    report = json.loads(result.stdout)
    assert report["rest_count"] == 300 - 64
    assert min(report["start_seconds"], report["rest_seconds"]) > 0
    assert report["per_second"] == pytest.approx(report["rest_count"] / report["rest_seconds"], rel=0.1)
    assert f"then {report['per_second']:,.0f}/s" in result.stderr


def test_shards_do_not_depend_on_the_way(tiny_bert, corpus, tmp_path):
    items = [(str(i), text) for i, text in enumerate(corpus.read_text().splitlines())]
    opened = open_model(tiny_bert, "text", EncoderOptions(device="cpu"), role="document")
    record = record_of("m", opened, ShardOptions(size=40, format="npy"))
    plain = encode_to_folder(opened.encode, items, tmp_path / "plain", record)
    opened.encode.on_gpu = True
    assert encode_to_folder(opened.encode, items[:100], tmp_path / "ahead", record).shards == 3
    again = encode_to_folder(opened.encode, items, tmp_path / "ahead", record)
    assert (again.shards, again.reused, plain.shards) == (6, 2, 8)
    for path in (tmp_path / "plain").glob("*.npy"):
        np.testing.assert_array_equal(np.load(tmp_path / "ahead" / path.name), np.load(path))
