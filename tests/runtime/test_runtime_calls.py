"""How the runtime is called: one text or many, wrong arguments, copies, forks, and folders that are not as packed."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.families import SMALL, TEXT, stages
from support.fused_families import needs_native
from support.heads import PAIRS, save_headed
from support.models import add_dense, save_tiny_bert
from support.packed_models import TEXTS, packed_text, variant
from ternarize_cli.errors import CheckpointError, InputError, UnavailableError
from ternarize_cli.runtime import Encoder, Reranker, Tokens

pytestmark = needs_native
BERT = ("BertModel", "BertConfig", SMALL | TEXT)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed_text(BERT, tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def encoder(packed: Path) -> Encoder:
    return Encoder(packed)


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    folder = tmp_path_factory.mktemp("reranker")
    return Reranker(stages(save_headed(folder / "source"), folder)[2])


def test_one_text_gives_its_vector(encoder: Encoder) -> None:
    vector = encoder.encode("the cat", dimensions=8)
    assert vector.shape == (8,)
    assert np.array_equal(vector, encoder.encode(["the cat"], dimensions=8)[0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda e: e.encode(["a"], dimensions=2.0), "dimensions is 2.0"),
        (lambda e: e.encode(["a"], dimensions="2"), "dimensions is '2'"),
        (lambda e: e.encode(["a"], dimensions=True), "dimensions is True"),
        (lambda e: e.encode(["a"], prompt=5), "5 is no text"),
        (lambda e: e.encode(["a"], prompt="\ud800"), "which is no character"),
        (lambda e: e.encode(["a"], prompt="x", prompt_name="query"), "exclude each other"),
        (lambda e: e.encode(["a"], prompt_name=[]), r"\[\] is no name of a prompt"),
        (lambda e: e.tokenize("abc"), "one text is given"),
        (lambda e: e.encode_images(Image.new("RGB", (5, 5))), "takes a list of images"),
        (lambda e: e.encode_tokens([Tokens([1, 2], [0])]), "not as many types as tokens"),
        (lambda e: e.encode_tokens([Tokens([1 << 70], [0])]), "no whole numbers"),
        (lambda e: e.encode_tokens([Tokens([1.5], [0])]), "no whole numbers"),
    ],
)
def test_a_wrong_call_ends_in_words(call: Callable[[Any], object], words: str, encoder: Encoder) -> None:
    with pytest.raises(InputError, match=words):
        call(encoder)


def test_a_copy_opens_the_folder_again(encoder: Encoder, reranker: Reranker) -> None:
    assert np.array_equal(pickle.loads(pickle.dumps(encoder)).encode(TEXTS), encoder.encode(TEXTS))
    assert np.array_equal(pickle.loads(pickle.dumps(reranker)).score(PAIRS), reranker.score(PAIRS))


def test_a_reranker_is_named_where_an_encoder_is_opened(reranker: Reranker) -> None:
    with pytest.raises(UnavailableError, match="gives scores, and makes no vectors") as caught:
        Encoder(reranker.folder)
    assert "Reranker(MODEL)" in str(caught.value.hint)


def test_weights_that_are_not_those_that_were_packed_are_refused(
    packed: Path, reranker: Reranker, tmp_path: Path
) -> None:
    for kind, folder in ((Encoder, packed), (Reranker, reranker.folder)):

        def damage(made: Path) -> None:
            content = bytearray((made / "model.safetensors").read_bytes())
            content[-1] ^= 1
            (made / "model.safetensors").write_bytes(bytes(content))

        changed = variant(folder, tmp_path / kind.__name__, damage, sealed=False)
        with pytest.raises(CheckpointError, match=r"model\.safetensors is not what was packed"):
            kind(changed)


def test_a_module_of_another_width_is_refused(tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source")
    add_dense(source)
    folder = stages(source, tmp_path)[2]
    modules = json.loads((folder / "modules.json").read_text())
    dense = next(m["path"] for m in modules if m["path"].endswith("Dense"))

    def twice(made: Path) -> None:  # the second reads what pooling gives, and gets what the first makes
        listed = [m for m in modules if m["path"] != dense]
        listed[2:2] = [{"path": dense, "type": "sentence_transformers.models.Dense"}] * 2
        (made / "modules.json").write_text(json.dumps([m | {"idx": i, "name": str(i)} for i, m in enumerate(listed)]))

    with pytest.raises(CheckpointError, match="a module Dense reads 32 dimensions, and the one before it makes 16"):
        Encoder(variant(folder, tmp_path / "twice", twice))


def test_a_special_token_that_is_no_text_is_refused(packed: Path, tmp_path: Path) -> None:
    def change(made: Path) -> None:
        path = made / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"mask_token": "\ud800"}))

    with pytest.raises(CheckpointError, match="mask_token of the tokenizer"):
        Encoder(variant(packed, tmp_path / "changed", change))


@pytest.mark.slow
@pytest.mark.parametrize("first", ["", "import torch;"], ids=["own threads", "those of PyTorch"])
def test_a_forked_process_encodes(first: str, packed: Path) -> None:
    code = f"""{first}
import os, sys, numpy
from ternarize_cli.runtime import Encoder
from ternarize_cli.runtime.native.threads import set_threads
set_threads(lambda: 2)
encoder, texts = Encoder(sys.argv[1]), {TEXTS!r} * 20
expected = encoder.encode(texts)
child = os.fork()
if not child:
    os._exit(0 if numpy.array_equal(encoder.encode(texts), expected) else 3)
assert os.waitpid(child, 0)[1] == 0
assert numpy.array_equal(encoder.encode(texts), expected)
"""
    subprocess.run([sys.executable, "-c", code, str(packed)], check=True, timeout=60)
