"""`TextEncoder` gives what `SentenceTransformer.encode` gives, for tokenizers and texts that are out of the ordinary."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from support.models import WORDS
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.vectors.batch_encoder import TextEncoder


def with_settings(folder: Path, source: Path, **settings: str) -> Path:
    """Copies a model and changes settings of its tokenizer."""
    shutil.copytree(source, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("truncation_side", ["left", "right"])
def test_the_side_that_the_tokenizer_truncates_is_cut(tiny_bert, tmp_path, truncation_side, padding_side):
    folder = with_settings(tmp_path / "m", tiny_bert, truncation_side=truncation_side, padding_side=padding_side)
    rng = random.Random(0)
    for words in (100, 3000):  # the latter is cut before it is tokenised, too
        texts = [" ".join(rng.choices(WORDS, k=words))]
        vectors = TextEncoder(load_encoder(folder, device="cpu"))(texts)
        np.testing.assert_allclose(vectors, SentenceTransformer(str(folder), device="cpu").encode(texts), atol=1e-6)


def test_a_prompt_is_cut_off_where_sentence_transformers_cuts_it_off(tiny_bert, tmp_path):
    folder = with_settings(tmp_path / "m", tiny_bert, truncation_side="left")
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "big red "}}')
    text = " ".join(random.Random(1).choices(WORDS, k=3000))
    encode = TextEncoder(load_encoder(folder, device="cpu"), role="query")
    expected = SentenceTransformer(str(folder), device="cpu").encode_query([text])
    np.testing.assert_allclose(encode([text]), expected, atol=1e-6)
    assert encode.truncated == 1
