"""Checks a model folder before a loader of transformers or sentence-transformers reads it.

Those loaders do what configs say: they take keyword arguments from `sentence_bert_config.json`, unpickle weights if
such a file exists, fetch kernels and base models from a hub, and import classes by their dotted names. A folder may
come from anybody, so its files may ask for known things only, and anything else is refused by name:

    modules.json, configs of modules      checked by `module_check`
    config.json                           checked by `config_check`
    the files beside it                   checked by `companion_check`
    adapter_config.json                   refused: it would load another model from any place that it names; of an
                                          adapter that was checked (`adapter_check`), the merged model comes here
    pytorch_model.bin, in any subfolder   accepted only if the user allows pickles

The arguments of the loaders (`LOADING`) forbid hub and code once more.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ternarize_cli.errors import CheckpointError
from ternarize_cli.format.scheme import METHOD
from ternarize_cli.model_folder.adapter_check import is_adapter
from ternarize_cli.model_folder.companion_check import check_companion
from ternarize_cli.model_folder.config_check import check_config
from ternarize_cli.model_folder.model_files import model_files
from ternarize_cli.model_folder.module_check import check_activation, check_modules
from ternarize_cli.storage.bounds import read_object

__all__ = ["LOADING", "check_folder", "loading_arguments"]

LOADING: Mapping[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Keyword arguments for every loader of transformers: fetch nothing from a hub, and run no code of the folder."""
_WEIGHTS = (".safetensors", ".bin", ".npz")
_TRUST = "--allow-pickle if you trust its author (only tensors are read), or fetch model.safetensors"
_UNPICKLE = "convert or distill again, which write safetensors, or save its tensors as model.safetensors"


def check_folder(folder: Path, *, allow_pickle: bool = False) -> dict[str, Any]:
    """Checks everything in a model folder that a loader would act on, apart from the values of tensors.

    Args:
        folder: a model folder of any stage.
        allow_pickle: accept pickled weights, from which only tensors are read.

    Returns:
        The checked config.json.

    Raises:
        CheckpointError: a file is missing, damaged, too large or no regular file, or asks for something that a folder
            may not ask for; the message names file, key and value.
    """
    if is_adapter(folder):
        raise CheckpointError(
            f"{folder} holds an adapter (adapter_config.json) for another model, and not a whole model",
            hint=f"ternarize convert {folder} merges it into its base; so does load, by the adapter's name",
        )
    check_modules(folder)
    if not (folder / "config.json").exists():
        raise CheckpointError(f"{folder} is no model folder: it has no config.json")
    files = model_files(folder)
    config = read_object(folder / "config.json")
    check_config(config, folder / "config.json")
    _check_activations(config, folder / "config.json")
    quantization = config.get("quantization_config")
    ours = isinstance(quantization, dict) and quantization.get("quant_method") == METHOD
    _check_pickles(folder, files, allow_pickle, _UNPICKLE if ours else _TRUST)
    for name in files:
        if not name.endswith(_WEIGHTS):
            check_companion(folder / name, is_module="/" in name)
    return config


def _check_activations(config: Mapping[str, Any], path: Path) -> None:
    """Checks the activations that CrossEncoder imports by the names in its config.json."""
    settings = config.get("sentence_transformers")
    check_activation("activation_fn", settings.get("activation_fn") if isinstance(settings, dict) else None, path)
    key = "sbert_ce_default_activation_function"
    check_activation(key, config.get(key), path)


def loading_arguments(*, allow_pickle: bool) -> dict[str, Any]:
    """Makes the keyword arguments by which sentence-transformers passes `LOADING` on to transformers.

    They take precedence over the folder's own settings.
    """
    weights = {**LOADING, "weights_only": True, **({} if allow_pickle else {"use_safetensors": True})}
    return {"model_kwargs": weights, "processor_kwargs": dict(LOADING), "config_kwargs": dict(LOADING)}


def _check_pickles(folder: Path, files: Iterable[str], allow_pickle: bool, hint: str) -> None:
    """Refuses a folder or a subfolder whose only weights are pickled."""
    names = set(files)
    for name in sorted(names):
        where, _, leaf = name.rpartition("/")
        if not leaf.endswith(".bin"):
            continue
        safe = [f"{where}/{n}".lstrip("/") for n in ("model.safetensors", "model.safetensors.index.json")]
        if not allow_pickle and not names.intersection(safe):
            raise CheckpointError(f"{folder / name} is a pickle: loading one can run code, so it is refused", hint=hint)
