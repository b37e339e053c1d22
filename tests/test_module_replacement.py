"""Which modules become ternary: every encoder family through the same code, and a reason for what stays."""

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from ternarize_cli.encoders import anatomy, checkpoint, module_replacement
from ternarize_cli.errors import CheckpointError, InputError
from ternarize_cli.format.scheme import Artifact, Scheme
from ternarize_cli.layers import TernaryLinear

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
    plan = module_replacement.plan(model, Scheme(), present=present(model))
    assert list(plan.linears) == linears
    assert plan.kept == {}
    module_replacement.replace(model, Artifact(stage="latent"))
    assert [n for n, m in model.named_modules() if isinstance(m, TernaryLinear)] == linears


def test_skip_patterns_keep_modules_and_say_why() -> None:
    model = small_bert()
    plan = module_replacement.plan(model, Scheme(), present=present(model), skip=["pooler*", "*word_embeddings"])
    assert plan.kept == {"embeddings.word_embeddings": "--skip *word_embeddings", "pooler.dense": "--skip pooler*"}
    assert "pooler.dense" not in plan.linears


def test_a_skip_pattern_without_a_match_is_wrong_usage() -> None:
    model = small_bert()
    with pytest.raises(InputError, match="'poler' matches no linear"):
        module_replacement.plan(model, Scheme(), present=present(model), skip=["poler"])


def test_a_pooler_that_the_source_lacks_is_left_alone() -> None:
    model = small_bert()
    names = {n for n in present(model) if not n.startswith("pooler")}
    plan = module_replacement.plan(model, Scheme(), present=names)
    assert plan.kept == {"pooler.dense": "not in the source"}


def test_children_of_multihead_attention_are_left_alone() -> None:
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    plan = module_replacement.plan(model, Scheme(), present=present(model))
    assert plan.linears == ("1",)
    assert "nn.MultiheadAttention" in plan.kept["0.out_proj"]


def test_groups_that_do_not_divide_a_width_name_the_layer() -> None:
    model = small_bert()
    with pytest.raises(InputError, match=r"encoder\.layer\.0\.attention\.self\.query: groups of 5 do not divide 16"):
        module_replacement.plan(model, Scheme(granularity="group", group_size=5), present=present(model))


def test_a_model_without_linears_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"nothing to ternarise"):
        module_replacement.plan(nn.Sequential(nn.Conv2d(1, 1, 1)), Scheme(), present={"0.weight"})


def test_names_match_inside_a_larger_model() -> None:
    with torch.device("meta"):
        larger = BertForSequenceClassification(MODELS[0][1])
    names = anatomy.names_in_encoder(larger)
    assert names["bert.pooler.dense"] == "pooler.dense"
    assert "classifier" not in names
    assert all(name == own for name, own in anatomy.names_in_encoder(small_bert()).items())
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


def test_little_linears_stay() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 1))
    plan = module_replacement.plan(model, Scheme(), present=present(model))
    assert plan.linears == ("0",)
    assert plan.kept == {"1": "1 × 16 is too small to gain by it"}


def test_a_module_used_twice_is_replaced_once_everywhere() -> None:
    model = nn.ModuleDict({"a": nn.Linear(16, 16), "b": nn.Sequential(nn.ReLU())})
    model["b"].append(model["a"])
    plan = module_replacement.plan(model, Scheme(), present=present(model))
    assert plan.linears == ("a",)
    module_replacement.replace(model, Artifact(stage="latent"))
    assert isinstance(model["a"], TernaryLinear)
    assert "b.1.weight" not in model.state_dict()


def test_a_weight_that_is_table_and_linear_at_once_stays() -> None:
    model = nn.ModuleDict(
        {"table": nn.Embedding(16, 16), "head": nn.Linear(16, 16, bias=False), "x": nn.Linear(16, 16)}
    )
    model["head"].weight = model["table"].weight
    plan = module_replacement.plan(model, Scheme(), present=present(model))
    assert (plan.linears, plan.tables) == (("x",), ())
    assert set(plan.kept) == {"table", "head"}
    assert "share one weight" in plan.kept["table"]


class Offset(nn.Embedding):
    """A table that looks up other rows than it is asked for, as BART's positions do."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids + 2)


def test_a_subclass_that_computes_something_else_stays() -> None:
    model = nn.Sequential(Offset(16, 16), nn.Linear(16, 16))
    plan = module_replacement.plan(model, Scheme(), present=present(model))
    assert plan.tables == ()
    assert plan.kept == {"0": "its class Offset does more than look up rows"}


def test_what_is_neither_linear_nor_table_is_in_the_plan_with_what_becomes_of_it() -> None:
    config = ViTConfig(image_size=64, patch_size=16, hidden_size=96, num_hidden_layers=1, num_attention_heads=2)
    with torch.device("meta"):
        model = ViTModel(config)
    others = module_replacement.plan(model, Scheme(), present=present(model)).others
    assert others["embeddings.patch_embeddings.projection.weight"] == "of a Conv2d: float16 when packed"
    assert others["3 × LayerNorm"] == "small (576 weights), as in the source"
