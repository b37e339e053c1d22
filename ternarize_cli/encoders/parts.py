"""The parts of a model folder whose linears become ternary: the encoder, and sentence-transformers' Dense modules.

    folder/config.json, model.safetensors           the encoder            names as they are
    folder/2_Dense/config.json, model.safetensors   a Dense module         names with `2_Dense.` in front

Each part has a config of its own that describes its artifact, and weights files of its own. Whatever converts, packs or
calibrates a model goes over its parts.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import nn

from ternarize_cli.encoders import checkpoint
from ternarize_cli.encoders.anatomy import weighted
from ternarize_cli.errors import CheckpointError, named
from ternarize_cli.format.scheme import Artifact
from ternarize_cli.model_folder.model_files import module_folders
from ternarize_cli.storage.bounds import read_json
from ternarize_cli.storage.weights import Shard, open_shards

__all__ = ["Part", "parts_of"]

_WIDEST = 1 << 24


@dataclass(frozen=True)
class Part:
    """The encoder of a model folder or one of its Dense modules.

    Attributes:
        folder: the model folder.
        subfolder: where the part lies in it; "" for the encoder.
        index: its place among the modules of a sentence-transformers model.
    """

    folder: Path
    subfolder: str = ""
    index: int = 0

    @property
    def path(self) -> Path:
        """The part's own folder."""
        return self.folder / self.subfolder

    @property
    def prefix(self) -> str:
        """What users and reports put before the names of its modules."""
        return f"{self.subfolder}." if self.subfolder else ""

    def skeleton(self) -> Any:
        """The part on the meta device, with the names that its weights file uses.

        Raises:
            CheckpointError: its config.json describes nothing that can be built.
        """
        return _dense(self.path) if self.subfolder else checkpoint.skeleton(self.folder)

    @contextmanager
    def open_source(self, model: Any, *, allow_pickle: bool = False) -> Iterator[list[Shard]]:
        """Opens the weights of a full-precision part as `model`, its skeleton, wants them (`checkpoint.split_fused`).

        Raises:
            CheckpointError: as `weights.open_shards`, or tensors that can't be brought into the model's form.
        """
        with open_shards(self.path, allow_pickle=allow_pickle) as shards:
            yield checkpoint.split_fused(model, shards)

    def artifact(self) -> Artifact | None:
        """The description in the part's config; None if it is full precision.

        Raises:
            CheckpointError, FormatError: as `checkpoint.artifact_of`.
        """
        return checkpoint.artifact_of(self.path)

    def write_config(self, output: Path, artifact: Artifact) -> None:
        """Writes the part's config, with its description, into the model folder `output`.

        A Dense module that stays as it is gets none.
        """
        if not self.subfolder:
            checkpoint.write_config(self.folder, output, artifact)
            return
        config = checkpoint.read_config(self.path)
        if not {name for name, _ in weighted(self.skeleton())} <= set(artifact.modules_to_not_convert):
            config["quantization_config"] = artifact.to_dict()
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (output / self.subfolder / "config.json").write_text(text, encoding="utf-8")


def parts_of(folder: Path) -> list[Part]:
    """The parts of a model folder, the encoder first.

    Raises:
        CheckpointError: modules.json is damaged.
    """
    found = [Part(folder)]
    path = folder / "modules.json"
    if not module_folders(folder):
        return found
    kinds = [(str(PurePosixPath(m["path"])), str(m.get("type"))) for m in read_json(path)]
    for index, (where, kind) in enumerate(kinds):
        if kind.startswith("sentence_transformers.") and kind.endswith(".Dense") and where != ".":
            if "/" in where or not (folder / where / "config.json").is_file():
                raise CheckpointError(
                    f"{path} puts a Dense module in {named(where)}, and the model has no such folder with a config",
                    hint="fetch the whole model again",
                )
            found.append(Part(folder, where, index))
    return found


def _dense(folder: Path) -> nn.Module:
    config = checkpoint.read_config(folder)
    sizes = config.get("in_features"), config.get("out_features")
    if not all(isinstance(size, int) and 0 < size < _WIDEST for size in sizes):
        raise CheckpointError(f"{folder / 'config.json'} gives no in_features and out_features", hint="fetch it again")
    module = nn.Module()
    with torch.device("meta"):
        module.linear = nn.Linear(*sizes, bias=bool(config.get("bias", True)))  # type: ignore[arg-type]
        if config.get("use_residual") and sizes[0] != sizes[1]:
            module.residual = nn.Linear(*sizes, bias=False)  # type: ignore[arg-type]
    return module
