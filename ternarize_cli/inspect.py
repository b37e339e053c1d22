"""`inspect`: what a model folder is, read from its files alone (no model is built)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ternarize_cli import checkpoint, files, packing, surgery, ternary, weights
from ternarize_cli.errors import FormatError
from ternarize_cli.layers import check_scale
from ternarize_cli.scheme import Artifact

__all__ = ["Inspection", "TensorInfo", "inspect"]


@dataclass(frozen=True)
class TensorInfo:
    """One linear or embedding of a model.

    Attributes:
        name: the module; kind: "ternary", "table" or "dense".
        shape: (out, in) or (rows, dim).
        bytes: of the module's weight and scales in the file.
        zeros: fraction of zero codes; scale: mean scale. None unless ternary.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    bytes: int
    zeros: float | None = None
    scale: float | None = None


@dataclass(frozen=True)
class Inspection:
    """What a folder holds.

    Attributes:
        stage: "full precision", "latent" or "packed".
        architecture: the class that transformers builds for it.
        bytes: of all weights files.
        parameters: weights of the encoder, counted unpacked.
        sha256: the folder's content hash.
        modules: its linears and embeddings, in the model's order.
        artifact: the description of an artifact of ours.
    """

    stage: str
    architecture: str
    bytes: int
    parameters: int
    sha256: str
    modules: tuple[TensorInfo, ...]
    artifact: Artifact | None


def inspect(folder: Path, *, allow_pickle: bool = False) -> Inspection:
    """Reads a model folder of any stage; a packed model's codes and scales are checked on the way.

    Raises:
        CheckpointError, FormatError: as reading it would.
    """
    artifact = checkpoint.validate(folder, allow_pickle=allow_pickle)
    model = checkpoint.skeleton(folder)
    modules, parameters = [], 0
    with weights.open_shards(folder, allow_pickle=allow_pickle) as shards:
        if artifact is not None:
            placed = checkpoint.skeleton(folder)
            surgery.replace(placed, artifact)
            checkpoint.check_tensors(placed, shards, FormatError)
        else:
            checkpoint.check_tensors(model, shards)
        by_name: dict[str, tuple[str, weights.Shard]] = {}
        for shard in shards:
            keys = shard.keys()
            for key, name in checkpoint.names_in_model(model, keys).items():
                by_name[name] = (key, shard)
        for name, value in model.state_dict().items():
            parameters += value.numel() if name in by_name else 0
        for name, module in model.named_modules():
            if f"{name}.weight" in by_name and isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                key, shard = by_name[f"{name}.weight"]
                scale_at = by_name.get(f"{name}.weight_scale")
                scale = scale_at[1].get(scale_at[0]) if scale_at else None
                modules.append(_describe(name, module, key, shard.get(key), scale, artifact))
    return Inspection(
        stage=artifact.stage if artifact else "full precision",
        architecture=type(model).__name__,
        bytes=weights.bytes_on_disk(folder, allow_pickle=allow_pickle),
        parameters=parameters,
        sha256=files.content_hash(folder),
        modules=tuple(modules),
        artifact=artifact,
    )


def _describe(
    name: str, module: torch.nn.Module, key: str, weight: Tensor, scale: Tensor | None, artifact: Artifact | None
) -> TensorInfo:
    assert isinstance(module.weight, Tensor)
    shape = (int(module.weight.shape[0]), int(module.weight.shape[1]))
    size = weight.numel() * weight.element_size() + (scale.numel() * scale.element_size() if scale is not None else 0)
    if artifact is None or surgery.kept_by(name, artifact):
        return TensorInfo(name, "dense", shape, size)
    if isinstance(module, torch.nn.Embedding):
        return TensorInfo(name, "table", shape, size)
    assert scale is not None
    check_scale(scale, f"{key}_scale")
    try:
        codes = packing.unpack_2bit(weight, shape[1]) if artifact.stage == "packed" else ternary.codes_of(weight, scale)
    except ValueError as e:
        raise FormatError(f"{key}: {e}") from e
    return TensorInfo(name, "ternary", shape, size, float((codes == 0).float().mean()), float(scale.float().mean()))
