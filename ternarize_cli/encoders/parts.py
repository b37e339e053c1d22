"""Lists the parts of a model folder whose linears become ternary: the encoder, and Dense modules beside it.

    folder/config.json, model.safetensors           the encoder            names of modules unchanged
    folder/2_Dense/config.json, model.safetensors   a Dense module         names of modules with `2_Dense.` in front

Each part has a config of its own that describes its artifact, and weights files of its own. Converting, packing and
calibrating a model each go over its parts.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ternarize_cli.encoders import checkpoint
from ternarize_cli.encoders.anatomy import backbone, weighted
from ternarize_cli.errors import CheckpointError, named
from ternarize_cli.format.scheme import Artifact
from ternarize_cli.model_folder.model_files import module_folders
from ternarize_cli.model_folder.model_kind import head_of
from ternarize_cli.storage.bounds import read_json
from ternarize_cli.storage.weights import WeightShard, open_shards

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Part", "parts_of"]

_WIDEST = 1 << 24


@dataclass(frozen=True)
class Part:
    """A part of a model folder: the encoder or one of the Dense modules.

    Attributes:
        folder: the model folder.
        subfolder: the part's folder, relative to the model folder; "" for the encoder.
        index: the part's position among the modules of a sentence-transformers model.
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
        """The prefix of the names of the part's modules, in options and reports."""
        return f"{self.subfolder}." if self.subfolder else ""

    def module_of(self, encoder: "SentenceTransformer") -> Any:
        """Finds the part's module in the loaded model: the transformers model inside the first, or a Dense module."""
        return encoder[self.index] if self.subfolder else backbone(encoder)

    def skeleton(self) -> Any:
        """Builds the part on the meta device, with the names that its weights file uses.

        Raises:
            CheckpointError: the part's config.json describes nothing that can be built.
        """
        return _dense(self.path) if self.subfolder else checkpoint.skeleton(self.folder, head_of(self.folder))

    def encoder(self) -> Any:
        """Builds the encoder of the model folder without a head, on the meta device.

        Raises:
            CheckpointError: config.json describes nothing that can be built.
        """
        return checkpoint.skeleton(self.folder)

    @contextmanager
    def open_source(self, model: Any, *, allow_pickle: bool = False) -> Iterator[list[WeightShard]]:
        """Opens the weights of a full-precision part, with fused tensors split (`tensor_names.split_fused`).

        Args:
            model: the part's skeleton.
            allow_pickle: read pytorch_model.bin if there is no safetensors file.

        Raises:
            CheckpointError: a file is missing or damaged or a pickle that is not allowed, or a tensor can't be split.
        """
        with open_shards(self.path, allow_pickle=allow_pickle) as shards:
            yield checkpoint.split_fused(model, shards)

    def artifact(self) -> Artifact | None:
        """Reads the artifact's description from the part's config; None if the part is full precision.

        Raises:
            CheckpointError: config.json is missing or damaged.
            FormatError: the description breaks the format.
        """
        return checkpoint.artifact_of(self.path)

    def write_config(self, output: Path, artifact: Artifact) -> None:
        """Writes the part's config, with the artifact's description, into the model folder `output`.

        The config of a Dense module whose linears all stay dense gets no description, and that of any Dense module none
        of blocks.
        """
        if not self.subfolder:
            checkpoint.write_config(self.folder, output, artifact)
            return
        config = checkpoint.read_config(self.path)
        if not {name for name, _ in weighted(self.skeleton())} <= set(artifact.modules_to_not_convert):
            config["quantization_config"] = replace(artifact, block={}).to_dict()
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (output / self.subfolder / "config.json").write_text(text, encoding="utf-8")


def parts_of(folder: Path) -> list[Part]:
    """Lists the parts of a model folder, the encoder first.

    Raises:
        CheckpointError: modules.json is damaged, or names a Dense module whose folder has no config.json.
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
