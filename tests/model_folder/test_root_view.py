"""Models whose encoder lies in a subfolder give the vectors that sentence-transformers gives for them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import CLIPConfig, CLIPModel

from support.families import CLIP_IMAGE
from support.models import save_tiny_bert, save_word_tokenizer
from ternarize_cli.compress.session import convert, pack
from ternarize_cli.encoders.loading import load, resolve
from ternarize_cli.errors import CheckpointError, InputError
from ternarize_cli.format.scheme import Scheme

TEXTS = ["the cat on the house", "a dog by the river of water"]
KIND = "sentence_transformers.models."


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def _in_subfolder(folder: Path, where: str, pooling: str = "cls_token", *, kind: str = "Transformer") -> Path:
    """A tiny BERT with its encoder in `where` and a pooling that is no default."""
    save_tiny_bert(folder / where)
    for name in ("modules.json", "1_Pooling", "2_Normalize"):
        path = folder / where / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    modules = [(where, kind), ("1_Pooling", "Pooling")]
    listed = [{"idx": i, "name": str(i), "path": path, "type": KIND + name} for i, (path, name) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / where / "sentence_bert_config.json").write_text('{"max_seq_length": 8, "do_lower_case": true}')
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{name}": name == pooling for name in ("cls_token", "mean_tokens", "max_tokens")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))
    return folder


@pytest.mark.parametrize("where", ["0_Transformer", "models/encoder", "0_BERT"])
@pytest.mark.parametrize("pooling", ["cls_token", "max_tokens"])
def test_an_encoder_in_a_subfolder_gives_its_vectors_at_every_stage(where: str, pooling: str, tmp_path: Path) -> None:
    source = _in_subfolder(tmp_path / "m", where, pooling)
    wanted = SentenceTransformer(str(source), device="cpu").encode(TEXTS)
    assert abs(load(source, device="cpu").encode(TEXTS) - wanted).max() < 1e-6
    convert(source, tmp_path / "made", Scheme(levels="int4"))
    pack(tmp_path / "made", tmp_path / "packed")
    for made in (tmp_path / "made", tmp_path / "packed"):
        encoder = load(made, device="cpu")
        found = encoder.encode(TEXTS)
        assert encoder.max_seq_length == 8
        assert cosine(found, wanted) > 0.98
        assert (made / "config.json").is_file()
        assert not (made / where.partition("/")[0]).exists()


def test_the_encoders_folder_alone_is_refused_and_names_the_model(tmp_path: Path, run: Callable[..., Any]) -> None:
    source = _in_subfolder(tmp_path / "m", "0_Transformer")
    done = run("convert", source / "0_Transformer", "-o", tmp_path / "made")
    assert done.exit_code == 2
    assert f"pass the whole model: {source}" in " ".join(done.stderr.split())


def test_the_output_may_not_be_the_model_that_a_view_shows(tmp_path: Path) -> None:
    source = _in_subfolder(tmp_path / "m", "0_Transformer")
    with pytest.raises(InputError, match="overlap"):
        convert(source, source, force=True)
    with pytest.raises(InputError, match="overlap"):
        convert(source, source / "inside")


def test_a_link_out_of_the_model_is_not_followed_through_a_view(tmp_path: Path) -> None:
    source = _in_subfolder(tmp_path / "m", "0_Transformer")
    (tmp_path / "secret.txt").write_text("[PAD]")
    (source / "0_Transformer" / "vocab.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(CheckpointError, match="link to a place outside"):
        convert(source, tmp_path / "made")


def test_a_missing_encoders_folder_is_said(tmp_path: Path) -> None:
    source = _in_subfolder(tmp_path / "m", "0_Transformer")
    shutil.rmtree(source / "0_Transformer")
    with pytest.raises(CheckpointError, match="puts the encoder in 0_Transformer, and the model has no such folder"):
        resolve(source)


@pytest.mark.parametrize("where", ["0_CLIPModel", ""])
def test_a_clip_model_of_sentence_transformers_gives_its_projected_features(where: str, tmp_path: Path) -> None:
    source = tmp_path / "m"
    root = source / where
    root.mkdir(parents=True)
    words = save_word_tokenizer(root)
    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    text |= {"vocab_size": words, "max_position_embeddings": 64, "bos_token_id": 2, "eos_token_id": 3}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text | {"projection_dim": 16}, vision_config=CLIP_IMAGE, projection_dim=16)
    CLIPModel(config).save_pretrained(root)
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16}}
    processor |= {"crop_size": {"height": 16, "width": 16}, "processor_class": "CLIPProcessor"}
    (root / "preprocessor_config.json").write_text(json.dumps(processor))
    listed = [{"idx": 0, "name": "0", "path": where, "type": KIND + "CLIPModel"}]
    (source / "modules.json").write_text(json.dumps(listed))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8))
    original = SentenceTransformer(str(source), device="cpu")
    convert(source, tmp_path / "made", Scheme(levels="int4"))
    pack(tmp_path / "made", tmp_path / "packed")
    encoder = load(tmp_path / "packed", device="cpu")
    for inputs in (TEXTS, [image]):
        found, wanted = encoder.encode(inputs), original.encode(inputs)
        assert found.shape == wanted.shape == (len(inputs), 16)
        assert cosine(found, wanted) > 0.8
