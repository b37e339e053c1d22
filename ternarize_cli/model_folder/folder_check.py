"""What a model folder says is checked here before a loader of transformers or sentence-transformers sees it.

Those loaders do what configs tell them: take keyword arguments from `sentence_bert_config.json`, unpickle weights where
a file of that name lies, fetch kernels and base models from a hub, import classes by their dotted names. A folder may
come from anybody, so what such a file may ask for is a list of known things, and anything else is refused by name:

    modules.json, configs of modules      `module_check`
    config.json                           `config_check`
    the files beside it                   `companion_check`
    adapter_config.json                   refused: it would load another model from wherever it says
    pytorch_model.bin, in any subfolder   only where the user allows pickles

The loaders are told the same once more in their own arguments (`LOADING`).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ternarize_cli.errors import CheckpointError
from ternarize_cli.model_folder.companion_check import check_companion
from ternarize_cli.model_folder.config_check import check_config
from ternarize_cli.model_folder.model_files import model_files
from ternarize_cli.model_folder.module_check import check_modules
from ternarize_cli.storage.bounds import read_object

__all__ = ["LOADING", "check_folder", "loading_arguments", "refuse_adapter"]

LOADING: Mapping[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""What every loader of transformers is told about a folder: no hub, no code."""
_WEIGHTS = (".safetensors", ".bin", ".npz")


def check_folder(folder: Path, *, allow_pickle: bool = False) -> dict[str, Any]:
    """Checks everything in a model folder that a loader would act on, apart from the values of tensors.

    Args:
        folder: a model folder of any stage.
        allow_pickle: let pickled weights pass; they are then read for their tensors alone.

    Returns:
        config.json, checked.

    Raises:
        CheckpointError: a file is missing, damaged, too large or no regular file, or asks for something that is not
            taken from a folder; the message names file, key and value.
    """
    refuse_adapter(folder)
    check_modules(folder)
    if not (folder / "config.json").exists():
        raise CheckpointError(f"{folder} is no model folder: it has no config.json")
    files = model_files(folder)
    config = read_object(folder / "config.json")
    check_config(config, folder / "config.json")
    _check_pickles(folder, files, allow_pickle)
    for name in files:
        if not name.endswith(_WEIGHTS):
            check_companion(folder / name, is_module="/" in name)
    return config


def refuse_adapter(folder: Path) -> None:
    """Refuses a folder with an adapter, such as LoRA's, which loaders would put on a model from wherever it says.

    Raises:
        CheckpointError: the folder holds adapter_config.json.
    """
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder} holds an adapter (adapter_config.json) for another model, and not the model that it makes",
            hint="merge it first: PeftModel.from_pretrained(BASE, …).merge_and_unload().save_pretrained(DIR)",
        )


def loading_arguments(*, allow_pickle: bool) -> dict[str, Any]:
    """The keyword arguments by which sentence-transformers passes on to transformers what `LOADING` says.

    They take precedence over whatever a folder asks for.
    """
    weights = {**LOADING, "weights_only": True, **({} if allow_pickle else {"use_safetensors": True})}
    return {"model_kwargs": weights, "processor_kwargs": dict(LOADING), "config_kwargs": dict(LOADING)}


def _check_pickles(folder: Path, files: Iterable[str], allow_pickle: bool) -> None:
    """Refuses a folder or a subfolder whose only weights are pickled."""
    names = set(files)
    for name in sorted(names):
        where, _, leaf = name.rpartition("/")
        if not leaf.endswith(".bin"):
            continue
        safe = [f"{where}/{n}".lstrip("/") for n in ("model.safetensors", "model.safetensors.index.json")]
        if not allow_pickle and not names.intersection(safe):
            raise CheckpointError(
                f"{folder / name} is a pickle: loading one can run code, so it is refused",
                hint="--allow-pickle if you trust its author (only tensors are read), or fetch model.safetensors",
            )
