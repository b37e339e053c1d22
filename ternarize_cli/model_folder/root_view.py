"""Shows a model whose encoder lies in a subfolder as one whose encoder lies in the model's own folder.

Older sentence-transformers models keep the encoder in a folder of its own, which modules.json names:

    m/modules.json                         0_Transformer, 1_Pooling
    m/0_Transformer/config.json, …         the encoder, its tokenizer, its sentence_bert_config.json
    m/1_Pooling/config.json

Everything else in ternarize finds config.json, the weights and the tokenizer in the model's own folder, where
sentence-transformers has written them since 2021. So such a model is read through a view (`storage.views`): the files
of the encoder's folder come into the root, and modules.json says so. What is made of it has the newer layout.

The class CLIPModel, which sentence-transformers keeps for models like clip-ViT-B-32, is a Transformer whose texts and
images become the projected features of CLIP. The view says that in the words of a Transformer.
"""

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

from ternarize_cli.errors import CheckpointError, quoted
from ternarize_cli.model_folder.model_files import module_folders
from ternarize_cli.storage.bounds import optional_object, read_json
from ternarize_cli.storage.views import new_view

__all__ = ["in_root", "refuse_module"]

_PREFIX = "sentence_transformers."
_SETTINGS = "sentence_bert_config.json"
_FEATURES = {
    "modality_config": {
        kind: {"method": f"get_{kind}_features", "method_output_name": "pooler_output"} for kind in ("text", "image")
    },
    "module_output_name": "sentence_embedding",
}


def in_root(folder: Path) -> Path:
    """Returns a view of a model whose encoder is in a subfolder, or a CLIPModel; any other folder itself.

    Raises:
        CheckpointError: modules.json is damaged, or names a folder that is missing, a link, or outside the model's.
    """
    found = _encoder_of(folder)
    if found is None:
        return folder
    modules, where, is_clip = found
    root = folder / where
    if where and (not root.is_dir() or root.is_symlink()):
        raise CheckpointError(
            f"{folder / 'modules.json'} puts the encoder in {where}, and the model has no such folder",
            hint="fetch the whole model again",
        )
    view = new_view(folder)
    for source in (folder, root) if where else (folder,):
        _link_files(source, view, only=_BESIDE if where and source == folder else ())
    for other in module_folders(folder):
        if other != where:
            _link_tree(folder / other, view / other)
    first: dict[str, Any] = dict(modules[0], path="", type=f"{_PREFIX}models.Transformer")
    (view / "modules.json").unlink(missing_ok=True)
    (view / "modules.json").write_text(json.dumps([first, *modules[1:]]))
    if is_clip:
        settings = optional_object(view / _SETTINGS)
        (view / _SETTINGS).unlink(missing_ok=True)
        (view / _SETTINGS).write_text(json.dumps({**_FEATURES, **settings}))
    return view


_BESIDE = ("config_sentence_transformers.json", "README.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE")
"""The files of the root that belong to a model whose encoder is in a subfolder."""


def _encoder_of(folder: Path) -> tuple[list[dict[str, Any]], str, bool] | None:
    """Reads modules.json: its modules, the folder of the first, and whether that is a CLIPModel; None if no view is
    needed, or if modules.json is of another kind, which `module_check` refuses in words."""
    if not module_folders(folder) and not (folder / "modules.json").is_file():
        return None
    modules = read_json(folder / "modules.json")
    kinds = [str(module.get("type")) for module in modules]
    if not kinds or not kinds[0].startswith(_PREFIX) or any(_is_encoder(kind) for kind in kinds[1:]):
        return None
    where = str(PurePosixPath(modules[0]["path"]))
    is_clip = kinds[0].endswith(".CLIPModel")
    if not is_clip and not (kinds[0].endswith(".Transformer") and where != "."):
        return None
    return modules, "" if where == "." else where, is_clip


def _is_encoder(kind: str) -> bool:
    return kind.endswith((".Transformer", ".CLIPModel"))


def refuse_module(folder: Path) -> None:
    """Refuses the encoder's own folder of a model, which does not say how the model's vectors are made of it.

    Raises:
        CheckpointError: modules.json in a folder above names `folder` as the folder of its encoder.
    """
    path = folder.resolve()
    if (folder / "modules.json").exists():
        return
    for parent in list(path.parents)[:2]:
        if not (parent / "modules.json").is_file():
            continue
        try:
            found = _encoder_of(parent)
        except CheckpointError:
            continue
        if found is not None and found[1] and parent / found[1] == path:
            raise CheckpointError(
                f"{folder} is the encoder of the model {parent}, whose modules.json says how its vectors are pooled",
                hint=f"pass the whole model: {quoted(parent)}; or, for another pooling, a copy of the encoder's folder",
            )


def _link_files(source: Path, view: Path, *, only: tuple[str, ...] = ()) -> None:
    for path in source.iterdir():
        if not path.name.startswith(".") and not path.is_dir() and (not only or path.name in only):
            (view / path.name).symlink_to(path.resolve() if path.is_symlink() else path.absolute())


def _link_tree(source: Path, view: Path) -> None:
    """Makes the folders of a tree, and links to its files; links to folders are left out, as `model_files` does."""
    view.mkdir(parents=True, exist_ok=True)
    for where, _, _ in os.walk(source):
        target = view / Path(where).relative_to(source)
        target.mkdir(exist_ok=True)
        _link_files(Path(where), target)
