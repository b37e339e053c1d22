"""Tells whether a model reads texts or images, and whether a user's sources hold texts or images."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ternarize_cli.data.images import is_images
from ternarize_cli.data.starter import is_starter
from ternarize_cli.data.text_sources import holds_texts, is_hub_id
from ternarize_cli.data.texts import STDIN, source_and_column
from ternarize_cli.errors import CheckpointError, DataError
from ternarize_cli.format.block import blocks_from_dict
from ternarize_cli.format.scheme import METHOD
from ternarize_cli.storage.bounds import read_object, user_path

__all__ = ["modalities_of", "modality_of_sources", "require_modality"]


def modalities_of(folder: Path) -> frozenset[str]:
    """Returns what the model in a folder reads: "text", "image" or both, by the class that `AutoModel` has for it.

    Raises:
        CheckpointError: config.json is missing or damaged.
    """
    described = _described(folder)
    if described:
        return described
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    from ternarize_cli.encoders import checkpoint

    kind = checkpoint.read_config(folder).get("model_type", "")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING or CONFIG_MAPPING[kind] not in MODEL_MAPPING:
        return frozenset({"text"})
    model: Any = MODEL_MAPPING[CONFIG_MAPPING[kind]]
    if isinstance(model, tuple):
        model = model[0]
    if model.main_input_name == "pixel_values" and not hasattr(model, "get_text_features"):
        return frozenset({"image"})
    return frozenset({"text", "image"}) if hasattr(model, "get_image_features") else frozenset({"text"})


def _described(folder: Path) -> frozenset[str]:
    """Returns what an artifact reads by the description of its blocks, without transformers; empty if unknown."""
    path = folder / "config.json"
    quantization = read_object(path).get("quantization_config") if path.is_file() else None
    if not isinstance(quantization, dict) or quantization.get("quant_method") != METHOD:
        return frozenset()
    blocks = blocks_from_dict(quantization.get("block", {}))
    return frozenset("image" if block.embeddings is None else "text" for block in blocks.values())


def require_modality(folder: Path, modality: str, name: str | Path) -> None:
    """Checks that a model reads texts, or that it reads images.

    Args:
        folder: the model's folder.
        modality: what the model must read: "text" or "image".
        name: the name of the model in messages.

    Raises:
        CheckpointError: the model does not read `modality`.
    """
    known = modalities_of(folder)
    if modality not in known:
        reads, given = ("images", "text") if "image" in known else ("text", "images")
        raise CheckpointError(
            f"{name} reads {reads}, not {given}", hint=f"pass a model that reads {given}, or give it {reads}"
        )


def modality_of_sources(folder: Path, sources: Sequence[str | Path], *, stdin: bool = False) -> str:
    """Returns whether sources hold texts ("text") or images ("image"), by the names of files; opens none of them.

    Args:
        folder: the model's folder. From a source folder with texts and images, a model of texts takes the texts.
        sources: names of files, folders or hub datasets; or `starter`.
        stdin: whether `-` may be one of the sources.

    Raises:
        DataError: a source is missing, some sources hold texts and others images, or `-` is given without `stdin`.
        CheckpointError: the model does not read what the sources hold.
    """
    reads = modalities_of(folder)
    kinds = {}
    for source in sources:
        place, _ = source_and_column(source)
        path = user_path(place)
        if (str(source) == STDIN and stdin) or is_starter(source):
            kinds[str(source)] = "text"
            continue
        if str(source) == STDIN:
            raise DataError("calibration does not read stdin", hint="write the texts to a file")
        if not (os.path.exists(path) or is_hub_id(place)):
            raise DataError(
                f"{str(source)[:200]} can't be read: there is no such file",
                hint="a file, a folder, a hub dataset, or starter: texts of this machine",
            )
        image = is_images(path) and ("image" in reads or not (path.is_dir() and holds_texts(path)))
        kinds[str(source)] = "image" if image else "text"
    if len(set(kinds.values())) > 1:
        image_source = next(name for name, kind in kinds.items() if kind == "image")
        raise DataError(f"{image_source} holds images, other sources hold text", hint="pass sources of one kind")
    kind = next(iter(kinds.values()))
    require_modality(folder, kind, folder)
    return kind
