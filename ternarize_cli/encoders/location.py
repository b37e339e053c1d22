"""Finds the folder of a model by the name that users type, and that of an adapter's base by the name in its config.

A name in a config is a stranger's. It can be a folder or a model of the hub, and it goes through the checks of a name
that a user types; but it can't be `package:NAME`, and an adapter from the hub can't name a folder of this machine.
"""

import importlib.util
import os
import re
from pathlib import Path

from ternarize_cli.encoders import hub
from ternarize_cli.errors import CheckpointError, InputError, ModelNotFoundError, named, quoted
from ternarize_cli.model_folder.adapter_check import LoraAdapter, is_adapter
from ternarize_cli.model_folder.module_check import check_modules
from ternarize_cli.model_folder.root_view import in_root, refuse_module
from ternarize_cli.storage.views import origin

__all__ = ["base_of", "located"]


def located(text: str, *, allow_pickle: bool, headers_only: bool) -> Path:
    """Finds the folder that MODEL names: of a whole model, or of an adapter.

    Args:
        text: a folder, `package:NAME`, or a hub id or address as `hub.parse` reads it.
        allow_pickle: also download `pytorch_model.bin` files.
        headers_only: of a hub id, fetch the headers of weights files only, where that can be done.

    Raises:
        ModelNotFoundError: there is no such folder, package or model on the hub.
        CheckpointError: the text names a file, or the folder holds neither config.json nor an adapter.
    """
    if text.startswith("package:"):
        return in_root(_package_folder(text.removeprefix("package:")))
    folder = Path(text).expanduser()
    if folder.is_dir():
        return _checked_folder(folder)
    if folder.exists():
        raise CheckpointError(f"{text} is a file, not a model folder", hint=f"pass its folder: {quoted(folder.parent)}")
    return _fetched(hub.parse(text), allow_pickle=allow_pickle, headers_only=headers_only)


def _checked_folder(folder: Path) -> Path:
    refuse_module(folder)
    view = in_root(folder)
    if not is_adapter(view) and not (view / "config.json").is_file():
        check_modules(view)
        raise CheckpointError(
            f"{folder} is no model folder: it has no config.json",
            hint="pass the folder that holds config.json and model.safetensors",
        )
    return view


def _fetched(model: hub.HubModel, *, allow_pickle: bool, headers_only: bool) -> Path:
    return in_root((hub.headers_only if headers_only else hub.download)(model, allow_pickle=allow_pickle))


def base_of(adapter: LoraAdapter, *, allow_pickle: bool, headers_only: bool) -> Path:
    """Finds the base of an adapter: a folder, absolute or relative to the adapter's; otherwise a model of the hub.

    Args:
        adapter: the adapter.
        allow_pickle, headers_only: as `located` takes them.

    Raises:
        ModelNotFoundError: there is no such folder or model, or an adapter of the hub names a folder of this machine.
        CheckpointError: the base is itself an adapter, or no model folder.
    """
    place, said = origin(adapter.folder), f"{adapter.folder} is an adapter of {named(adapter.base)}"
    path, from_hub = Path(adapter.base), hub.origin_of(adapter.folder) is not None
    hint = "write the hub id or the folder of the base into base_model_name_or_path of adapter_config.json"
    if from_hub and (path.is_absolute() or ".." in path.parts):
        raise ModelNotFoundError(f"{said}, a folder of the machine where it was trained", hint=hint)
    try:
        if os.path.isdir(place / path):  # False for a name that is too long
            base = _checked_folder(place / path)
        else:
            found = hub.parse(f"{adapter.base}@{adapter.revision}" if adapter.revision else adapter.base)
            base = _fetched(found, allow_pickle=allow_pickle, headers_only=headers_only)
    except InputError as e:
        beside = "" if path.is_absolute() else f" (folders are looked for beside the adapter, in {place})"
        raise type(e)(f"{said}, and {e}{beside}", hint=e.hint) from e
    if is_adapter(base):
        raise CheckpointError(f"{said}, which is an adapter, too", hint="merge the other one into its base first")
    return base


def _package_folder(name: str) -> Path:
    try:
        spec = importlib.util.find_spec(name) if re.fullmatch(r"[A-Za-z_]\w*", name) else None
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        pip_name = name.replace("_", "-")
        raise ModelNotFoundError(f"no Python package {name!r} is installed here", hint=f"pip install {pip_name}")
    roots = [Path(p) for p in spec.submodule_search_locations or []]
    names = ("config.json", "modules.json")
    found = sorted({p.parent for root in roots for name in names for p in root.rglob(name)})
    top = [p for p in found if not any(other in p.parents for other in found)]
    if len(top) != 1:
        listed = ", ".join(str(p) for p in top[:4]) or "none"
        raise ModelNotFoundError(
            f"the package {name!r} should carry one folder with a config.json; found {len(top)}: {listed}",
            hint="pass the model's folder itself",
        )
    return top[0]
