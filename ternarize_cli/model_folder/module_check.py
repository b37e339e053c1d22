"""Checks modules.json and the configs of modules before sentence-transformers imports and builds the modules.

modules.json names modules by dotted paths of Python classes; sentence-transformers imports these, and builds them with
all the arguments in their configs. Only sentence-transformers' own classes are accepted, in folders inside the model's.

The encoder must be a Transformer in the model's own folder, where its config and tensors are checked and converted.
sentence-transformers can also load an encoder from a subfolder or inside a Router; such models are refused, because
their encoders would not be checked.
"""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from ternarize_cli.errors import CheckpointError, named, shown
from ternarize_cli.model_folder.model_files import module_folders
from ternarize_cli.storage.bounds import read_json

__all__ = ["check_activation", "check_module_config", "check_modules"]

_CLASS = re.compile(r"sentence_transformers(\.\w+)*\.(?P<name>[A-Za-z]\w*)")
_ENCODER = "Transformer"
_WITH_HEAD = "MLMTransformer"
_BEHIND_IT = {"Pooling", "Normalize", "Dense", "LayerNorm", "Dropout", "WeightedLayerPooling", "SpladePooling"}
"""Classes that pool what a Transformer gives for tokens to one vector, or change that vector. Classes that replace a
Transformer (CLIPModel, WordEmbeddings, …), hold modules themselves (Router), read scores from the logits of a language
model (LogitScore) or have weights of another kind (SparseAutoEncoder) are refused."""
_ACTIVATION = re.compile(
    r"torch\.nn\.(modules\.(activation|linear)\.)?"
    r"(CELU|ELU|GELU|Hardsigmoid|Hardswish|Hardtanh|Identity|LeakyReLU|LogSigmoid|Mish|PReLU|ReLU|ReLU6|SELU|SiLU|Sigmoid"
    r"|Softplus|Softsign|Tanh|Tanhshrink)"
)
_OF_SPLADE = ("relu", "log1p_relu")
"""The activations of SpladePooling, which are no classes."""
_LARGEST = 1 << 24


def check_modules(folder: Path) -> None:
    """Checks modules.json, if there is one.

    Raises:
        CheckpointError: the file is no list of modules; a class is not one of sentence-transformers that ternarize
            accepts, or is an encoder outside the model's own folder; a module's folder is outside the model's, or is
            the encoder's; a name is no text, or comes twice.
    """
    path = folder / "modules.json"
    module_folders(folder)  # checks that each module has a path and a type, and that the paths stay inside the model's
    if not path.exists():
        return
    names: set[str] = set()
    for module in read_json(path):
        name, kind = module.get("name"), _class_name(module["type"], path)
        in_root = not PurePosixPath(module["path"]).parts
        if kind in (_ENCODER, _WITH_HEAD) and not in_root:
            raise CheckpointError(
                f"{path} puts the encoder in {shown(module['path'])}; ternarize takes it from the model's own folder",
                hint="SentenceTransformer(MODEL).save_pretrained(NEW) puts it there",
            )
        if not isinstance(name, str) or name in names:
            raise CheckpointError(f"{path}: a module's name is {shown(name)}; names are text, each one once")
        names.add(name)
        if in_root and kind not in (_ENCODER, _WITH_HEAD, "Normalize", "Dropout"):
            raise CheckpointError(
                f"{path} puts the module {named(name)} ({kind}) in the model's own folder, with the encoder's config",
                hint="SentenceTransformer(MODEL).save_pretrained(NEW) gives it a folder",
            )
        kwargs = module.get("kwargs", [])
        if not isinstance(kwargs, list) or not all(isinstance(key, str) for key in kwargs):
            raise CheckpointError(f"{path}: `kwargs` of the module {named(name)} is no list of names")


def _class_name(kind: Any, path: Path) -> str:
    """Checks the dotted name of a module's class, and returns the name of the class."""
    known = _CLASS.fullmatch(kind) if isinstance(kind, str) else None
    if known is None:
        raise CheckpointError(
            f"{path} names the module class {shown(kind)}, which is not one of sentence-transformers; the model brings "
            "its own code, and that is never run",
            hint="use a model whose modules sentence-transformers has",
        )
    if known["name"] not in {_ENCODER, _WITH_HEAD, *_BEHIND_IT}:
        raise CheckpointError(
            f"{path} names the module class {shown(kind)}; ternarize takes models of a {_ENCODER} and, behind it, "
            f"{', '.join(sorted(_BEHIND_IT))}",
            hint="pass the encoder alone, as transformers saves it",
        )
    return known["name"]


def check_activation(key: str, activation: Any, path: Path) -> None:
    """Checks the dotted name of an activation in a config, of which sentence-transformers would import any class.

    Args:
        key: the key of the name, for messages.
        activation: the name; None if the config has none.
        path: the path of the config.

    Raises:
        CheckpointError: the name is not that of an activation in torch.nn.
    """
    if activation is not None and not (isinstance(activation, str) and _ACTIVATION.fullmatch(activation)):
        raise CheckpointError(
            f"{path}: {key} is {shown(activation)}, no activation of torch.nn",
            hint='such as "torch.nn.modules.activation.Tanh"',
        )


def check_module_config(values: dict[str, Any], path: Path) -> None:
    """Checks the JSON object in the config of a module.

    Raises:
        CheckpointError: an activation is not in torch.nn, or a number is larger than any dimension may be.
    """
    activation = values.get("activation_function")
    if not ("pooling_strategy" in values and activation in _OF_SPLADE):
        check_activation("activation_function", activation, path)
    for key, value in values.items():
        if isinstance(value, int | float) and not abs(value) <= _LARGEST:
            raise CheckpointError(
                f"{path}: {named(key)} is {shown(value)}; numbers of a module are at most {_LARGEST:,}",
                hint="fetch the file again",
            )
