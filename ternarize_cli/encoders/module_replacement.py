"""Puts ternary modules in place of a model's linears and embeddings, and dense ones back.

`replace` swaps modules on a skeleton (meta device) or a live model, as an artifact's description says; `dequantize`
swaps them back. Modules are found by type, not by name, so that every encoder whose weights sit in `nn.Linear` or in
transformers' `Conv1D` (a linear with its weight stored `[in, out]`) goes through the same code: BERT, RoBERTa, GPT-2,
Qwen3, ViT, CLIP and the rest. Which of them become ternary is decided when a model is converted
(`compress.tensor_policy`); an artifact lists those that do not.

Two things need care when modules are swapped (`anatomy` has more):

- **One weight, several modules** (T5's `shared` and `encoder.embed_tokens`). The first module is replaced, and its
  replacement stands in for the others too, outside their parent's list of children: so its tensors are loaded and
  stored once, under the first name.
- **A class around the encoder**: its own layers, the head, are left alone, and names are taken without its prefix.
  A decoder that is tied to a compressed table becomes a `TableDecoder`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ternarize_cli.arithmetic import ternary
from ternarize_cli.encoders import anatomy
from ternarize_cli.encoders.anatomy import first_names, in_attention, names_in_encoder, row_factor, sizes, word_tables
from ternarize_cli.errors import CheckpointError, FormatError, shown
from ternarize_cli.format.scheme import Artifact, Scheme
from ternarize_cli.layers import (
    ROW_FACTOR_HOOK,
    PackedEmbedding,
    PackedLinear,
    SimulatedEmbedding,
    TableDecoder,
    TernaryLinear,
)

__all__ = ["T5FeedForward", "dequantize", "replace", "table_bits"]

M = TypeVar("M", bound=nn.Module)


def replace(model: nn.Module, artifact: Artifact, dtype: torch.dtype | None = None) -> list[str]:
    """Puts the modules of an artifact's stage in place of linears and embeddings; returns their names.

    New modules are made on the device of the old ones, without values: load the artifact's tensors afterwards. Linears
    that `added_biases` lists get a bias. Where the scheme wants 4-bit tables, those that are no input embedding
    (`word_tables`) get 8 bits.

    Raises:
        CheckpointError: a layer beside the encoder that is no plain linear is tied to a compressed table.
        FormatError: the group size that the artifact describes does not divide the width of a linear, or
            `module_levels` names a module that is no linear of those replaced.
    """
    packed, scheme = artifact.stage == "packed", artifact.scheme
    words = word_tables(model)
    own, first, inside = names_in_encoder(model), first_names(model), in_attention(model)
    swapped: dict[str, nn.Module] = {}

    def swap(name: str, module: nn.Module) -> nn.Module | None:
        if not isinstance(module, nn.Linear | nn.Embedding | Conv1D) or name in inside:
            return None
        owner = first[f"{name}.weight"].removesuffix(".weight")
        if name not in own:
            if owner not in swapped:
                return None
            if not anatomy.decodes(module, model.get_submodule(owner)):
                raise CheckpointError(
                    f"{type(model).__name__} ties {name} to {owner}, which is compressed", hint="load it with AutoModel"
                )
            return TableDecoder(swapped[owner], module.bias)  # type: ignore[arg-type]
        if own[name] in artifact.modules_to_not_convert:
            return None
        if owner != name:
            return swapped.get(owner)
        new = table(module) if isinstance(module, nn.Embedding) else linear(own[name], module)
        if new is not None:
            swapped[name] = new
        return new

    def table(module: nn.Embedding) -> nn.Module | None:
        bits = table_bits(scheme, words=module in words)
        shape = module.num_embeddings, module.embedding_dim, module.padding_idx
        kind = dtype or module.weight.dtype
        new: nn.Module
        if not packed:
            new = SimulatedEmbedding(*shape, bits, device=module.weight.device, dtype=kind)
        elif bits in (4, 8):
            new = PackedEmbedding(*shape, bits, module.weight.device, kind)
        else:
            return None
        factor = row_factor(module)
        if factor is not None:
            hook = partial(_multiplied, factor)
            hook.__name__ = ROW_FACTOR_HOOK  # type: ignore[attr-defined]
            new.register_forward_hook(hook)
            new.__dict__["scalar_embed_scale"] = factor  # as transformers calls it
        return new

    def linear(name: str, module: nn.Linear | Conv1D) -> nn.Module:
        rows, columns = sizes(module)
        bias = module.bias is not None or name in artifact.added_biases
        scheme = artifact.scheme_of(name)
        device, kind, flip = module.weight.device, dtype or module.weight.dtype, isinstance(module, Conv1D)
        try:
            if not packed:
                return TernaryLinear(columns, rows, bias, scheme, device, kind, transposed=flip)
            new = PackedLinear(columns, rows, bias, scheme, device, kind, codec=artifact.codec_of(name))
        except ValueError as e:
            raise FormatError(f"{name}: {e}", hint="config.json is not that of these weights: make it again") from e
        new.transposed = flip
        return new

    names = _swap(model, swap)
    linears = {own[name] for name, module in swapped.items() if isinstance(module, TernaryLinear | PackedLinear)}
    is_around = anatomy.encoder_in(model) is not model  # and may leave modules of the encoder out, such as a pooler
    listed = None if artifact.listing is None else [module.name for module in artifact.listing.modules]
    for name in sorted(artifact.module_levels.keys() - linears):
        known = listed is None or any(one.endswith(f".{name}") for one in listed)
        if not is_around or name in own.values() or not known:
            raise FormatError(
                f"module_levels names {shown(name)}, which is no linear of this model that was converted",
                hint="config.json is not that of these weights: make it again",
            )
    for module in model.modules():
        if isinstance(getattr(module, "wo", None), PackedLinear) and type(module).__name__.endswith("ActDense"):
            module.__class__ = T5FeedForward
    return names


def table_bits(scheme: Scheme, *, words: bool) -> int:
    """The width in bits of a table in a packed model; only an input embedding (`words`) goes below 8 bits."""
    return scheme.table_bits if words else max(scheme.table_bits, 8)


def _multiplied(factor: float, _: nn.Module, __: Any, rows: Tensor) -> Tensor:
    return rows * rows.new_full((), factor)  # made where the rows are: a copy from the CPU could not be recorded


class T5FeedForward(nn.Module):
    """The feed-forward block of T5 and its kin, gated or not, around a packed `wo`.

    Theirs casts activations to the dtype of `wo.weight`, which for packed codes is uint8.
    """

    act: Callable[[Tensor], Tensor]
    dropout: Callable[[Tensor], Tensor]
    wi: Callable[[Tensor], Tensor]
    wi_0: Callable[[Tensor], Tensor]
    wi_1: Callable[[Tensor], Tensor]
    wo: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        """`[..., d_model]` → `[..., d_model]`."""
        wide = self.act(self.wi_0(x)) * self.wi_1(x) if hasattr(self, "wi_0") else self.act(self.wi(x))
        return self.wo(self.dropout(wide))


def dequantize(model: M) -> M:
    """Puts dense float32 linears, Conv1Ds and embeddings back in place of ternary ones; returns the same model."""

    def swap(_: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, PackedLinear | TernaryLinear):
            rows, columns = module.out_features, module.in_features
            dense: nn.Linear | Conv1D
            with torch.device("meta"):
                dense = Conv1D(rows, columns) if module.transposed else nn.Linear(columns, rows, bias=False)
            matrix = ternary.dequantize(module.codes(), module.weight_scale.detach().half())
            dense.weight = nn.Parameter(matrix.T.contiguous() if module.transposed else matrix)
            if module.bias is not None:
                dense.bias = nn.Parameter(module.bias.detach().float())
            return dense
        if isinstance(module, TableDecoder):
            rows, columns = module.out_features, module.in_features
            with torch.device("meta"):
                decoder = nn.Linear(columns, rows, bias=False)
            decoder.weight = nn.Parameter(module.rows(0, rows, module.table.weight.device).detach().float())  # type: ignore[arg-type]
            decoder.bias = module.bias  # type: ignore[assignment]
            return decoder
        if isinstance(module, SimulatedEmbedding | PackedEmbedding):
            ids = torch.arange(module.num_embeddings, device=module.weight.device)
            table = module.eval().forward(ids).detach()  # without the hook, which goes along
            embedding: nn.Embedding = nn.Embedding.from_pretrained(table.float(), padding_idx=module.padding_idx)
            return embedding
        return None

    _swap(model, swap)
    return model


def _swap(model: nn.Module, make: Callable[[str, nn.Module], nn.Module | None]) -> list[str]:
    """Replaces modules wherever they are referred to; returns the names of the new ones.

    The first place of a new module is its name. Further ones refer to it without being its parent, and transformers no
    longer ties what is now one tensor.
    """
    new: dict[int, nn.Module] = {}
    names: list[str] = []
    placed: set[int] = set()
    for name, module in list(model.named_modules()):
        made = make(name, module)
        if made is not None:
            if id(made) not in placed:
                made.train(module.training)
                made._forward_hooks.update(module._forward_hooks)
                names.append(name)
                placed.add(id(made))
            new[id(module)] = made
    seen: set[int] = set()
    for parent in list(model.modules()):
        for child, module in list(parent._modules.items()):
            made = new.get(id(module))
            if made is None:
                continue
            if id(made) in seen:
                del parent._modules[child]
                parent.__dict__[child] = made
            else:
                setattr(parent, child, made)
                seen.add(id(made))
        for attribute, module in list(vars(parent).items()):
            if id(module) in new:
                parent.__dict__[attribute] = new[id(module)]
    tied = getattr(model, "all_tied_weights_keys", None)
    if tied:
        left = model.state_dict().keys()
        model.__dict__["all_tied_weights_keys"] = {k: v for k, v in tied.items() if k in left and v in left}
    return names
