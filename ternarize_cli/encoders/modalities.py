"""What a model reads, texts or images, and which of them its user's sources hold."""

import os
from collections.abc import Sequence
from pathlib import Path

from ternarize_cli.data.images import is_images
from ternarize_cli.data.text_sources import TABLES, is_hub_id
from ternarize_cli.data.texts import STDIN, text_files
from ternarize_cli.errors import CheckpointError, DataError
from ternarize_cli.storage.bounds import user_path

__all__ = ["modalities_of", "modality_of_sources", "require_modality"]


def modalities_of(folder: Path) -> frozenset[str]:
    """What a model folder reads: "text", "image" or both, by the class that `AutoModel` has for it.

    Raises:
        CheckpointError: config.json is missing or damaged.
    """
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    from ternarize_cli.encoders import checkpoint

    kind = checkpoint.read_config(folder).get("model_type")
    if kind not in CONFIG_MAPPING or CONFIG_MAPPING[kind] not in MODEL_MAPPING:
        return frozenset({"text"})
    model = MODEL_MAPPING[CONFIG_MAPPING[kind]]
    if isinstance(model, tuple):
        model = model[0]
    if model.main_input_name == "pixel_values" and not hasattr(model, "get_text_features"):
        return frozenset({"image"})
    return frozenset({"text", "image"}) if hasattr(model, "get_image_features") else frozenset({"text"})


def require_modality(folder: Path, modality: str, name: str | Path) -> None:
    """Refuses a model that can't read what it is given.

    Args:
        folder: the model.
        modality: "text" or "image".
        name: what messages call the model.

    Raises:
        CheckpointError: the model does not read it.
    """
    known = modalities_of(folder)
    if modality not in known:
        reads, given = ("images", "text") if "image" in known else ("text", "images")
        raise CheckpointError(
            f"{name} reads {reads}, not {given}", hint=f"pass a model that reads {given}, or give it {reads}"
        )


def modality_of_sources(folder: Path, sources: Sequence[str | Path], *, stdin: bool = False) -> str:
    """Tells whether sources hold texts or images ("text", "image"), by their names; reads none of them.

    Args:
        folder: the model. One that reads only text takes the texts of a folder that holds both.
        sources: files, folders, hub datasets.
        stdin: whether `-` may be one of them.

    Raises:
        DataError: one is missing, or there are both texts and images.
        CheckpointError: the model reads nothing of their kind.
    """
    reads = modalities_of(folder)
    kinds = {}
    for source in sources:
        path = user_path(source)
        if str(source) == STDIN and stdin:
            kinds[STDIN] = "text"
            continue
        if str(source) == STDIN:
            raise DataError("calibration does not read stdin", hint="write the texts to a file")
        if not str(source) or not (os.path.exists(path) or is_hub_id(source)):
            name = str(source)[:200] or "an empty name"
            raise DataError(f"{name} can't be read: there is no such file", hint="a file, a folder, or a hub dataset")
        image = is_images(path) and ("image" in reads or not (path.is_dir() and text_files(path, also=TABLES)))
        kinds[str(source)] = "image" if image else "text"
    if len(set(kinds.values())) > 1:
        image_source = next(name for name, kind in kinds.items() if kind == "image")
        raise DataError(f"{image_source} holds images, other sources hold text", hint="give one kind")
    kind = next(iter(kinds.values()))
    require_modality(folder, kind, folder)
    return kind
