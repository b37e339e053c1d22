"""How each family of encoders names the parts of its blocks."""

from typing import Any

from ternarize_cli.encoders.blocks.reading import Family, FeedForward
from ternarize_cli.format.block_parts import Embeddings, PatchBias, Relative

__all__ = ["FAMILIES"]

_PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATED = FeedForward(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", gated=True)


def _causal(config: Any, kind: str) -> tuple[int | None, int | None]:
    """Returns what a token of a decoder sees: what comes before it, within a window if the block has one."""
    if not getattr(config, "is_causal", True):
        return None, None
    window = getattr(config, "sliding_window", None)
    if kind == "full_attention" and getattr(config, "layer_types", None):
        window = None
    return (None if window is None else window - 1), 0


def _gemma(config: Any, kind: str) -> tuple[int | None, int | None]:
    window = config.sliding_window - 1 if kind == "sliding_attention" else None
    return window, window if config.use_bidirectional_attention else 0


def _modernbert(config: Any, kind: str) -> tuple[int | None, int | None]:
    window = config.sliding_window if kind == "sliding_attention" else None
    return window, window


def _tables(words: str, types: str = "", positions: str = "", *, after_padding: bool = False) -> Any:
    """Returns a function that describes the embedding of a model; tables that the model lacks are left out."""

    def make(model: Any) -> Embeddings:
        def named(name: str) -> str | None:
            where, _, child = name.rpartition(".")
            return name if name and getattr(model.get_submodule(where), child, None) is not None else None

        factor = getattr(model.get_submodule(words), "scalar_embed_scale", 1.0)
        first = int(model.get_submodule("embeddings").padding_idx or 0) + 1 if after_padding else 0
        return Embeddings(words, named(types), named(positions), first, float(factor))

    return make


def _bert_refusal(model: Any) -> str | None:
    if hasattr(model, "embeddings_project"):
        return "its embeddings are narrower than its hidden states"
    if getattr(model.config, "is_decoder", False):
        return f"{type(model).__name__} is used as a decoder"
    kind = getattr(model.config, "position_embedding_type", None)
    return None if kind in (None, "absolute") else f"its positions are {kind}"


def _softcap_refusal(model: Any) -> str | None:
    cap = getattr(model.config, "attn_logit_softcapping", None)
    return None if cap is None else f"its attention scores are capped at {cap}"


_BERT_NAMES = ("embeddings.word_embeddings", "embeddings.token_type_embeddings", "embeddings.position_embeddings")
_BERT_NORMS = {
    "attention.sum": "attention.output.LayerNorm",
    "feed_forward.sum": "output.LayerNorm",
    "embeddings": "embeddings.LayerNorm",
}


def _bert(*, after_padding: bool = False) -> Family:
    return Family(
        layers="encoder.layer",
        qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
        output="attention.output.dense",
        feed_forwards=(FeedForward(("intermediate.dense",), "output.dense"),),
        norms=_BERT_NORMS,
        embeddings=_tables(*_BERT_NAMES, after_padding=after_padding),
        refusal=_bert_refusal,
    )


_MPNET = Family(
    layers="encoder.layer",
    qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    output="attention.attn.o",
    feed_forwards=(FeedForward(("intermediate.dense",), "output.dense"),),
    norms=_BERT_NORMS | {"attention.sum": "attention.LayerNorm"},
    embeddings=_tables("embeddings.word_embeddings", "", "embeddings.position_embeddings", after_padding=True),
    # the model takes 32 buckets and 128 tokens whatever its config says
    relative=lambda model: Relative("encoder.relative_attention_bias", 32, 128),
)

_DISTILBERT = Family(
    layers="transformer.layer",
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    output="attention.out_lin",
    feed_forwards=(FeedForward(("ffn.lin1",), "ffn.lin2"),),
    norms={
        "attention.sum": "sa_layer_norm",
        "feed_forward.sum": "output_layer_norm",
        "embeddings": "embeddings.LayerNorm",
    },
    activations=("activation",),
    embeddings=_tables("embeddings.word_embeddings", "", "embeddings.position_embeddings"),
)

_MODERNBERT = Family(
    layers="layers",
    qkv=("attn.Wqkv",),
    output="attn.Wo",
    feed_forwards=(FeedForward(("mlp.Wi",), "mlp.Wo", gated=True),),
    norms={
        "attention.before": "attn_norm",
        "feed_forward.before": "mlp_norm",
        "last": "final_norm",
        "embeddings": "embeddings.norm",
    },
    activations=("hidden_activation",),
    embeddings=_tables("embeddings.tok_embeddings"),
    seen=_modernbert,
    rotary=True,
    unnormed_first=True,
)


def _projected(norms: dict[str, str], **more: Any) -> Family:
    """Describes a family with the names of Llama: projections, a gated feed-forward, rotary positions."""
    return Family(
        layers="layers",
        qkv=_PROJECTIONS,
        output="self_attn.o_proj",
        feed_forwards=(_GATED,),
        norms=norms,
        rotary=True,
        **more,
    )


_NOMIC = _projected(
    {
        "attention.sum": "post_attention_layernorm",
        "feed_forward.sum": "post_mlp_layernorm",
        "embeddings": "embeddings.LayerNorm",
    },
    embeddings=_tables("embeddings.word_embeddings", "embeddings.token_type_embeddings"),
)

_DECODER_NORMS = {
    "attention.before": "input_layernorm",
    "feed_forward.before": "post_attention_layernorm",
    "last": "norm",
}
_HEAD_NORMS = {"query": "self_attn.q_norm", "key": "self_attn.k_norm"}
_EUROBERT = _projected(_DECODER_NORMS, embeddings=_tables("embed_tokens"))
_LLAMA = _projected(_DECODER_NORMS, embeddings=_tables("embed_tokens"), seen=_causal)
_QWEN3 = _projected(_DECODER_NORMS | _HEAD_NORMS, embeddings=_tables("embed_tokens"), seen=_causal)
_GEMMA3 = _projected(
    {
        "attention.before": "input_layernorm",
        "attention.after": "post_attention_layernorm",
        "feed_forward.before": "pre_feedforward_layernorm",
        "feed_forward.after": "post_feedforward_layernorm",
        "last": "norm",
        **_HEAD_NORMS,
    },
    activations=("hidden_activation",),
    embeddings=_tables("embed_tokens"),
    scale=lambda config, head: float(config.query_pre_attn_scalar**-0.5),
    seen=_gemma,
    refusal=_softcap_refusal,
)

_T5_TABLE = "layer.0.SelfAttention.relative_attention_bias"
_T5 = Family(
    layers="encoder.block",
    qkv=tuple(f"layer.0.SelfAttention.{name}" for name in "qkv"),
    output="layer.0.SelfAttention.o",
    feed_forwards=(
        FeedForward(("layer.1.DenseReluDense.wi",), "layer.1.DenseReluDense.wo"),
        FeedForward(
            ("layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1"), "layer.1.DenseReluDense.wo", gated=True
        ),
    ),
    norms={
        "attention.before": "layer.0.layer_norm",
        "feed_forward.before": "layer.1.layer_norm",
        "last": "encoder.final_layer_norm",
    },
    activations=("dense_act_fn",),
    embeddings=_tables("encoder.embed_tokens"),
    scale=lambda config, head: 1.0,
    relative=lambda model: Relative(
        f"encoder.block.0.{_T5_TABLE}",
        model.config.relative_attention_num_buckets,
        model.config.relative_attention_max_distance,
    ),
    extra=(_T5_TABLE,),
)


def _vision(layers: str, norms: tuple[str, str], last: str, gate: str | None = None, **more: Any) -> Family:
    return Family(
        layers=layers,
        qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        output="attention.o_proj",
        feed_forwards=(
            FeedForward(("mlp.fc1",), "mlp.fc2"),
            FeedForward(_GATED.up, _GATED.down, gated=True, activation=gate),
            FeedForward(("mlp.up_proj",), "mlp.down_proj"),
        ),
        norms={"attention.before": norms[0], "feed_forward.before": norms[1], "last": last},
        **more,
    )


_VIT = _vision("layers", ("layernorm_before", "layernorm_after"), "layernorm")
_SCALES = ("layer_scale1.lambda1", "layer_scale2.lambda1")
_DINOV2 = _vision("encoder.layer", ("norm1", "norm2"), "layernorm", "silu", layer_scales=_SCALES)
_DINOV3 = _vision("model.layer", ("norm1", "norm2"), "norm", layer_scales=_SCALES, rotary="patches")


def _beit_bias(model: Any) -> PatchBias | None:
    if model.shared_position_bias is not None:
        return PatchBias("shared_position_bias", shared=True)
    return None if model.layers[0].relative_position_bias is None else PatchBias("relative_position_bias")


def _beit_refusal(model: Any) -> str | None:
    both = model.shared_position_bias is not None and model.layers[0].relative_position_bias is not None
    return "it has relative positions of each block, and shared ones" if both else None


_BEIT = _vision(
    "layers",
    ("layernorm_before", "layernorm_after"),
    "layernorm",
    layer_scales=("lambda_1", "lambda_2"),
    patch_bias=_beit_bias,
    refusal=_beit_refusal,
)


def _tower(norms: dict[str, str], *, text: bool = False, causal: bool = False) -> Family:
    return Family(
        layers="encoder.layers",
        qkv=_PROJECTIONS,
        output="self_attn.out_proj",
        feed_forwards=(FeedForward(("mlp.fc1",), "mlp.fc2"),),
        norms={"attention.before": "layer_norm1", "feed_forward.before": "layer_norm2", **norms},
        embeddings=_tables("embeddings.token_embedding", "", "embeddings.position_embedding") if text else None,
        seen=(lambda config, kind: (None, 0)) if causal else (lambda config, kind: (None, None)),
    )


_AFTER_PADDING = ("RobertaModel", "XLMRobertaModel", "CamembertModel")
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("BertModel", "ElectraModel", "ErnieModel"), _bert()),
    **dict.fromkeys(_AFTER_PADDING, _bert(after_padding=True)),
    "MPNetModel": _MPNET,
    "DistilBertModel": _DISTILBERT,
    "ModernBertModel": _MODERNBERT,
    **dict.fromkeys(("NomicBertModel", "GteModel"), _NOMIC),
    "EuroBertModel": _EUROBERT,
    **dict.fromkeys(("LlamaModel", "MistralModel"), _LLAMA),
    "Qwen3Model": _QWEN3,
    "Gemma3TextModel": _GEMMA3,
    "T5EncoderModel": _T5,
    **dict.fromkeys(("ViTModel", "DeiTModel"), _VIT),
    "BeitModel": _BEIT,
    **dict.fromkeys(("Dinov2Model", "Dinov2WithRegistersModel"), _DINOV2),
    "DINOv3ViTModel": _DINOV3,
    "CLIPVisionModel": _tower({"embeddings": "pre_layrnorm"}),
    "CLIPTextModel": _tower({"last": "final_layer_norm"}, text=True, causal=True),
    "SiglipVisionModel": _tower({"last": "post_layernorm"}),
    "SiglipTextModel": _tower({"last": "final_layer_norm"}, text=True),
}
"""The families by the name of transformers' class."""
