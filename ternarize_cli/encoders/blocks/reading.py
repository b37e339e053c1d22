"""Makes the description of a model's blocks from its config and the names of its submodules.

A name that is missing, or a part of a block that no name accounts for, means that this version of transformers builds
the family in another way; the model is then not described, with the reason in words, and runs through its own modules.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ternarize_cli.format.block import PLACES, Block
from ternarize_cli.format.block_parts import Embeddings, LayerKind, Norm, PatchBias, Relative, Rotary

__all__ = ["Family", "FeedForward", "Undescribed", "read", "scaled_by_root"]

_ACTIVATIONS = {
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_accurate", "gelu_python_tanh"), "gelu_tanh"),
    **dict.fromkeys(("silu", "swish"), "silu"),
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}
"""transformers' names of activations, and those of a description."""
_STATIC_ROTARY = ("default", "linear", "llama3", "yarn")
_OFFSETS = {"Gemma3RMSNorm": 1.0, "GemmaRMSNorm": 1.0, "Gemma2RMSNorm": 1.0}
"""The classes of norms whose gain is the weight plus a number."""


class Undescribed(Exception):
    """A model can't be described; the message says why."""


@dataclass(frozen=True)
class FeedForward:
    """The linears of a feed-forward, named relative to the block.

    Attributes:
        up: the linears that read the hidden states.
        down: the linear that writes the output.
        gated: whether the first of `up`, or the first half of it, is a gate.
        activation: the activation; None takes the one that the config names.
    """

    up: tuple[str, ...]
    down: str
    gated: bool = False
    activation: str | None = None


def scaled_by_root(config: Any, head: int) -> float:
    """Returns the usual factor of the products of queries and keys: one over the root of the width of a head."""
    return float(head**-0.5)


@dataclass(frozen=True)
class Family:
    """How a family of models names its parts, and what its config means.

    Attributes:
        layers: the name of the list of blocks, relative to the model.
        qkv: the linears of queries, keys and values, or the one that holds all three; relative to the block.
        output: the linear behind attention.
        feed_forwards: the forms of the feed-forward; a model has the first whose linears its blocks have.
        norms: the names of norms by their place (`format.block`); relative to the block, those of the embeddings and of
            the last hidden states to the model.
        activations: the fields of the config that may name the activation.
        embeddings: makes the description of the embedding from the model; None for images.
        layer_scales: the parameters that scale the outputs of attention and feed-forward; a model has both or none.
        scale: makes the factor of the products of queries and keys from the config and the width of a head.
        seen: gives for the config and a block's type how many tokens a token sees before and after its own.
        rotary: whether the model has rotary positions, by layer type if its config has them so; "patches" for those of
            an image's patches.
        relative: makes the description of relative positions from the model.
        patch_bias: makes the description of a bias by patches from the model, or None for a model without.
        refusal: says why a model of this family is computed in another way; None if it is not.
        unnormed_first: whether the first block has no norm before attention.
        extra: names of parts of a block that are read elsewhere.
    """

    layers: str
    qkv: tuple[str, ...]
    output: str
    feed_forwards: tuple[FeedForward, ...]
    norms: Mapping[str, str]
    activations: tuple[str, ...] = ("hidden_act",)
    embeddings: Callable[[Any], Embeddings] | None = None
    layer_scales: tuple[str, ...] = ()
    scale: Callable[[Any, int], float] = scaled_by_root
    seen: Callable[[Any, str], tuple[int | None, int | None]] = lambda config, kind: (None, None)
    rotary: bool | str = False
    relative: Callable[[Any], Relative] | None = None
    patch_bias: Callable[[Any], PatchBias | None] = lambda model: None
    refusal: Callable[[Any], str | None] = lambda model: None
    unnormed_first: bool = False
    extra: tuple[str, ...] = ()


def read(model: Any, family: Family) -> Block:
    """Describes the blocks of a model of a family.

    Raises:
        Undescribed: the model lacks a part that the family has, has others, or is computed in another way.
        FormatError: a value is none that a description holds.
    """
    config = model.config
    layers = _part(model, family.layers, "the model")
    if not len(layers):
        raise Undescribed("the model has no blocks")
    first, where = layers[0], f"{family.layers}.0"
    found = [f for f in family.feed_forwards if all(_has(first, name) for name in (*f.up, f.down))]
    if not found:
        missing = next(n for f in family.feed_forwards[:1] for n in (*f.up, f.down) if not _has(first, n))
        raise _missing(missing, where)
    feed_forward = found[0]
    qkv, up = _linears(first, family.qkv, where), _linears(first, feed_forward.up, where)
    output, down = (_linears(first, (name,), where)[0] for name in (family.output, feed_forward.down))
    heads, shared, head = _heads(config, qkv)
    activation = feed_forward.activation or next((a for f in family.activations if (a := getattr(config, f, None))), "")
    if activation not in _ACTIVATIONS:
        raise Undescribed(f"its activation is {activation}")
    kinds, kind_of = _kinds(model, family, len(layers))
    norms = _norms(model, first, layers[-1], family)
    made = Block(
        layers=family.layers, kinds=kinds, kind_of=kind_of, width=output.out_features, heads=heads,
        key_value_heads=shared, head=head, scale=family.scale(config, head), qkv=family.qkv, output=family.output,
        up=feed_forward.up, down=feed_forward.down, inner=down.in_features, activation=_ACTIVATIONS[activation],
        gated=feed_forward.gated, norms=norms, unnormed=(0,) if family.unnormed_first else (),
        layer_scales=tuple(name for name in family.layer_scales if _is_parameter(first, name)),
        relative=family.relative(model) if family.relative else None, patch_bias=family.patch_bias(model),
        embeddings=family.embeddings(model) if family.embeddings else None,
    )  # fmt: skip
    if sum(m.out_features for m in up) != made.inner * (2 if made.gated else 1):
        raise Undescribed("its feed-forward has unusual widths")
    for i, layer in enumerate(layers):
        _check_parts(layer, made, i, family.extra)
    return made


def _heads(config: Any, qkv: list[Any]) -> tuple[int, int, int]:
    """Returns the number of heads, that of heads of keys and values, and the width of a head."""
    heads = next((n for f in ("num_attention_heads", "num_heads", "n_heads") if (n := getattr(config, f, None))), None)
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1:
        raise Undescribed(f"its number of heads is {heads!r}")
    shared = getattr(config, "num_key_value_heads", None) or heads
    outputs = sum(m.out_features for m in qkv)
    widths = [m.out_features for m in qkv]
    if outputs % (heads + 2 * shared):
        raise Undescribed(f"{heads} heads do not divide the {outputs} outputs of queries, keys and values")
    head = outputs // (heads + 2 * shared)
    if len(qkv) == 3 and widths != [heads * head, shared * head, shared * head]:
        raise Undescribed("its queries, keys and values have unusual widths")
    return heads, shared, head


def _kinds(model: Any, family: Family, count: int) -> tuple[tuple[LayerKind, ...], tuple[int, ...]]:
    types = list(getattr(model.config, "layer_types", None) or ["full_attention"] * count)[:count]
    if len(types) != count or not set(types) <= {"full_attention", "sliding_attention"}:
        raise Undescribed(f"its layers are of the types {', '.join(map(str, sorted(set(types))))}")
    order = sorted(set(types))
    kinds = [
        LayerKind(*family.seen(model.config, kind), rotary=_rotary(model, family, kind) if family.rotary else None)
        for kind in order
    ]
    return tuple(kinds), tuple(order.index(kind) for kind in types)


def _rotary(model: Any, family: Family, kind: str) -> Rotary:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config: Any = model.config
    if family.rotary == "patches":
        head = config.hidden_size // config.num_attention_heads
        return Rotary(theta=float(config.rope_theta), numbers=head, of_patches=True)
    module: Any = _part(model, "rotary_emb", "the model")
    given = getattr(config, "rope_parameters", None)
    given = given.get(kind, given) if isinstance(given, dict) else {}
    by_kind = {"layer_type": kind} if given is not config.rope_parameters else {}
    what = given.get("rope_type", "default")
    if what not in _STATIC_ROTARY:
        raise Undescribed(f"its rotary positions are {what}, which depend on the length of the text")
    make = ROPE_INIT_FUNCTIONS[what] if what != "default" else type(module).compute_default_rope_parameters
    with torch.device("cpu"):  # transformers 5.17 warns of an argument `device`
        frequencies, factor = make(config, **by_kind)
    theta, numbers = float(given["rope_theta"]), 2 * len(frequencies)
    exact = [theta ** (-2 * i / numbers) for i in range(len(frequencies))]
    usual = all(abs(a - b) <= 1e-5 * b for a, b in zip(frequencies.tolist(), exact, strict=True))
    return Rotary(theta, numbers, float(factor), () if usual else tuple(frequencies.tolist()))


def _norms(model: Any, first: nn.Module, last: nn.Module, family: Family) -> dict[str, Norm]:
    found = {}
    for place, name in family.norms.items():
        inside = place in PLACES or place in ("query", "key")
        of = last if place == "attention.before" else first
        module = _part(of if inside else model, name, family.layers if inside else "the model")
        if type(module) is not nn.Identity:  # as in a BEiT that pools the mean, which norms only that
            found[place] = _norm(module, name)
    return found


def _norm(module: Any, name: str) -> Norm:
    kind = type(module).__name__
    if type(module) is nn.LayerNorm:
        if module.weight is None:
            raise Undescribed(f"{name} has no gain")
        return Norm(name, "layer", module.eps)
    eps = getattr(module, "eps", getattr(module, "variance_epsilon", None))
    if not (kind.endswith("RMSNorm") or kind == "T5LayerNorm") or not isinstance(eps, float):
        raise Undescribed(f"{name} is a {kind}")
    return Norm(name, "rms", eps, _OFFSETS.get(kind, 0.0))


def _check_parts(layer: nn.Module, block: Block, i: int, extra: tuple[str, ...]) -> None:
    """Checks that a block has the parts that the description names, and no others."""
    where = f"{block.layers}.{i}"
    norms = {norm.name for norm in block.norms_of(i).values()}
    scales = {name.rpartition(".")[0] for name in block.layer_scales} - {""}
    biases = {block.patch_bias.name} if block.patch_bias is not None and not block.patch_bias.shared else set()
    named = {*block.linears, *norms, *scales, *biases}
    for name in named:
        if not _has(layer, name):
            raise _missing(name, where)
    for name in block.layer_scales:
        if not _is_parameter(layer, name):
            raise Undescribed(f"{where} has no parameter {name}, and other blocks have one")
    own = [name for name, m in layer.named_modules() if name and _has_tensors(m)]
    for place, norm in block.norms_of(i).items():
        found = _norm(layer.get_submodule(norm.name), norm.name)
        if found != norm:
            raise Undescribed(f"the norm {place} of its block {where} is another than that of other blocks")
    others = [n for n in own if n not in named and n not in extra]
    if others or any(p not in block.layer_scales for p in dict(layer.named_parameters(recurse=False))):
        raise Undescribed(f"its block {where} has parts that no description names: {', '.join(others) or 'parameters'}")


def _has_tensors(module: nn.Module) -> bool:
    return any(t is not None for t in (*module._parameters.values(), *module._buffers.values()))


def _has(module: nn.Module, name: str) -> bool:
    try:
        module.get_submodule(name)
    except AttributeError:
        return False
    return True


def _is_parameter(module: nn.Module, name: str) -> bool:
    where, _, own = name.rpartition(".")
    return _has(module, where) and isinstance(getattr(module.get_submodule(where), own, None), nn.Parameter)


def _part(module: nn.Module, name: str, where: str) -> Any:
    if not _has(module, name):
        raise _missing(name, where)
    return module.get_submodule(name)


def _linears(layer: nn.Module, names: tuple[str, ...], where: str) -> list[Any]:
    found = [_part(layer, name, where) for name in names]
    for name, module in zip(names, found, strict=True):
        if not hasattr(module, "in_features") or not hasattr(module, "out_features"):
            raise Undescribed(f"{where}.{name} is a {type(module).__name__}, and no linear")
    return found


def _missing(name: str, where: str) -> Undescribed:
    return Undescribed(f"{where} has no module {name}: this version of transformers builds the model in another way")
