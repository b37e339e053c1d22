"""Which modules of a model become ternary, and putting the new modules in place.

Modules are found by type, not by name, so that every encoder whose weights sit in `nn.Linear` goes through the same
code: BERT, RoBERTa, XLM-R, DistilBERT, ViT and the rest. `plan` decides, with a reason for every linear and table
that stays; `replace` swaps modules on a skeleton (meta device) or a live model; `dequantize` swaps them back.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import nn

from ternarize_cli import ternary
from ternarize_cli.errors import CheckpointError, InputError
from ternarize_cli.layers import PackedEmbedding, PackedLinear, SimulatedEmbedding, TernaryLinear
from ternarize_cli.scheme import Artifact, Scheme

__all__ = ["Plan", "dequantize", "kept_by", "plan", "replace"]

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Plan:
    """What `convert` will do.

    Attributes:
        linears: names of the modules that become ternary.
        tables: names of the embeddings that are compressed.
        kept: the linears and embeddings that stay as they are, with the reason.
    """

    linears: tuple[str, ...]
    tables: tuple[str, ...]
    kept: dict[str, str]


def plan(model: nn.Module, scheme: Scheme, *, present: Collection[str], skip: Sequence[str] = ()) -> Plan:
    """Decides over every linear and embedding of a model.

    Args:
        model: the encoder; meta tensors are fine.
        scheme: its granularity must fit every layer.
        present: the state-dict names that the source holds.
        skip: shell patterns over module names, such as "pooler*" or "encoder.layer.0.*".

    Raises:
        InputError: a pattern that matches nothing, or a group size that does not divide a width.
        CheckpointError: no linear is left to ternarise.
    """
    linears: list[str] = []
    tables: list[str] = []
    kept: dict[str, str] = {}
    unused = set(skip)
    in_attention = {
        f"{name}.{child}" if name else child
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
        for child, _ in module.named_modules()
    }
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        matching = [p for p in skip if fnmatchcase(name, p)]
        unused -= set(matching)
        if matching:
            kept[name] = f"--skip {matching[0]}"
        elif name in in_attention:
            kept[name] = "inside nn.MultiheadAttention, which reads its weights directly"
        elif f"{name}.weight" not in present:
            kept[name] = "not in the source"
        elif isinstance(module, nn.Embedding):
            tables.append(name)
        else:
            _check_groups(name, module, scheme)
            linears.append(name)
    if unused:
        raise InputError(
            f"--skip {sorted(unused)[0]!r} matches no linear and no embedding",
            hint="`ternarize inspect MODEL` lists their names; quote the pattern",
        )
    if not linears:
        raise CheckpointError("this model has no nn.Linear to ternarise" + (" that is not skipped" if skip else ""))
    return Plan(tuple(linears), tuple(tables), kept)


def _check_groups(name: str, module: nn.Linear, scheme: Scheme) -> None:
    try:
        ternary.scale_shape(module.out_features, module.in_features, scheme.granularity, scheme.group_size)
    except ValueError as e:
        raise InputError(f"{name}: {e}", hint="another group size, --granularity row, or --skip for this layer") from e


def kept_by(name: str, artifact: Artifact) -> bool:
    """Whether an artifact leaves a module as it is; a model wrapped in a larger one (`bert.` in front) matches too."""
    return any(name == kept or name.endswith(f".{kept}") for kept in artifact.modules_to_not_convert)


def replace(model: nn.Module, artifact: Artifact, dtype: torch.dtype | None = None) -> list[str]:
    """Puts the modules of an artifact's stage in place of linears and embeddings; returns their names.

    New modules are made on the device of the old ones, without values: load the artifact's tensors afterwards.
    """
    packed, scheme = artifact.stage == "packed", artifact.scheme

    def swap(name: str, module: nn.Module) -> nn.Module | None:
        if kept_by(name, artifact):
            return None
        if not isinstance(module, nn.Linear | nn.Embedding):
            return None
        device, kind = module.weight.device, dtype or module.weight.dtype
        if isinstance(module, nn.Embedding):
            rows, dim, padding = module.num_embeddings, module.embedding_dim, module.padding_idx
            if not packed:
                return SimulatedEmbedding(rows, dim, padding, scheme.table_bits, device=device, dtype=kind)
            return PackedEmbedding(rows, dim, padding, device, kind) if scheme.table_bits == 8 else None
        layer = PackedLinear if packed else TernaryLinear
        return layer(module.in_features, module.out_features, module.bias is not None, scheme, device, kind)

    return _swap(model, swap)


def dequantize(model: M) -> M:
    """Puts dense float32 `nn.Linear` and `nn.Embedding` back in place of ternary modules; returns the same model."""

    def swap(_: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, PackedLinear | TernaryLinear):
            dense = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
            dense.weight = nn.Parameter(ternary.dequantize(module.codes(), module.weight_scale.detach().half()))
            if module.bias is not None:
                dense.bias = nn.Parameter(module.bias.detach().float())
            return dense
        if isinstance(module, SimulatedEmbedding):
            rows = module.eval()(torch.arange(module.num_embeddings, device=module.weight.device)).detach()
            return nn.Embedding.from_pretrained(rows.float(), padding_idx=module.padding_idx)
        if isinstance(module, PackedEmbedding):
            table = module.weight.float() * module.weight_scale.float()
            return nn.Embedding.from_pretrained(table, padding_idx=module.padding_idx)
        return None

    _swap(model, swap)
    return model


def _swap(model: nn.Module, make: Callable[[str, nn.Module], nn.Module | None]) -> list[str]:
    swapped = []
    for name, module in list(model.named_modules()):
        new = make(name, module)
        if new is not None:
            new.train(module.training)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, new)
            swapped.append(name)
    return swapped
