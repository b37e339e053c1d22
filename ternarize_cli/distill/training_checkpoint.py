"""Writes and reads checkpoints of a distillation, and writes the trained tensors.

.NAME.partial/
  state.pt        its sha256, then the last checkpoint (tensors and plain values only); replaced atomically
  metrics.jsonl   one line per reading of the losses
  start/          the student, if it was converted for this run
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ternarize_cli.distill.losses import REVISION
from ternarize_cli.distill.options import BUDGETS, Training
from ternarize_cli.encoders import checkpoint
from ternarize_cli.encoders.parts import Part
from ternarize_cli.errors import CheckpointError, TernarizeError, reason
from ternarize_cli.storage import digests, files, weights

__all__ = ["has_checkpoint", "key", "replace_contents", "restore", "save", "write_tensors"]

STATE = "state.pt"
_DIGEST = 32
_AGAIN = "--force without --resume starts anew"
_MAY_DIFFER = (*BUDGETS, "until", "learning_rate", "save_every", "gradient_checkpointing")


def key(models: Iterable[Path], training: Training, *others: object) -> str:
    """Hashes what must be equal to resume a run: models, settings that change the result, and `others`.

    Budget, `until` and learning rate may differ, and so may gradient checkpointing, which gives the same gradients.
    """
    settings = {k: v for k, v in asdict(training).items() if k not in _MAY_DIFFER}
    parts = [*map(digests.content_hash, models), json.dumps(settings, sort_keys=True), *map(str, others)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def has_checkpoint(partial: Path) -> bool:
    """Whether a partial folder holds a checkpoint to resume from."""
    return (partial / STATE).is_file()


def save(partial: Path, run: str, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint; if the process is killed meanwhile, the checkpoint before stays."""
    made = io.BytesIO()
    torch.save({"key": run, "revision": REVISION, **state}, made)
    with files.atomic_file(partial / STATE, force=True) as path, path.open("wb") as stream:
        stream.write(hashlib.sha256(made.getbuffer()).digest())
        stream.write(made.getbuffer())


def restore(partial: Path, run: str, take: Callable[[dict[str, Any]], None]) -> None:
    """Reads the checkpoint in a partial folder and hands its state, whose tensors are on the CPU, to `take`.

    Args:
        partial: the folder.
        run: the `key` of the run that goes on.
        take: restores the run from the state; it may raise any error if the state is not one that it has made.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, of another run, or of a version that trains differently.
    """
    path = partial / STATE
    if not has_checkpoint(partial):
        hint = "without --resume training starts anew"
        raise CheckpointError(f"there is nothing to resume: {partial} holds no checkpoint", hint=hint)
    content = path.read_bytes()
    digest, content = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(content).digest() != digest:
        raise CheckpointError(f"{path} is damaged: it is not what was written", hint=_AGAIN)
    with _as_damaged(path):
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        revision, key = state.pop("revision", None), state.pop("key", None)
    if revision != REVISION:
        raise CheckpointError(f"{path} is of another version of ternarize, which trains otherwise", hint=_AGAIN)
    if key != run:
        raise CheckpointError(
            f"{path} is of a run with other models, data or settings",
            hint=f"give the options of that run (budget, --until and --learning-rate may differ); {_AGAIN}",
        )
    with _as_damaged(path):
        take(state)


@contextmanager
def _as_damaged(path: Path) -> Iterator[None]:
    """Tells what goes wrong with the contents of a checkpoint as an error about the file."""
    try:
        yield
    except (TernarizeError, MemoryError, OSError, torch.OutOfMemoryError):
        raise
    except Exception as e:  # unpickling and restoring from values of other types can raise any error
        raise CheckpointError(f"{path} is damaged: {type(e).__name__}: {reason(e)}", hint=_AGAIN) from e


def write_tensors(part: Part, output: Path, trained: nn.Module) -> None:
    """Writes the trained tensors of a part, with the names and in the shards of the checkpoint that they came from."""
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
    """Replaces the contents of `folder` by those of its subfolder `made`."""
    for path in folder.iterdir():
        if path != made:
            files.remove(path)
    aside = made.rename(folder / f".{made.name}")
    for path in list(aside.iterdir()):
        path.rename(folder / path.name)
    aside.rmdir()
