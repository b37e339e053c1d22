"""What becomes of each tensor: every encoder family through the same code, and a reason for what stays."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from support.models import add_dense, save_tiny_bert
from ternarize_cli.compress.options import ConvertOptions
from ternarize_cli.compress.source_model import ConversionPlan, source_parts
from ternarize_cli.compress.tensor_policy import (
    SourceTensor,
    TensorDecision,
    TensorPolicy,
    policy_of_artifact,
    policy_of_source,
)
from ternarize_cli.encoders import module_replacement
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
QUERY = "encoder.layer.0.attention.self.query"


def on_meta(kind: Any, config: object) -> Any:
    with torch.device("meta"):
        return kind(config)


def policy_of(model: nn.Module, scheme: Scheme | None = None, skip: Mapping[str, str] | None = None) -> TensorPolicy:
    return policy_of_source(model, scheme or Scheme(), set(model.state_dict()), skip or {})


def decide(policy: TensorPolicy, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> TensorDecision:
    return policy.decide(SourceTensor(name, name, name, "model.safetensors", dtype, shape))


def plan_of(source: Path, scheme: Scheme | None = None, **options: Any) -> dict[str, TensorDecision]:
    parts = source_parts(source, scheme or Scheme(), ConvertOptions(**options))
    return {decision.key: decision for decision in ConversionPlan.of(parts).tensors}


# ---- modules


@pytest.mark.parametrize(("kind", "config"), MODELS, ids=lambda x: getattr(x, "__name__", ""))
def test_every_linear_is_planned_and_replaced(kind: type[PreTrainedModel], config: object) -> None:
    model = on_meta(kind, config)
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    policy = policy_of(model)
    assert list(policy.linears) == linears
    assert policy.excluded == {}
    module_replacement.replace(model, Artifact(stage="latent"))
    assert [n for n, m in model.named_modules() if isinstance(m, TernaryLinear)] == linears


def test_an_artifact_gives_the_policy_of_its_source_with_another_reason() -> None:
    model = on_meta(*MODELS[0])
    made = policy_of(model, skip={"pooler*": "--skip pooler*"})
    read = policy_of_artifact(model, Artifact(stage="latent", modules_to_not_convert=tuple(made.excluded)))
    assert (read.linears, read.tables, read.classes) == (made.linears, made.tables, made.classes)
    assert read.excluded == {"pooler.dense": "excluded when the model was converted"}
    assert [read.kind(n) for n in (QUERY, "embeddings.word_embeddings", "pooler.dense")] == [
        "ternary",
        "table",
        "dense",
    ]


def test_skip_patterns_exclude_modules_and_say_why(tiny_bert: Path) -> None:
    (part,) = source_parts(tiny_bert, Scheme(), ConvertOptions(skip=["pooler*", "*word_embeddings"]))
    assert part.policy.excluded == {
        "embeddings.word_embeddings": "--skip *word_embeddings",
        "pooler.dense": "--skip pooler*",
    }
    assert "pooler.dense" not in part.policy.linears


def test_a_skip_pattern_without_a_match_is_wrong_usage(tiny_bert: Path) -> None:
    with pytest.raises(InputError, match="'poler' matches no linear") as caught:
        source_parts(tiny_bert, Scheme(), ConvertOptions(skip=["pooler*", "poler"]))
    assert "ternarize inspect" in str(caught.value.hint)


def test_a_pooler_that_the_source_lacks_is_left_alone() -> None:
    model = on_meta(*MODELS[0])
    present = {n for n in model.state_dict() if not n.startswith("pooler")}
    assert policy_of_source(model, Scheme(), present, {}).excluded == {"pooler.dense": "not in the source"}


def test_children_of_multihead_attention_are_left_alone() -> None:
    policy = policy_of(nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8)))
    assert list(policy.linears) == ["1"]
    assert policy.excluded == {"0.out_proj": "inside nn.MultiheadAttention, which reads its weights directly"}


def test_a_table_that_its_parent_reads_stays() -> None:
    policy = policy_of(on_meta(DebertaV2Model, DebertaV2Config(vocab_size=20, relative_attention=True, **SMALL)))
    assert policy.excluded == {"encoder.rel_embeddings": "DebertaV2Encoder reads its weight directly"}


def test_what_a_parent_without_source_may_read_stays_and_says_why() -> None:
    space: dict[str, Any] = {}
    exec("from torch import nn\nclass Made(nn.Module):\n    pass\n", space)
    model = nn.ModuleDict({"made": space["Made"](), "plain": nn.Linear(16, 16)})
    model["made"].linear = nn.Linear(16, 16)
    policy = policy_of(model)
    assert list(policy.linears) == ["plain"]
    assert "Made can't be read" in policy.excluded["made.linear"]


@pytest.mark.parametrize("convert_to", ["convert", "dry_run"])
def test_groups_that_do_not_divide_a_width_name_the_layer(tiny_bert: Path, tmp_path: Path, convert_to: str) -> None:
    from ternarize_cli.compress.convert import convert
    from ternarize_cli.compress.dry_run import dry_run

    scheme = Scheme(granularity="group", group_size=5)
    with pytest.raises(InputError, match=rf"{QUERY}: groups of 5 do not divide 32 inputs") as caught:
        convert(tiny_bert, tmp_path / "out", scheme) if convert_to == "convert" else dry_run(tiny_bert, scheme)
    assert caught.value.hint == "another group size, --granularity row, or --skip for this layer"
    assert not (tmp_path / "out").exists()


def test_a_model_without_linears_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"nothing to ternarise"):
        policy_of_source(nn.Sequential(nn.Conv2d(1, 1, 1)), Scheme(), {"0.weight"}, {})


def test_a_model_whose_linears_are_all_skipped_is_told_so() -> None:
    model = nn.Sequential(nn.Linear(16, 16))
    with pytest.raises(CheckpointError, match=r"nothing to ternarise") as caught:
        policy_of_source(model, Scheme(), {"0.weight", "0.bias"}, {"*": "--skip *"})
    assert str(caught.value.hint).startswith("without --skip *, or with fewer patterns; ")


def test_little_linears_stay() -> None:
    policy = policy_of(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 1)))
    assert list(policy.linears) == ["0"]
    assert policy.excluded == {"1": "1 × 16 is too small to gain by it"}


def test_a_module_used_twice_is_decided_once() -> None:
    model = nn.ModuleDict({"a": nn.Linear(16, 16), "b": nn.Sequential(nn.ReLU())})
    model["b"].append(model["a"])
    assert list(policy_of(model).linears) == ["a"]


def test_a_weight_that_is_table_and_linear_at_once_stays() -> None:
    model = nn.ModuleDict(
        {"table": nn.Embedding(16, 16), "head": nn.Linear(16, 16, bias=False), "x": nn.Linear(16, 16)}
    )
    model["head"].weight = model["table"].weight
    policy = policy_of(model)
    assert (list(policy.linears), policy.tables) == (["x"], {})
    assert policy.excluded == dict.fromkeys(("table", "head"), "table and head share one weight and use it differently")


class Offset(nn.Embedding):
    """A table that looks up other rows than it is asked for, as BART's positions do."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids + 2)


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_a_subclass_that_computes_something_else_stays() -> None:
    policy = policy_of(nn.Sequential(Offset(16, 16), Doubled(16, 16), nn.Linear(16, 16)))
    assert policy.tables == {}
    assert policy.excluded == {
        "0": "its class Offset does more than look up rows",
        "1": "its class Doubled does more than multiply",
    }


# ---- tensors


def test_a_linear_becomes_codes_and_scales() -> None:
    policy = policy_of(on_meta(*MODELS[0]), Scheme(granularity="group", group_size=8))
    found = decide(policy, f"{QUERY}.weight", 16, 16)
    assert (found.fate, found.reason) == ("ternary", "the weight of a linear")
    assert found.checkpoint == {found.key: (torch.float32, (16, 16)), f"{found.key}_scale": (torch.float32, (16, 2))}
    assert found.packed == {found.key: (torch.uint8, (16, 4)), f"{found.key}_scale": (torch.float16, (16, 2))}
    assert (found.bytes_source, found.bytes_packed) == (4 * 256, 64 + 2 * 32)


def test_a_conv1d_is_a_linear_on_its_side() -> None:
    policy = policy_of(on_meta(GPT2Model, GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2)))
    found = decide(policy, "h.0.attn.c_attn.weight", 16, 48)
    assert (found.transposed, found.matrix) == (True, (48, 16))
    assert found.checkpoint[found.key] == (torch.float32, (16, 48))
    assert found.packed[found.key] == (torch.uint8, (48, 4))


@pytest.mark.parametrize(
    ("table_bits", "module", "bits", "packed"),
    [
        (8, "word", 8, (torch.int8, (64, 32))),
        (4, "word", 4, (torch.uint8, (64, 16))),
        (4, "position", 8, (torch.int8, (64, 32))),
        (16, "position", 16, (torch.float16, (64, 32))),
        (32, "word", 32, (torch.float32, (64, 32))),
    ],
)
def test_a_table_has_the_width_that_the_scheme_gives_it(
    table_bits: int, module: str, bits: int, packed: tuple[torch.dtype, tuple[int, int]]
) -> None:
    policy = policy_of(on_meta(*MODELS[0]), Scheme(table_bits=table_bits))
    found = decide(policy, f"embeddings.{module}_embeddings.weight", 64, 32)
    assert (found.fate, found.reason) == ("table", f"the rows of an embedding: {bits} bits when packed")
    assert found.checkpoint == {found.key: (torch.float32, (64, 32))}
    assert found.packed[found.key] == packed
    assert (f"{found.key}_scale" in found.packed) == (bits < 16)


def test_a_large_tensor_is_halved_and_a_small_one_kept() -> None:
    policy = policy_of(on_meta(*MODELS[4]))
    patches = "embeddings.patch_embeddings.projection.weight"
    large = decide(policy, patches, 16, 4097, dtype=torch.bfloat16)
    assert (large.fate, large.reason) == ("half", "of a Conv2d: float16 when packed")
    assert (large.checkpoint, large.packed) == (
        {patches: (torch.float32, (16, 4097))},
        {patches: (torch.float16, (16, 4097))},
    )
    small = decide(policy, patches, 16, 4096, dtype=torch.bfloat16)
    assert (small.fate, small.reason) == ("kept", "small, as in the source")
    assert small.checkpoint == small.packed == {patches: (torch.bfloat16, (16, 4096))}
    assert decide(policy, "layernorm.unknown", 65_537).reason == "float16 when packed"


def test_a_tensor_of_an_excluded_module_is_kept_whatever_its_size() -> None:
    policy = policy_of(on_meta(*MODELS[0]), skip={"pooler*": "--skip pooler*"})
    found = decide(policy, "pooler.dense.weight", 500, 500)
    assert (found.fate, found.reason) == ("kept", "--skip pooler*")
    assert found.packed == {found.key: (torch.float32, (500, 500))}


def test_whole_numbers_are_kept_whatever_their_size() -> None:
    found = decide(policy_of(on_meta(*MODELS[0])), "embeddings.position_ids", 1, 100_000, dtype=torch.int64)
    assert (found.fate, found.reason) == ("kept", "no floating-point numbers, as in the source")
    assert found.packed == {found.key: (torch.int64, (1, 100_000))}


def test_a_group_size_that_does_not_fit_is_refused_and_nothing_is_written() -> None:
    policy = policy_of(on_meta(*MODELS[0]), Scheme(granularity="group", group_size=5))
    found = decide(policy, f"{QUERY}.weight", 16, 16)
    assert (found.fate, found.reason) == ("refused", "groups of 5 do not divide 16 inputs")
    assert found.checkpoint == found.packed == {}


def test_calibration_fits_biases_and_adds_those_that_lack(tmp_path: Path) -> None:
    torch.manual_seed(0)
    from transformers import Qwen3Config, Qwen3Model

    settings = {**SMALL, "num_key_value_heads": 1, "head_dim": 8, "attention_bias": True}
    Qwen3Model(Qwen3Config(vocab_size=20, **settings)).half().save_pretrained(tmp_path)
    (part,) = source_parts(tmp_path, Scheme(), ConvertOptions())
    key, q = "layers.0.mlp.up_proj.bias", "layers.0.self_attn.q_proj.bias"
    assert key not in part.decisions
    assert part.decisions[q].packed == {q: (torch.float16, (16,))}
    decisions = part.calibrated(part.policy.linears).decisions
    assert (decisions[key].fate, decisions[key].reason) == ("added", "calibration fits a bias")
    assert decisions[key].checkpoint == decisions[key].packed == {key: (torch.float32, (32,))}
    assert (decisions[key].bytes_source, decisions[key].bytes_packed) == (0, 128)
    assert (decisions[q].fate, decisions[q].reason) == ("kept", "small; calibration fits its values")
    assert decisions[q].packed == {q: (torch.float32, (16,))}
    assert decisions["norm.weight"].reason == "small, as in the source"


def test_tied_and_dropped_tensors_are_not_stored(tmp_path: Path) -> None:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors |= {"encoder.embed_tokens.weight": tensors["shared.weight"].clone(), "head.weight": torch.ones(9, 9)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    plan = plan_of(tmp_path)
    tied, dropped = plan["encoder.embed_tokens.weight"], plan["head.weight"]
    assert (tied.fate, tied.reason) == ("tied", "one weight with shared.weight, which is stored")
    assert (dropped.fate, dropped.reason) == ("dropped", "the encoder has no place for it")
    assert plan["shared.weight"].fate == "table"
    assert tied.checkpoint == tied.packed == dropped.checkpoint == dropped.packed == {}


def test_a_dense_module_is_decided_over_and_its_names_have_its_prefix(tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source")
    add_dense(source)
    assert plan_of(source)["2_Dense.linear.weight"].fate == "ternary"
    for options, reason in (({"keep_dense": True}, "--keep-dense"), ({"skip": ["2_*"]}, "--skip 2_*")):
        found = plan_of(source, **options)["2_Dense.linear.weight"]
        assert (found.fate, found.reason) == ("kept", reason)


def test_what_is_neither_linear_nor_table_is_in_the_plan_with_what_becomes_of_it(tmp_path: Path) -> None:
    config = ViTConfig(image_size=64, patch_size=16, hidden_size=96, num_hidden_layers=1, num_attention_heads=2)
    ViTModel(config).save_pretrained(tmp_path)
    plan = ConversionPlan.of(source_parts(tmp_path, Scheme(), ConvertOptions()))
    assert plan.others["embeddings.patch_embeddings.projection.weight"] == "of a Conv2d: float16 when packed"
    assert plan.others["3 × LayerNorm"] == "small (576 weights), as in the source"
    counted = [
        d
        for d in plan.tensors
        if d.fate in ("half", "kept") and d.module not in {t.module for t in plan.having("ternary")}
    ]
    assert sum(math.prod(d.shape) for d in counted if d.fate == "half") == 96 * 3 * 16 * 16
