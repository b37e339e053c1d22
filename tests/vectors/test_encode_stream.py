"""Encoding streams: order, batches, how far ahead is read, slow writers, and every way to end."""

import itertools
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from transformers import AutoTokenizer

from support.models import WORDS, save_tiny_bert
from support.warm import Program, shared
from ternarize_cli import kernels
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.pack import pack
from ternarize_cli.data.length_buckets import by_length, width_of
from ternarize_cli.data.prefetch import ReadAhead, overlapped
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.errors import DataError
from ternarize_cli.runtime.blocks import BATCH_TOKENS
from ternarize_cli.vectors.encode import encoded
from ternarize_cli.vectors.text_encoder import TextEncoder


def _texts(count: int) -> list[str]:
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, size=draw.integers(1, 80))) for _ in range(count)]


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    save_tiny_bert(folder / "bert")
    convert(folder / "bert", folder / "ternary")
    pack(folder / "ternary", folder / "packed")
    return folder / "packed"


@contextmanager
def _process(model: object, *arguments: object, stdin: IO[bytes] | int = subprocess.PIPE) -> Iterator[Program]:
    """`ternarize encode MODEL -` with pipes on all sides; killed after a minute, so that a hang is a failure."""
    with shared().start("encode", model, "-", "--quiet", *arguments, stdin=stdin) as process:
        guard = threading.Timer(60, process.kill)
        guard.start()
        try:
            yield process
        finally:
            guard.cancel()


def _say(process: Program, text: str) -> None:
    process.stdin.write(f"{text}\n")
    process.stdin.flush()


def test_groups_are_of_like_length_within_the_budget():
    lengths = np.random.default_rng(0).integers(1, 300, size=700)
    groups = by_length(lengths, 2048)
    assert sorted(i for group in groups for i in group) == list(range(700))
    assert all(len(group) * width_of(int(lengths[group].max())) <= 2048 for group in groups)
    assert [len(group) for group in by_length(np.array([5000, 4, 4, 3]), 2048)] == [1, 3]
    assert by_length(np.array([], dtype=int), 2048) == []
    groups = by_length(lengths, 8192, 2048)
    assert sorted(i for group in groups for i in group) == list(range(700))
    for group, after in itertools.pairwise(groups):
        assert lengths[group].sum() <= 2048 < lengths[[*group, after[0]]].sum()
    assert [len(group) for group in by_length(np.array([5000, 4, 4, 3, 0, 0]), 8192, 11)] == [1, 5]


def test_of_a_very_long_text_only_the_beginning_is_tokenised(tiny_bert):
    encode = TextEncoder(load_encoder(tiny_bert, device="cpu"))
    seen = []
    tokenise = encode._features
    encode._features = lambda texts: seen.extend(map(len, texts)) or tokenise(texts)
    long, blank = "cat dog " * 50_000, " " * 50_000 + "cat"
    vectors = encode([long, blank, "cat", "cat dog " * 100])
    assert seen[0] <= 64 * encode.limit
    assert encode.truncated == 2
    np.testing.assert_array_equal(vectors[1], vectors[2])  # blanks are no tokens: all of it is read
    np.testing.assert_array_equal(vectors[0], vectors[3])


def test_short_texts_share_a_pass_and_long_ones_do_not(tiny_bert):
    encode = TextEncoder(load_encoder(tiny_bert, device="cpu"))
    batches = encode.prepare(["cat"] * 900 + ["cat " * 100] * 200).batches
    assert [len(rows) for rows, _ in batches] == [BATCH_TOKENS // 64, 200 - BATCH_TOKENS // 64 + 56, 844]
    assert [features["input_ids"].shape[1] for _, features in batches] == [64, 64, 3]
    of_ten = TextEncoder(encode.encoder, batch_size=10).prepare(["cat"] * 25).batches
    assert [len(rows) for rows, _ in of_ten] == [10, 10, 5]


@pytest.mark.skipif("native" not in [b.name for b in kernels.describe() if b.available], reason="native is not built")
def test_a_vector_is_the_same_in_any_batch(packed):
    model, texts = load_encoder(packed, device="cpu", backend="native"), _texts(50)
    vectors = TextEncoder(model)(texts)
    for size in (1, 7, 50):
        np.testing.assert_array_equal(TextEncoder(model, batch_size=size)(texts), vectors)
    np.testing.assert_array_equal(TextEncoder(model)(texts[::-1]), vectors[::-1])


@pytest.mark.parametrize("role", ["text", "query", "document"])
@pytest.mark.parametrize("normalize", [None, True])
def test_vectors_are_those_of_sentence_transformers(tiny_bert, role, normalize):
    model = SentenceTransformer(str(tiny_bert), device="cpu", truncate_dim=20)
    model.prompts = {"query": "find the ", "document": "row "}
    theirs = {"text": model.encode, "query": model.encode_query, "document": model.encode_document}[role]
    expected = theirs(_texts(40), normalize_embeddings=bool(normalize))
    encode = TextEncoder(model, role=role, normalize=normalize)
    np.testing.assert_allclose(encode(_texts(40)), expected, atol=1e-6)
    assert expected.shape == (40, encode.dim)


def test_a_model_without_masks_is_encoded_too(tiny_bert):
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert).backend_tokenizer
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")
    encode = TextEncoder(model, batch_size=3)
    np.testing.assert_allclose(encode(_texts(10)), model.encode(_texts(10)), atol=1e-6)


def test_items_are_read_two_chunks_ahead_and_no_further(tiny_bert, monkeypatch):
    monkeypatch.setattr("ternarize_cli.vectors.text_batches.CHUNK", 8)
    pulled = 0

    def items() -> Iterator[tuple[str, str]]:
        nonlocal pulled
        for pulled in itertools.count(1):
            yield str(pulled), "the cat"

    chunks = encoded(TextEncoder(load_encoder(tiny_bert, device="cpu")), items())
    for number, (ids, vectors) in enumerate(itertools.islice(chunks, 30)):
        assert ids == [str(8 * number + i) for i in range(1, 9)]
        assert vectors.shape == (8, 32)
        assert pulled <= 8 * (number + 3) + 1
    chunks.close()


def test_a_chunk_closes_at_its_count_or_size():
    assert list(ReadAhead("abcde", 2)) == [["a", "b"], ["c", "d"], ["e"]]
    assert list(ReadAhead([3, 1, 9, 2], 10, room=4, size=int)) == [[3, 1], [9], [2]]
    assert list(ReadAhead([], 2)) == []


def test_what_the_reader_raises_comes_after_the_items_before_it():
    def items() -> Iterator[int]:
        yield from (1, 2, 3)
        raise DataError("line 4")

    sums = overlapped(ReadAhead(items(), 2), sum)
    assert [next(sums), next(sums)] == [3, 3]
    with pytest.raises(DataError, match="line 4"):
        next(sums)


def test_closing_ends_a_wait_for_an_item_that_never_comes():
    never = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        never.wait()

    sums = overlapped(ReadAhead(items(), 1), sum)
    assert next(sums) == 1
    sums.close()
    never.set()


@pytest.mark.slow
def test_each_line_of_a_slow_writer_is_answered_while_the_pipe_is_open(tiny_bert):
    with _process(tiny_bert) as process:
        for number in ("1", "2", "3"):
            _say(process, "the cat")
            assert json.loads(process.stdout.readline())["id"] == number
        process.stdin.close()
        assert process.stdout.read() == ""
        assert process.wait() == 0


@pytest.mark.slow
def test_a_writer_is_held_up_while_nobody_reads_the_vectors(tiny_bert):
    with _process(tiny_bert) as process:
        _say(process, "the cat")
        process.stdout.readline()
        stdin, written = process.stdin.fileno(), 0
        os.set_blocking(stdin, False)
        while written < 20_000_000 and select.select([], [stdin], [], 1)[1]:
            written += os.write(stdin, b"the cat\n" * 512)
        assert 0 < written < 1_000_000


@pytest.mark.slow
def test_ctrl_c_ends_a_wait_for_the_next_line(tiny_bert):
    with _process(tiny_bert) as process:
        _say(process, "the cat")
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert process.stderr.read() == "error: interrupted\n"


@pytest.mark.slow
def test_a_reader_that_leaves_ends_an_endless_stream_quietly(tiny_bert):
    with (
        subprocess.Popen(["yes", "the cat"], stdout=subprocess.PIPE) as yes,
        _process(tiny_bert, stdin=yes.stdout) as process,
    ):
        yes.stdout.close()
        assert [json.loads(process.stdout.readline())["id"] for _ in range(5)] == ["1", "2", "3", "4", "5"]
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0


@pytest.mark.slow
def test_a_killed_run_leaves_no_output(tiny_bert, tmp_path):
    with _process(tiny_bert, "-o", tmp_path / "v.jsonl") as process:
        for _ in range(100):
            _say(process, "the cat")
        while not any(p.stat().st_size for p in tmp_path.iterdir()):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert not (tmp_path / "v.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"", "stdin holds no text"),
        (b"\n \n\n", "stdin holds no text"),
        (b"cat\n\xff\n", "stdin line 2: not UTF-8"),
        (b'{"text": "cat"}\n{"text": 5}\n', "stdin line 2: `text` is 5"),
    ],
)
def test_a_bad_stream_fails_after_the_vectors_before(run, tiny_bert, given, message):
    result = run("encode", tiny_bert, input=given)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stdout.splitlines()) == (1 if b"cat" in given else 0)


@pytest.mark.slow
def test_a_closed_stdin_is_said(tiny_bert):
    command = f'exec "{sys.executable}" -P -m ternarize_cli encode "{tiny_bert}" - <&-'
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stderr.splitlines()[0]) == (2, "error: stdin is closed")
