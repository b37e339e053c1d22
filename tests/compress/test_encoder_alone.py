"""Models of which sentence-transformers runs another class than AutoModel's, or none, and layers that would be lost."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from support.families import T5, enlarge
from support.models import save_tiny_bert, save_word_tokenizer
from ternarize_cli.compress.result_check import with_latent_weights
from ternarize_cli.compress.session import convert, pack
from ternarize_cli.encoders.loading import load
from ternarize_cli.errors import CheckpointError

TEXTS = ["the cat on the house", "a dog by the river of water"]
BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48}
BART |= {"decoder_attention_heads": 4, "decoder_ffn_dim": 48, "max_position_embeddings": 80, "pad_token_id": 0}
BART |= {"bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2, "init_std": 0.15}
SEPARATE = ["M2M100", "Marian", "Pegasus", "PegasusX", "Blenderbot", "BlenderbotSmall"]


def _save(kind: str, settings: dict[str, Any], folder: Path, *, alone: bool = False, end: str = "Model") -> Path:
    folder.mkdir()
    words = save_word_tokenizer(folder)
    torch.manual_seed(0)
    model = getattr(hf, kind + end)(getattr(hf, f"{kind}Config")(**settings | {"vocab_size": words}))
    enlarge(model)
    (model.get_encoder() if alone else model).save_pretrained(folder)
    return folder


def _assert_travels(source: Path, tmp_path: Path) -> None:
    """Computed with its latent weights, the checkpoint gives what sentence-transformers gives for the source."""
    wanted = SentenceTransformer(str(source), device="cpu").encode(TEXTS)
    convert(source, tmp_path / "made")
    pack(tmp_path / "made", tmp_path / "packed")
    encoder = load(tmp_path / "made", device="cpu")
    with with_latent_weights(encoder):
        np.testing.assert_allclose(encoder.encode(TEXTS), wanted, atol=1e-4)
    assert load(tmp_path / "packed", device="cpu").encode(TEXTS).shape == wanted.shape


@pytest.mark.parametrize("kind", SEPARATE)
@pytest.mark.parametrize("end", ["Model", "ForConditionalGeneration"])
def test_an_encoder_inside_an_encoder_decoder_is_refused_and_not_filled_at_random(
    kind: str, end: str, tmp_path: Path
) -> None:
    end = "MTModel" if (kind, end) == ("Marian", "ForConditionalGeneration") else end
    source = _save(kind, BART, tmp_path / "source", end=end)
    for use in (lambda: convert(source, tmp_path / "made"), lambda: load(source, device="cpu")):
        with pytest.raises(CheckpointError, match=f"runs its encoder alone, as {kind}Encoder") as caught:
            use()
        assert "get_encoder().save_pretrained" in str(caught.value.hint)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", SEPARATE)
def test_an_encoder_that_was_saved_alone_travels(kind: str, tmp_path: Path) -> None:
    _assert_travels(_save(kind, BART, tmp_path / "source", alone=True), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Bart", "MBart", "PLBart"])
def test_an_encoder_decoder_that_runs_whole_travels(kind: str, tmp_path: Path) -> None:
    _assert_travels(_save(kind, BART, tmp_path / "source"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["T5", "MT5", "UMT5", "LongT5", "SwitchTransformers"])
def test_of_a_t5_the_encoder_travels(kind: str, tmp_path: Path) -> None:
    _assert_travels(_save(kind, T5, tmp_path / "source"), tmp_path)


@pytest.mark.parametrize("kind", ["DPRContextEncoder", "DPRQuestionEncoder", "DPRReader"])
def test_a_dpr_is_refused_and_the_bert_inside_is_its_model(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    model = getattr(hf, kind)(hf.DPRConfig(vocab_size=save_word_tokenizer(source), **small)).eval()
    model.save_pretrained(source)
    with pytest.raises(CheckpointError, match=f"is a {kind}") as caught:
        convert(source, tmp_path / "made")
    hint = str(caught.value.hint)
    inner = model
    for name in hint.partition("from_pretrained(MODEL).")[2].partition(".save_pretrained")[0].split("."):
        inner = getattr(inner, name)
    assert isinstance(inner, hf.BertModel)
    ids = torch.tensor([[2, 9, 11, 3]])
    if kind != "DPRReader":
        assert torch.equal(inner(ids).last_hidden_state[:, 0], model(ids).pooler_output)


@pytest.mark.parametrize("architecture", ["HF_ColBERT", "BertModel"])
@pytest.mark.parametrize("prefix", ["bert.", ""])
@pytest.mark.parametrize("plain", [True, False])
def test_a_projection_beside_the_encoder_is_not_lost(
    architecture: str, prefix: str, plain: bool, tmp_path: Path
) -> None:
    source = save_tiny_bert(tmp_path / "source")
    if plain:
        for name in ("1_Pooling", "2_Normalize"):
            shutil.rmtree(source / name)
        (source / "modules.json").unlink()
    tensors = {prefix + key: tensor for key, tensor in load_file(source / "model.safetensors").items()}
    tensors["linear.weight"] = torch.randn(16, 32)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text()) | {"architectures": [architecture]}
    (source / "config.json").write_text(json.dumps(config))
    for use in (lambda: convert(source, tmp_path / "made"), lambda: load(source, device="cpu")):
        with pytest.raises(CheckpointError, match="belongs to a layer beside the encoder"):
            use()


@pytest.mark.parametrize("kind", ["pylate.models.Dense.Dense", "sentence_transformers.models.Dense"])
def test_a_folder_that_keeps_a_vector_for_each_token_is_refused(kind: str, tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source")
    module = {"idx": 1, "name": "1", "path": "1_Dense", "type": kind}
    first = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    (source / "modules.json").write_text(json.dumps([first, module]))
    (source / "1_Dense").mkdir()
    dense = {"in_features": 32, "out_features": 16, "bias": False}
    dense["activation_function"] = "torch.nn.modules.linear.Identity"
    (source / "1_Dense" / "config.json").write_text(json.dumps(dense))
    save_file({"linear.weight": torch.randn(16, 32)}, source / "1_Dense" / "model.safetensors")
    with pytest.raises(CheckpointError):
        convert(source, tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
