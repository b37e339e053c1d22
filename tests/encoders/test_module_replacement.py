"""Modules are swapped on a skeleton as an artifact's description says."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel, ModernBertConfig, ModernBertModel

from ternarize_cli.encoders import anatomy, checkpoint, module_replacement
from ternarize_cli.errors import FormatError
from ternarize_cli.format.scheme import Artifact, Scheme
from ternarize_cli.layers import TernaryLinear

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def test_names_match_inside_a_larger_model() -> None:
    with torch.device("meta"):
        larger = BertForSequenceClassification(BertConfig(vocab_size=20, **SMALL))
    names = anatomy.names_in_encoder(larger)
    assert names["bert.pooler.dense"] == "pooler.dense"
    assert "classifier" not in names
    assert all(name == own for name, own in anatomy.names_in_encoder(larger.bert).items())
    module_replacement.replace(larger, Artifact(stage="latent", modules_to_not_convert=("pooler.dense",)))
    kept = [n for n, m in larger.named_modules() if type(m) is nn.Linear]
    assert kept == ["bert.pooler.dense", "classifier"]


@pytest.mark.parametrize("stage", ["latent", "packed"])
def test_added_biases_are_made_and_found(stage: str) -> None:
    config = ModernBertConfig(vocab_size=20, pad_token_id=0, **SMALL)
    with torch.device("meta"):
        model = ModernBertModel(config)
    name = "layers.0.mlp.Wo"
    assert model.get_submodule(name).bias is None
    codec = "2bit" if stage == "packed" else None
    module_replacement.replace(model, Artifact(stage=stage, codec=codec, added_biases=(name,)))
    assert model.get_submodule(name).bias.shape == (16,)
    assert model.get_submodule("layers.0.attn.Wo").bias is None
    assert checkpoint.names_in_model(model, [f"{name}.bias"]) == {f"{name}.bias": f"{name}.bias"}


def test_a_module_used_twice_is_replaced_once_everywhere() -> None:
    model = nn.ModuleDict({"a": nn.Linear(16, 16), "b": nn.Sequential(nn.ReLU())})
    model["b"].append(model["a"])
    assert module_replacement.replace(model, Artifact(stage="latent")) == ["a"]
    assert isinstance(model["a"], TernaryLinear)
    assert "b.1.weight" not in model.state_dict()


@pytest.mark.parametrize("stage", ["latent", "packed"])
def test_a_group_size_that_does_not_fit_breaks_the_format(stage: str) -> None:
    scheme, codec = Scheme(granularity="group", group_size=5), "2bit" if stage == "packed" else None
    with torch.device("meta"):
        model = BertModel(BertConfig(vocab_size=20, **SMALL))
    with pytest.raises(FormatError, match=r"encoder\.layer\.0\.attention\.self\.query: groups of 5 do not divide 16"):
        module_replacement.replace(model, Artifact(stage, scheme, codec))
