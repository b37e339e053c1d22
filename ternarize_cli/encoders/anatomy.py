"""What a model consists of, read from its modules: linears, tables, and the traps that lie between them.

- **A subclass may compute something else** than its parent; it then stays. A table whose class multiplies its rows by a
  constant (Gemma, BART) is a lookup all the same: `row_factor`.
- **A module's weight may be read by others**: by `nn.MultiheadAttention`, or by the module it belongs to, as DeBERTa
  reads `rel_embeddings.weight`. Then it must stay what it is.
- **One tensor may have several names**: a module in two places, or a weight that two modules share.
- **A class around the encoder** (`BertForSequenceClassification` around `BertModel`) puts a prefix before the encoder's
  names, and has layers of its own.
"""

import inspect
import re
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = [
    "backbone",
    "decodes",
    "encoder_in",
    "first_names",
    "in_attention",
    "in_head",
    "input_table",
    "interchangeable",
    "names_in_encoder",
    "reader",
    "reason_to_exclude",
    "row_factor",
    "sizes",
    "weighted",
    "word_table",
    "word_tables",
]

_TINY = 8


def backbone(encoder: "SentenceTransformer") -> Any:
    """Finds the transformers model in an encoder whose first module is a Transformer."""
    first: Any = encoder[0]
    return first.auto_model


def weighted(model: nn.Module) -> list[tuple[str, nn.Linear | nn.Embedding | Conv1D]]:
    """The linears and embeddings of a model, each once, by name."""
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding | Conv1D)]


def first_names(model: nn.Module) -> dict[str, str]:
    """The names of a model's tensors, each with the first name of the same tensor.

    Tensors are the same if they are one object, or if transformers will tie them when they are loaded.
    """
    seen: dict[int, str] = {}
    first = {name: seen.setdefault(id(t), name) for name, t in model.state_dict(keep_vars=True).items()}
    for target, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if target in first and source in first:
            a, b = sorted((first[target], first[source]), key=list(first).index)
            first = {name: a if owner == b else owner for name, owner in first.items()}
    return first


def in_attention(model: nn.Module) -> set[str]:
    """Names of the modules inside an `nn.MultiheadAttention`, which reads their weights instead of calling them."""
    return {
        f"{name}.{child}" if name else child
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
        for child, _ in module.named_modules()
        if child
    }


def interchangeable(a: nn.Module, b: nn.Module) -> bool:
    """Whether one module can stand in for the other, given that they share their weight."""
    if isinstance(a, nn.Embedding) and isinstance(b, nn.Embedding):
        return (a.padding_idx, row_factor(a)) == (b.padding_idx, row_factor(b))
    return type(a) is type(b) is nn.Linear and a.bias is b.bias


def decodes(module: nn.Module, table: nn.Module) -> bool:
    """Whether a module multiplies with the rows of a table, as the decoder of a masked language model does."""
    return type(module) is nn.Linear and isinstance(table, nn.Embedding) and row_factor(table) is None


def in_head(model: nn.Module) -> set[str]:
    """Names of the linears and embeddings beside the encoder in a class around it, such as a classifier's.

    BERT's pooler is in its encoder, but only a classifier reads it: there it belongs to the head, as RoBERTa's does.
    """
    own = names_in_encoder(model)
    classifies = type(model).__name__.endswith("ForSequenceClassification")
    return {n for n, _ in weighted(model) if n not in own or (classifies and own[n].startswith("pooler."))}


def row_factor(table: nn.Embedding) -> float | None:
    """The constant by which the class of a table multiplies its rows; None for a plain lookup."""
    if not type(table).__name__.endswith("ScaledWordEmbedding"):
        return None
    factor = getattr(table, "scalar_embed_scale", None)
    return float(table.embed_scale if factor is None else factor)  # type: ignore[arg-type]


def reason_to_exclude(module: nn.Linear | nn.Embedding | Conv1D) -> str | None:
    """Why a module stays as it is, in words; None if nothing about itself speaks against replacing it."""
    if isinstance(module, nn.Embedding):
        if type(module).forward is not nn.Embedding.forward and row_factor(module) is None:
            return f"its class {type(module).__name__} does more than look up rows"
        return None
    if isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward:
        return f"its class {type(module).__name__} does more than multiply"
    rows, columns = sizes(module)
    return f"{rows} × {columns} is too small to gain by it" if min(rows, columns) < _TINY else None


def reader(model: nn.Module, name: str) -> str | None:
    """The reason to exclude a module whose parent reads its weight instead of calling it (DeBERTa's `rel_embeddings`).

    That shows only in the parent's source; asking for a weight's type, dtype or device does no harm. A module whose
    parent has no source that can be read is excluded, too: its weight as it is is always right, and codes in its place
    may be read as weights without any error.
    """
    where, _, child = name.rpartition(".")
    kind: Any = type(model.get_submodule(where))
    source = _source_of(kind)
    if source is None:
        return f"the source of its parent's class {kind.__name__} can't be read, which may read its weight directly"
    if re.search(rf"(?<!isinstance\()\bself\.{child}\.weight\b(?!\.(dtype|device))", source):
        return f"{kind.__name__} reads its weight directly"
    return None


@cache
def _source_of(kind: Any) -> str | None:
    """The source of a class and of those that it is derived from; None if one of them has none, as if made by exec."""
    own = (c for c in kind.__mro__ if issubclass(c, nn.Module) and c is not nn.Module and c is not PreTrainedModel)
    try:
        return "\n".join(inspect.getsource(c) for c in own)
    except (OSError, TypeError):
        return None


def sizes(module: nn.Linear | Conv1D) -> tuple[int, int]:
    """(out, in)."""
    return (module.nf, module.nx) if isinstance(module, Conv1D) else (module.out_features, module.in_features)


def names_in_encoder(model: nn.Module) -> dict[str, str]:
    """Names of a model's modules → their names in the encoder that `convert` saw.

    In a class around the encoder these lack the prefix, and layers beside the encoder have none and are left out.
    """
    names = [name for name, _ in model.named_modules()]
    if encoder_in(model) is model:
        return {name: name for name in names}
    prefix = f"{model.base_model_prefix}."
    return {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def encoder_in(model: nn.Module) -> nn.Module:
    """The encoder in a class around it, such as the BertModel of a classifier; any other model itself."""
    from transformers import MODEL_MAPPING

    inner = getattr(model, getattr(model, "base_model_prefix", "") or "_", None)
    if not isinstance(inner, nn.Module):
        return model
    config: Any = model.config
    kinds = MODEL_MAPPING.get(type(config), ())
    return model if type(model) in (kinds if isinstance(kinds, tuple) else (kinds,)) else inner


def input_table(model: Any) -> Any:
    """Returns what a model's `get_input_embeddings()` gives; None if it has none."""
    with suppress(NotImplementedError, AttributeError):
        return model.get_input_embeddings()
    return None


def word_table(model: Any) -> Any:
    """Returns the table that a model's tokens are looked up in; None if it has none.

    A model of texts and images has it in its text tower, and transformers may not find it there (CLIP).
    """
    found = input_table(model)
    return input_table(getattr(model, "text_model", None)) if found is None else found


def word_tables(model: Any) -> set[nn.Module]:
    """The tables that tokens are looked up in: `get_input_embeddings()` of the model and of the models inside it."""
    return {table for module in model.modules() if (table := input_table(module)) is not None}
