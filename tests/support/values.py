"""The values of models, in files and in memory."""

from pathlib import Path
from typing import Any

import torch

from ternarize_cli import load
from ternarize_cli.encoders.module_replacement import dequantize
from ternarize_cli.storage.weights import open_shards


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    with open_shards(folder) as shards:
        return {key: shard.get(key) for shard in shards for key in shard.keys()}  # noqa: SIM118


def multiplied_out(packed: Path) -> dict[str, torch.Tensor]:
    """The values of a packed model in float32."""
    model: Any = load(packed, backend="reference", device="cpu")[0].auto_model
    return dict(dequantize(model).state_dict())
