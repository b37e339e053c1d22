"""Maps the names of tensors in a file to their names in the model, and splits tensors that a file fuses.

A file may have a `bert.` prefix, `gamma` for `weight`, or other names for attention blocks. `names_in_model` maps names
as transformers does when it loads a model. Artifacts can therefore keep the source's names, and every version of
transformers that reads the source reads the artifact.

Some checkpoints store several tensors of the model as one (NomicBERT's `attn.Wqkv`, DINOv2-giant's `mlp.weights_in`).
transformers splits them when it loads; `split_fused` splits them before the conversion, so that each linear has its own
scales. The pieces go into the artifact under the model's names.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ternarize_cli.errors import CheckpointError
from ternarize_cli.storage.weights import WeightShard

__all__ = ["names_in_model", "split_fused"]


def names_in_model(model: Any, keys: Iterable[str]) -> dict[str, str]:
    """Maps tensor names of a file to names in a model's state dict; names that the model has no place for are left out.

    Args:
        model: a transformers model (the meta device is enough), for which names are mapped as transformers does; or any
            other module, for which names stay as they are.
        keys: names in the file. `X.weight_scale` is mapped like `X.weight`.

    Returns:
        A dict from the name in the file to the name in the state dict.
    """
    rename = _renaming(model)
    found = {}
    for key in keys:
        base, is_scale = (key.removesuffix("_scale"), True) if key.endswith(".weight_scale") else (key, False)
        name = rename(base)
        if name is not None:
            found[key] = f"{name}_scale" if is_scale else name
    return found


def _renaming(model: Any) -> Callable[[str], str | None]:
    """Makes a function that maps a tensor's name in a file to its name in the model; None if the model lacks it."""
    from transformers import PreTrainedModel
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    state = dict.fromkeys(model.state_dict(), True)
    if not isinstance(model, PreTrainedModel):
        return lambda key: key if key in state else None
    renamings = [t for t in get_model_conversion_mapping(model) if isinstance(t, WeightRenaming)]

    def rename(key: str) -> str | None:
        for some in (renamings, []):
            name, _ = rename_source_key(key, some, [], model.base_model_prefix, state)
            if name in state:
                return name
        return None

    return rename


def split_fused(model: Any, shards: Iterable[WeightShard]) -> list[WeightShard]:
    """Wraps shards so that a tensor which the file fuses reads as the pieces that transformers would split it into.

    Args:
        model: the encoder (the meta device is enough).
        shards: shards of a full-precision source; an artifact holds no fused tensors.

    Raises:
        CheckpointError: transformers rebuilds a tensor in another way than by cutting it into equal pieces, or the
            model has no place for a piece.
    """
    from transformers import PreTrainedModel
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    if not isinstance(model, PreTrainedModel):
        return list(shards)
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    state = dict.fromkeys(model.state_dict(), True)
    rename = _renaming(model)
    views = []
    for shard in shards:
        pieces: dict[str, tuple[str, int, int, int]] = {}
        for key in shard.keys() if converters else ():
            name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, state)
            if pattern is None or rename(key) is not None or name not in state:
                continue
            converter = next(t for t in converters if pattern in t.source_patterns)
            dim = _cut(key, converter)
            targets = converter.target_patterns
            for i, target in enumerate(targets):
                piece = name.replace(targets[0], target)
                if rename(piece) != piece:
                    raise CheckpointError(f"{key}: its piece {piece} has no place in the model")
                pieces[piece] = (key, dim, i, len(targets))
        views.append(_with_pieces(shard, pieces))
    return views


def _cut(key: str, converter: Any) -> int:
    """Finds the dimension along which a converter of transformers cuts the tensor `key` into equal pieces.

    Raises:
        CheckpointError: the converter does anything else.
    """
    from transformers.core_model_loading import Chunk

    operations: list[Any] = converter.operations
    plain = len(operations) == 1 and type(operations[0]) is Chunk and len(converter.source_patterns) == 1
    if plain and operations[0].num_shards_attribute is None:
        return int(operations[0].dim)
    names = ", ".join(type(operation).__name__ for operation in operations)
    raise CheckpointError(
        f"{key}: transformers rebuilds this tensor when it loads ({names}), which convert can't follow",
        hint="load the model with AutoModel and save it with save_pretrained(…, save_original_format=False)",
    )


def _with_pieces(shard: WeightShard, pieces: dict[str, tuple[str, int, int, int]]) -> WeightShard:
    if not pieces:
        return shard
    fused = {key for key, *_ in pieces.values()}
    headers = {key: (shard.shape(key), shard.dtype(key)) for key in shard.keys() if key not in fused}  # noqa: SIM118
    for piece, (key, dim, _, count) in pieces.items():
        shape = list(shard.shape(key))
        if shape[dim] % count:
            raise CheckpointError(f"{key} is {shape}, which can't be cut into {count} pieces")
        shape[dim] //= count
        headers[piece] = (tuple(shape), shard.dtype(key))

    def read(name: str) -> torch.Tensor:
        if name not in pieces:
            return shard.get(name)
        key, dim, i, count = pieces[name]
        return shard.get(key).chunk(count, dim)[i].clone()

    return WeightShard(shard.name, shard.path, headers, read)
