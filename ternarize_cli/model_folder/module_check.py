"""What modules.json and the configs of modules say, checked before sentence-transformers imports and builds them.

Modules are named by dotted paths of Python classes, which sentence-transformers imports, and are built with whatever
their configs hold. Taken are its own classes, in folders inside the model's.

The encoder is a Transformer in the model's own folder: there its config and its tensors are checked, and there it is
converted. sentence-transformers can load one from a folder of its own, too, or inside a Router; such models are
refused, since nothing there would have been looked at.
"""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from ternarize_cli.errors import CheckpointError, named, shown
from ternarize_cli.model_folder.model_files import module_folders
from ternarize_cli.storage.bounds import read_json

__all__ = ["check_module_config", "check_modules"]

_CLASS = re.compile(r"sentence_transformers(\.\w+)*\.(?P<name>[A-Za-z]\w*)")
_ENCODER = "Transformer"
_BEHIND_IT = {"Pooling", "Normalize", "Dense", "LayerNorm", "Dropout", "WeightedLayerPooling"}
"""Classes that make one vector of what a Transformer gives, or change that vector. Those that stand in the place of a
Transformer (CLIPModel, WordEmbeddings, …), hold modules themselves (Router) or give sparse vectors are not taken."""
_ACTIVATION = re.compile(
    r"torch\.nn\.(modules\.(activation|linear)\.)?"
    r"(CELU|ELU|GELU|Hardsigmoid|Hardswish|Hardtanh|Identity|LeakyReLU|LogSigmoid|Mish|PReLU|ReLU|ReLU6|SELU|SiLU|Sigmoid"
    r"|Softplus|Softsign|Tanh|Tanhshrink)"
)
_LARGEST = 1 << 24


def check_modules(folder: Path) -> None:
    """Checks modules.json, where there is one.

    Raises:
        CheckpointError: it is no list of modules; a class is none of sentence-transformers that ternarize takes, or is
            an encoder that is not in the model's own folder; a folder lies outside the model's, or is the encoder's; or
            a name is no text, or comes twice.
    """
    path = folder / "modules.json"
    module_folders(folder)  # that they stay inside
    if not path.exists():
        return
    names: set[str] = set()
    for module in read_json(path):
        name, kind = module.get("name"), _class_name(module.get("type"), path)
        in_root = not PurePosixPath(module["path"]).parts
        if kind == _ENCODER and not in_root:
            raise CheckpointError(
                f"{path} puts the encoder in {shown(module['path'])}; ternarize takes it from the model's own folder",
                hint="SentenceTransformer(MODEL).save_pretrained(NEW) puts it there",
            )
        if not isinstance(name, str) or name in names:
            raise CheckpointError(f"{path}: a module's name is {shown(name)}; names are text, each one once")
        names.add(name)
        if in_root and kind not in (_ENCODER, "Normalize", "Dropout"):
            raise CheckpointError(
                f"{path} puts the module {named(name)} ({kind}) in the model's own folder, with the encoder's config",
                hint="SentenceTransformer(MODEL).save_pretrained(NEW) gives it a folder",
            )
        kwargs = module.get("kwargs", [])
        if not isinstance(kwargs, list) or not all(isinstance(key, str) for key in kwargs):
            raise CheckpointError(f"{path}: `kwargs` of the module {named(name)} is no list of names")


def _class_name(kind: Any, path: Path) -> str:
    """The name of a class of sentence-transformers that is taken, from its dotted name."""
    known = _CLASS.fullmatch(kind) if isinstance(kind, str) else None
    if known is None:
        raise CheckpointError(
            f"{path} names the module class {shown(kind)}, which is not one of sentence-transformers; the model brings "
            "its own code, and that is never run",
            hint="use a model whose modules sentence-transformers has",
        )
    if known["name"] not in {_ENCODER, *_BEHIND_IT}:
        raise CheckpointError(
            f"{path} names the module class {shown(kind)}; ternarize takes models of a {_ENCODER} and, behind it, "
            f"{', '.join(sorted(_BEHIND_IT))}",
            hint="the encoder alone, as transformers saves it, is taken, too",
        )
    return known["name"]


def check_module_config(values: dict[str, Any], path: Path) -> None:
    """Checks the JSON object in the config of a module.

    Raises:
        CheckpointError: an activation is none of torch.nn's, or a number is larger than any width.
    """
    activation = values.get("activation_function")
    if activation is not None and not (isinstance(activation, str) and _ACTIVATION.fullmatch(activation)):
        raise CheckpointError(  # sentence-transformers imports it by this name
            f"{path}: activation_function is {shown(activation)}, no activation of torch.nn",
            hint='such as "torch.nn.modules.activation.Tanh"',
        )
    for key, value in values.items():
        if isinstance(value, int | float) and not abs(value) <= _LARGEST:
            raise CheckpointError(
                f"{path}: {named(key)} is {shown(value)}; numbers of a module are at most {_LARGEST:,}",
                hint="fetch the file again",
            )
