"""A text longer than a model's table of positions is cut, whatever the configs say."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPModel

from support.families import CLIP, CLIP_IMAGE, SMALL, TEXT, TEXT_FAMILIES, Family, save_text
from support.models import save_word_tokenizer
from ternarize_cli.compress.session import convert, pack
from ternarize_cli.encoders.loading import load, load_encoder
from ternarize_cli.encoders.positions import readable_tokens

LONG = " ".join(["cat dog river"] * 40)
TABLES = {"BertModel": 80, "RobertaModel": 79, "XLMRobertaModel": 79, "DistilBertModel": 80, "MPNetModel": 78}
TABLES |= {"AlbertModel": 80, "ElectraModel": 80, "GPT2Model": 80, "DebertaV2Model": 80}


def _asks_for(folder: Path, length: int) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": length}))
    prefix = "sentence_transformers.models."
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    listed = [{"idx": i, "name": str(i), "path": p, "type": prefix + k} for i, (p, k) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length, "do_lower_case": False}))


@pytest.mark.slow
@pytest.mark.parametrize("family", TEXT_FAMILIES, ids=lambda family: family[0])
def test_a_long_text_is_cut_at_the_rows_of_the_table(family: Family, tmp_path: Path) -> None:
    source = save_text(family, tmp_path / "source")
    _asks_for(source, 1000)
    limit = TABLES.get(family[0])
    convert(source, tmp_path / "made")
    pack(tmp_path / "made", tmp_path / "packed")
    for folder in (source, tmp_path / "made", tmp_path / "packed"):
        encoder = load(folder, device="cpu")
        assert encoder.max_seq_length == (limit or 1000)
        assert np.isfinite(encoder.encode([LONG])).all()
    if limit:
        with torch.inference_mode():
            model = AutoModel.from_pretrained(source).eval()
            model(torch.full((1, limit), 7))
            with pytest.raises((IndexError, RuntimeError)):
                model(torch.full((1, limit + 1), 7))


def test_the_result_is_cut_in_sentence_transformers_too_and_convert_says_so(tmp_path: Path, run: Any) -> None:
    source = save_text(("BertModel", "BertConfig", SMALL | TEXT | {"max_position_embeddings": 16}), tmp_path / "source")
    _asks_for(source, 64)
    done = run("convert", source, "-o", tmp_path / "made")
    assert "max_seq_length is 64, and the model has positions for 16 tokens" in " ".join(done.stderr.split())
    encoder = SentenceTransformer(str(tmp_path / "made"), device="cpu")
    assert encoder.max_seq_length == 16
    assert encoder.encode([LONG]).shape == (1, 32)
    shutil.rmtree(tmp_path / "made")
    (source / "sentence_bert_config.json").unlink()
    assert not any("positions" in note for note in convert(source, tmp_path / "made").notes)
    assert load_encoder(source, device="cpu").max_seq_length == 16


def test_of_a_clip_the_texts_positions_count(tmp_path: Path) -> None:
    text = CLIP | {"vocab_size": save_word_tokenizer(tmp_path), "max_position_embeddings": 20}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=CLIP_IMAGE | {"image_size": 8}))
    assert readable_tokens(model) == 20


def test_positions_that_are_computed_have_no_end() -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model("modernbert", num_hidden_layers=1))
    assert readable_tokens(model) is None
