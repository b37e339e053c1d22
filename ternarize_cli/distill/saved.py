"""What distillation keeps on disk: checkpoints to resume from, and the trained tensors.

.NAME.partial/
  state.pt        the last checkpoint (tensors and plain values only), replaced atomically
  metrics.jsonl   one line per reading of the losses
  start/          the student, where it was converted on the fly
"""

import hashlib
import json
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ternarize_cli import checkpoint, files, weights
from ternarize_cli.distill.training import Training
from ternarize_cli.errors import CheckpointError
from ternarize_cli.parts import Part

__all__ = ["key", "load", "replace_contents", "save", "write_tensors"]

STATE = "state.pt"
_MAY_DIFFER = ("minutes", "steps", "epochs", "learning_rate", "save_every")


def key(student: Path, teacher: Path, training: Training, texts: int) -> str:
    """What must be equal for a run to be resumed: models, data and settings, but for budget and learning rate."""
    settings = {k: v for k, v in asdict(training).items() if k not in _MAY_DIFFER}
    parts = [files.content_hash(student), files.content_hash(teacher), json.dumps(settings, sort_keys=True), str(texts)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def save(partial: Path, run: str, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint; killed on the way, the one before it stays."""
    with files.atomic_file(partial / STATE, force=True) as path, path.open("wb") as stream:
        torch.save({"key": run, **state}, stream)


def load(partial: Path, run: str, device: torch.device) -> dict[str, Any]:
    """Reads the checkpoint in a partial folder.

    Raises:
        CheckpointError: there is none, it is damaged, or it is of another run.
    """
    path = partial / STATE
    again = "without --resume training starts anew"
    if not path.is_file():
        raise CheckpointError(f"there is nothing to resume: {partial} holds no checkpoint", hint=again)
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        found = state.pop("key")
    except (RuntimeError, OSError, EOFError, KeyError, AttributeError, ValueError, pickle.UnpicklingError) as e:
        text = " ".join(str(e).split())[:160]
        raise CheckpointError(f"{path} is damaged: {text}", hint=again) from e
    if found != run:
        raise CheckpointError(
            f"{path} is of a run with other models, data or settings",
            hint=f"give the options of that run (budget and --learning-rate may differ); {again}",
        )
    return state


def write_tensors(part: Part, output: Path, trained: nn.Module) -> None:
    """Writes the trained tensors of a part under the names and into the shards of the checkpoint they came from."""
    state = trained.state_dict()
    writer = weights.ShardWriter(output / part.subfolder)
    with weights.open_shards(part.path) as shards:
        for shard in shards:
            keys = shard.keys()
            names = checkpoint.names_in_model(trained, keys)
            with writer.shard(shard.name) as out:
                for name in keys:
                    out.add(name, state[names[name]] if name in names else shard.get(name))
    writer.finish()


def replace_contents(folder: Path, made: Path) -> None:
    """Leaves in `folder` what lies in its subfolder `made`, and nothing else."""
    for path in folder.iterdir():
        if path != made:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    aside = made.rename(folder / f".{made.name}")
    for path in list(aside.iterdir()):
        path.rename(folder / path.name)
    aside.rmdir()
