"""Describes the encoders that llama.cpp runs: its names of their tensors, and the metadata that it reads.

    model_type in config.json                            architecture of llama.cpp
    bert, camembert, distilbert, roberta, xlm-roberta    bert
    nomic_bert                                           nomic-bert
    modernbert                                           modern-bert
    qwen3                                                qwen3
    gemma3_text, with attention to both sides            gemma-embedding

llama.cpp's code for an architecture has choices of its own, such as an activation or a scale of attention, which no
metadata change. What a config asks for besides is refused here by name: llama.cpp would run it, and give other vectors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ternarize_cli.errors import UnavailableError, shown

__all__ = ["ARCHITECTURES", "Architecture", "architecture_of", "refuse"]

_GELU = ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_python", "gelu_fast")
"""llama.cpp has one GELU, the approximation by tanh."""


def refuse(why: str) -> UnavailableError:
    """Makes the error for a model that llama.cpp can't run as it is."""
    return UnavailableError(f"llama.cpp can't run this model: {why}", hint="--to onnx, --to wheel or --to c")


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp knows a family.

    Attributes:
        name: its name there, and in the package gguf.
        describe: checks a config, and adds metadata to a GGUFWriter.
        names: the names in GGUF of those parts of a layer that the package gguf does not know by transformers' names.
        biases: the parts that may have a bias, by their names in GGUF; None: all.
        fused: whether query, key and value become one matrix.
        added: what is added to the weights of norms.
    """

    name: str
    describe: Callable[[Any, Any], None]
    names: Mapping[str, str] = field(default_factory=dict)
    biases: tuple[str, ...] | None = ()
    fused: bool = False
    added: float = 0.0


def _require(config: Any, **allowed: Any) -> None:
    """Checks that settings of a config have values that llama.cpp knows; a setting that is missing has one."""
    for name, values in allowed.items():
        values = values if isinstance(values, tuple) else (values,)
        if hasattr(config, name) and (found := getattr(config, name)) not in values:
            raise refuse(f"its config has {name} {shown(found)}, and llama.cpp knows {', '.join(map(str, values))}")


def _rope_base(parameters: Any) -> float:
    """Returns the base of rotary positions, which must be neither scaled nor partial."""
    extra = {key: value for key, value in parameters.items() if key not in ("rope_theta", "rope_type")}
    if parameters.get("rope_type", "default") != "default" or extra.pop("partial_rotary_factor", 1.0) != 1.0 or extra:
        raise refuse(f"its rotary positions are {shown(dict(parameters))}, and only plain ones are written")
    return float(parameters["rope_theta"])


def _sizes(config: Any, writer: Any, positions: int | None = None) -> None:
    """Adds the sizes that all architectures have."""
    writer.add_context_length(config.max_position_embeddings if positions is None else positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    inner = getattr(config, "intermediate_size", None) or config.hidden_dim
    writer.add_feed_forward_length(inner)
    writer.add_head_count(config.num_attention_heads)


def _bert(config: Any, writer: Any) -> None:
    roberta = config.model_type in ("camembert", "roberta", "xlm-roberta")
    _require(
        config, hidden_act=_GELU, activation=_GELU, position_embedding_type=("absolute", None), is_decoder=(False, None)
    )
    skipped = config.pad_token_id + 1 if roberta else 0
    _sizes(config, writer, config.max_position_embeddings - skipped)
    writer.add_layer_norm_eps(getattr(config, "layer_norm_eps", 1e-12))
    writer.add_causal_attention(False)
    writer.add_token_type_count(getattr(config, "type_vocab_size", 1))


def _nomic_bert(config: Any, writer: Any) -> None:
    _require(config, hidden_act="silu", head_dim=(config.hidden_size // config.num_attention_heads, None))
    _sizes(config, writer)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_token_type_count(config.type_vocab_size)
    writer.add_rope_freq_base(_rope_base(config.rope_parameters))


def _modern_bert(config: Any, writer: Any) -> None:
    _require(config, hidden_activation=(*_GELU, "silu"), attention_bias=False, mlp_bias=False, norm_bias=False)
    _sizes(config, writer)
    writer.add_layer_norm_eps(config.norm_eps)
    writer.add_causal_attention(False)
    writer.add_sliding_window(config.local_attention)
    _windows(config, writer)
    if config.hidden_activation == "silu":
        writer.add_string(f"{writer.arch}.hidden_activation", "silu")


def _windows(config: Any, writer: Any) -> None:
    """Adds which layers see a window, and the bases of rotary positions inside and outside of windows."""
    slides = [kind == "sliding_attention" for kind in config.layer_types]
    if set(config.layer_types) - {"sliding_attention", "full_attention"}:
        raise refuse(f"its layers are {', '.join(sorted(set(config.layer_types)))}")
    size, first = len(slides), slides[0]
    # A number is what every version of llama.cpp reads: each n-th layer is full, the first or the last of n.
    fits = [n for n in range(1, size + 2) if slides == [i % n != (n - 1 if first else 0) for i in range(size)]]
    last = writer.arch == "gemma-embedding"
    fits = fits if first == last or not any(slides) else []
    writer.add_sliding_window_pattern(min(fits) if fits else slides)
    writer.add_rope_freq_base(_rope_base(config.rope_parameters["full_attention"]))
    writer.add_rope_freq_base_swa(_rope_base(config.rope_parameters["sliding_attention"]))


def _decoder(config: Any, writer: Any) -> None:
    _sizes(config, writer)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _qwen3(config: Any, writer: Any) -> None:
    _require(config, hidden_act="silu", attention_bias=False, use_sliding_window=False, is_causal=(True, None))
    _decoder(config, writer)
    writer.add_rope_freq_base(_rope_base(config.rope_parameters))


def _gemma(config: Any, writer: Any) -> None:
    _require(config, use_bidirectional_attention=True, hidden_activation="gelu_pytorch_tanh", attention_bias=False)
    _require(config, attn_logit_softcapping=None, query_pre_attn_scalar=config.head_dim)
    _decoder(config, writer)
    writer.add_causal_attention(False)
    writer.add_sliding_window((config.sliding_window - 1) * 2)  # transformers keeps half of it, plus one
    _windows(config, writer)


_BERT = Architecture("bert", _bert, biases=None)
_NOMIC_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "post_attention_layernorm": "attn_output_norm",
    "post_mlp_layernorm": "layer_output_norm",
}
_NORMS = ("token_embd_norm", "attn_output_norm", "layer_output_norm")
ARCHITECTURES = {
    **dict.fromkeys(("bert", "camembert", "distilbert", "roberta", "xlm-roberta"), _BERT),
    "nomic_bert": Architecture("nomic-bert", _nomic_bert, _NOMIC_NAMES, biases=_NORMS, fused=True),
    "modernbert": Architecture("modern-bert", _modern_bert),
    "qwen3": Architecture("qwen3", _qwen3),
    "gemma3_text": Architecture("gemma-embedding", _gemma, added=1.0),
}
"""The architectures by the config's `model_type`."""


def architecture_of(config: Any) -> Architecture:
    """Finds the architecture of a config.

    Raises:
        UnavailableError: llama.cpp has none that is known here.
    """
    found = ARCHITECTURES.get(config.model_type)
    if found is None:
        known = ", ".join(ARCHITECTURES)
        raise refuse(f"it is a {shown(config.model_type)}, and --to gguf writes {known}")
    return found
