"""Which modules of a model become ternary, and putting the new modules in place.

Modules are found by type, not by name, so that every encoder whose weights sit in `nn.Linear` or in transformers'
`Conv1D` (a linear with its weight stored `[in, out]`) goes through the same code: BERT, RoBERTa, GPT-2, Qwen3, ViT,
CLIP and the rest. `plan` decides, with a reason for all that stays; `replace` swaps modules on a skeleton (meta device)
or a live model; `dequantize` swaps them back.

Two things need care when modules are swapped (`anatomy` has more):

- **One weight, several modules** (T5's `shared` and `encoder.embed_tokens`). The first module is replaced, and its
  replacement stands in for the others too, outside their parent's list of children: so its tensors are loaded and
  stored once, under the first name.
- **A class around the encoder**: its own layers are left alone, and names are taken without its prefix.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ternarize_cli.arithmetic import ternary
from ternarize_cli.encoders.anatomy import (
    first_names,
    in_attention,
    interchangeable,
    names_in_encoder,
    reader,
    reason_to_keep,
    row_factor,
    sizes,
    weighted,
    word_tables,
)
from ternarize_cli.errors import CheckpointError, InputError
from ternarize_cli.format.scheme import Artifact, Scheme
from ternarize_cli.layers import PackedEmbedding, PackedLinear, SimulatedEmbedding, TernaryLinear

__all__ = ["HALF_ABOVE", "Plan", "T5FeedForward", "dequantize", "kept_by", "matches", "plan", "replace", "table_bits"]

HALF_ABOVE = 65_536
"""Other tensors with more elements than this are float16 in a packed model."""

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Plan:
    """What `convert` will do.

    Attributes:
        linears: names of the modules that become ternary.
        tables: names of the embeddings that are compressed.
        kept: the linears and embeddings that stay as they are, with the reason.
        transposed: those of `linears` whose weight is stored `[in, out]` (Conv1D).
        others: what else has weights and stays (convolutions, norms, position parameters), with what becomes of it.
    """

    linears: tuple[str, ...]
    tables: tuple[str, ...]
    kept: dict[str, str]
    transposed: frozenset[str] = frozenset()
    others: dict[str, str] = field(default_factory=dict)


def plan(
    model: nn.Module, scheme: Scheme, *, present: Collection[str], skip: Sequence[str] = (), prefix: str = ""
) -> Plan:
    """Decides over every linear and embedding of a model.

    Args:
        model: the encoder; meta tensors are fine.
        scheme: its granularity must fit every layer.
        present: the state-dict names that the source holds; of a weight with several names, one is enough.
        skip: shell patterns over module names, such as "pooler*" or "encoder.layer.0.*".
        prefix: what users write before the names of this model, such as "2_Dense.".

    Raises:
        InputError: a pattern that matches nothing, or a group size that does not divide a width.
        CheckpointError: no linear is left to ternarise (unless there is a prefix: a part of a model may have none).
    """
    linears: list[str] = []
    tables: list[str] = []
    kept: dict[str, str] = {}
    first = first_names(model)
    owned = {first[name] for name in present if name in first}
    inside = in_attention(model)
    for pattern in skip:
        if not matches(model, pattern, prefix):
            raise InputError(
                f"--skip {pattern!r} matches no linear and no embedding",
                hint="`ternarize inspect MODEL` lists their names; quote the pattern",
            )
    for name, module in weighted(model):
        key = f"{name}.weight"
        owner = first[key].removesuffix(".weight")
        if owner != name:
            if not interchangeable(module, model.get_submodule(owner)):
                kept[owner] = kept[name] = f"{owner} and {name} share one weight and use it differently"
            continue
        skipped = [p for p in skip if fnmatchcase(prefix + name, p)]
        reason = f"--skip {skipped[0]}" if skipped else reason_to_keep(module) or reader(model, name)
        if name in inside and not skipped:
            kept[name] = "inside nn.MultiheadAttention, which reads its weights directly"
        elif key not in owned and not skipped:
            kept[name] = "not in the source"
        elif reason is not None:
            kept[name] = reason
        elif isinstance(module, nn.Embedding):
            tables.append(name)
        else:
            _check_groups(prefix + name, module, scheme)
            linears.append(name)
    linears, tables = ([n for n in names if n not in kept] for names in (linears, tables))
    if not linears and not prefix:
        what = "nothing to ternarise: no nn.Linear and no Conv1D" + (" that does not stay" if kept else "")
        raise CheckpointError(f"this model has {what}", hint="ternarize takes encoders whose weights sit in linears")
    return Plan(
        tuple(linears),
        tuple(tables),
        kept,
        frozenset(name for name in linears if isinstance(model.get_submodule(name), Conv1D)),
        _others(model, {*linears, *tables, *kept}, owned),
    )


def matches(model: nn.Module, pattern: str, prefix: str = "") -> bool:
    """Whether a --skip pattern matches a linear or an embedding of a model."""
    return any(fnmatchcase(prefix + name, pattern) for name, _ in weighted(model))


def _check_groups(name: str, module: nn.Linear | Conv1D, scheme: Scheme) -> None:
    try:
        ternary.scale_shape(*sizes(module), scheme.granularity, scheme.group_size)
    except ValueError as e:
        raise InputError(f"{name}: {e}", hint="another group size, --granularity row, or --skip for this layer") from e


def _others(model: nn.Module, named: Collection[str], present: Collection[str]) -> dict[str, str]:
    """What has weights and is neither linear nor table: large tensors by name, small ones counted by class."""
    large: dict[str, str] = {}
    small: Counter[str] = Counter()
    counts: dict[str, int] = defaultdict(int)
    for name, module in model.named_modules():
        if name in named:
            continue
        kind = type(module).__name__
        own = {f"{name}.{k}".lstrip("."): p for k, p in module.named_parameters(recurse=False)}
        own = {key: p for key, p in own.items() if key in present}
        large |= {key: f"of a {kind}: float16 when packed" for key, p in own.items() if p.numel() > HALF_ABOVE}
        rest = sum(p.numel() for p in own.values() if p.numel() <= HALF_ABOVE)
        if rest:
            small[kind] += 1
            counts[kind] += rest
    return large | {f"{n} × {kind}": f"small ({counts[kind]:,} weights), as in the source" for kind, n in small.items()}


def kept_by(name: str, artifact: Artifact) -> bool:
    """Whether an artifact leaves a module as it is; `name` as the encoder has it (see `anatomy.names_in_encoder`)."""
    return name in artifact.modules_to_not_convert


def replace(model: nn.Module, artifact: Artifact, dtype: torch.dtype | None = None) -> list[str]:
    """Puts the modules of an artifact's stage in place of linears and embeddings; returns their names.

    New modules are made on the device of the old ones, without values: load the artifact's tensors afterwards. Linears
    that `added_biases` lists get a bias. Where the scheme wants 4-bit tables, those that are no input embedding
    (`word_tables`) get 8 bits.

    Raises:
        CheckpointError: a layer beside the encoder is tied to a table that is compressed.
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
            if packed and owner in swapped:
                raise CheckpointError(
                    f"{type(model).__name__} ties {name} to {owner}, which is packed",
                    hint="load the encoder (AutoModel), or this class from the ternary checkpoint",
                )
            return None
        if kept_by(own[name], artifact):
            return None
        if owner != name:
            return swapped.get(owner)
        new = table(module) if isinstance(module, nn.Embedding) else linear(own[name], module)
        if new is not None:
            swapped[name] = new
        return new

    def table(module: nn.Embedding) -> nn.Module | None:
        bits = table_bits(module, words, scheme)
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
            new.register_forward_hook(partial(_multiplied, factor))
        return new

    def linear(name: str, module: nn.Linear | Conv1D) -> nn.Module:
        rows, columns = sizes(module)
        bias = module.bias is not None or name in artifact.added_biases
        device, kind, flip = module.weight.device, dtype or module.weight.dtype, isinstance(module, Conv1D)
        if packed:
            new = PackedLinear(columns, rows, bias, scheme, device, kind, codec=artifact.codec)
            new.transposed = flip
            return new
        return TernaryLinear(columns, rows, bias, scheme, device, kind, transposed=flip)

    names = _swap(model, swap)
    for module in model.modules():
        if isinstance(getattr(module, "wo", None), PackedLinear) and type(module).__name__.endswith("ActDense"):
            module.__class__ = T5FeedForward
    return names


def table_bits(table: nn.Module, words: Collection[nn.Module], scheme: Scheme) -> int:
    """The width of a table in the packed model: only those in `words` (`word_tables`) go below 8 bits."""
    return scheme.table_bits if table in words else max(scheme.table_bits, 8)


def _multiplied(factor: float, _: nn.Module, __: Any, rows: Tensor) -> Tensor:
    return rows * torch.tensor(factor, dtype=rows.dtype, device=rows.device)


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
