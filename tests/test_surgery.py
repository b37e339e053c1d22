"""Which modules become ternary: every encoder family through the same code, and a reason for what stays."""

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from ternarize_cli import surgery
from ternarize_cli.errors import CheckpointError, InputError
from ternarize_cli.layers import TernaryLinear
from ternarize_cli.scheme import Artifact, Scheme

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
MODELS = [
    (BertModel, BertConfig(vocab_size=20, **SMALL)),
    (RobertaModel, RobertaConfig(vocab_size=20, **SMALL)),
    (XLMRobertaModel, XLMRobertaConfig(vocab_size=20, **SMALL)),
    (DistilBertModel, DistilBertConfig(vocab_size=20, dim=16, n_layers=1, n_heads=2, hidden_dim=32)),
    (ViTModel, ViTConfig(image_size=8, patch_size=4, **SMALL)),
]


def small_bert() -> BertModel:
    with torch.device("meta"):
        return BertModel(MODELS[0][1])


def present(model: nn.Module) -> set[str]:
    return set(model.state_dict())


@pytest.mark.parametrize(("kind", "config"), MODELS, ids=lambda x: getattr(x, "__name__", ""))
def test_every_linear_is_planned_and_replaced(kind: type[PreTrainedModel], config: object) -> None:
    with torch.device("meta"):
        model = kind(config)  # type: ignore[arg-type]
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    plan = surgery.plan(model, Scheme(), present=present(model))
    assert list(plan.linears) == linears
    assert plan.kept == {}
    surgery.replace(model, Artifact(stage="latent"))
    assert [n for n, m in model.named_modules() if isinstance(m, TernaryLinear)] == linears


def test_skip_patterns_keep_modules_and_say_why() -> None:
    model = small_bert()
    plan = surgery.plan(model, Scheme(), present=present(model), skip=["pooler*", "*word_embeddings"])
    assert plan.kept == {"embeddings.word_embeddings": "--skip *word_embeddings", "pooler.dense": "--skip pooler*"}
    assert "pooler.dense" not in plan.linears


def test_a_skip_pattern_without_a_match_is_wrong_usage() -> None:
    model = small_bert()
    with pytest.raises(InputError, match="'poler' matches no linear"):
        surgery.plan(model, Scheme(), present=present(model), skip=["poler"])


def test_a_pooler_that_the_source_lacks_is_left_alone() -> None:
    model = small_bert()
    names = {n for n in present(model) if not n.startswith("pooler")}
    plan = surgery.plan(model, Scheme(), present=names)
    assert plan.kept == {"pooler.dense": "not in the source"}


def test_children_of_multihead_attention_are_left_alone() -> None:
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    plan = surgery.plan(model, Scheme(), present=present(model))
    assert plan.linears == ("1",)
    assert "nn.MultiheadAttention" in plan.kept["0.out_proj"]


def test_groups_that_do_not_divide_a_width_name_the_layer() -> None:
    model = small_bert()
    with pytest.raises(InputError, match=r"encoder\.layer\.0\.attention\.self\.query: groups of 5 do not divide 16"):
        surgery.plan(model, Scheme(granularity="group", group_size=5), present=present(model))


def test_a_model_without_linears_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"no nn\.Linear"):
        surgery.plan(nn.Sequential(nn.Conv2d(1, 1, 1)), Scheme(), present={"0.weight"})


def test_names_match_inside_a_larger_model() -> None:
    artifact = Artifact(stage="packed", modules_to_not_convert=("pooler.dense",))
    assert surgery.kept_by("bert.pooler.dense", artifact)
    assert not surgery.kept_by("bert.encoder.dense", artifact)
    assert not surgery.kept_by("mypooler.dense", artifact)
