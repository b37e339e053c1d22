"""What modules.json and the configs of modules say, checked before sentence-transformers imports and builds them.

Modules are named by dotted paths of Python classes, which sentence-transformers imports, and are built with whatever
their configs hold. Taken are its own classes, in folders inside the model's.

The encoder is a Transformer in the model's own folder: there its config and its tensors are checked, and there it is
converted. sentence-transformers can load one from a folder of its own, too, or as a part of a Router; such models are
refused, since nothing there would have been looked at.
"""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from ternarize_cli.errors import CheckpointError, shown
from ternarize_cli.model_folder.model_files import module_folders
from ternarize_cli.storage.bounds import read_json

__all__ = ["check_module_config", "check_modules"]

_CLASS = re.compile(r"sentence_transformers(\.\w+)*\.(?P<name>[A-Za-z]\w*)")
_ENCODER = "Transformer"
_OTHER_ENCODERS = {"MLMTransformer", "CLIPModel"}
_CLASSES = {
    *("Pooling", "Normalize", "Dense", "LayerNorm", "Dropout", "Router", "Asym"),
    *("CNN", "LSTM", "BoW", "StaticEmbedding", "WeightedLayerPooling", "WordEmbeddings", "WordWeights"),
    *("SpladePooling", "SparseAutoEncoder", "SparseStaticEmbedding", "LogitScore", "MultiVectorMask", "TokenPooling"),
    *("HierarchicalTokenPooling", "LambdaTokenPooling", "CSRSparsity", "IDF"),
}
_WITH_CONFIG = {"Dense", "Router", "Asym", "WordEmbeddings"}
"""Modules whose configs name Python classes."""
_ACTIVATION = re.compile(r"torch\.nn\.(modules\.(activation|linear)\.)?[A-Z]\w*")
_TOKENIZER = re.compile(r"sentence_transformers(\.\w+)*\.\w*Tokenizer")


def check_modules(folder: Path) -> None:
    """Checks modules.json, where there is one.

    Raises:
        CheckpointError: it is no list of modules; a class is not one of sentence-transformers, or is an encoder that is
            not in the model's own folder; a folder lies outside the model's; or a name is no text, or comes twice.
    """
    path = folder / "modules.json"
    module_folders(folder)  # that they stay inside
    if not path.exists():
        return
    names: set[str] = set()
    for module in read_json(path):
        name, where, kind = module.get("name"), module["path"], _class_name(module.get("type"), path)
        in_root = not PurePosixPath(where).parts
        if kind == _ENCODER and not in_root:
            raise CheckpointError(
                f"{path} puts the encoder in the folder {shown(where)}; ternarize takes it from the model's own folder",
                hint="SentenceTransformer(MODEL).save_pretrained(NEW) puts it there",
            )
        if not isinstance(name, str) or name in names:
            raise CheckpointError(f"{path}: a module's name is {shown(name)}; names are text, each one once")
        names.add(name)
        if in_root and kind in _WITH_CONFIG:
            raise CheckpointError(
                f"{path} puts the module {name} ({kind}) in the model's own folder, where the encoder's config lies",
                hint="SentenceTransformer(MODEL).save_pretrained(NEW) gives it a folder",
            )
        kwargs = module.get("kwargs", [])
        if not isinstance(kwargs, list) or not all(isinstance(key, str) for key in kwargs):
            raise CheckpointError(f"{path}: `kwargs` of the module {name} is no list of names")


def _class_name(kind: Any, path: Path) -> str:
    """The name of a class of sentence-transformers, from its dotted name."""
    known = _CLASS.fullmatch(kind) if isinstance(kind, str) else None
    if known is not None and known["name"] in {_ENCODER, *_CLASSES}:
        return known["name"]
    if known is not None and known["name"] in _OTHER_ENCODERS:
        raise CheckpointError(
            f"{path} names the module class {shown(kind)}; ternarize takes encoders whose module is a Transformer",
            hint="a model that gives one vector for a text or an image",
        )
    raise CheckpointError(
        f"{path} names the module class {shown(kind)}, which is not one of sentence-transformers; the model brings its "
        "own code, and that is never run",
        hint="use a model whose modules sentence-transformers has",
    )


def check_module_config(values: dict[str, Any], path: Path) -> None:
    """Checks the JSON object in the config of a module, or of a part of a Router.

    Raises:
        CheckpointError: an activation is no class of torch.nn, a tokenizer or a part none of sentence-transformers, or
            a part of a Router is an encoder.
    """
    activation = values.get("activation_function")
    if activation is not None and not (isinstance(activation, str) and _ACTIVATION.fullmatch(activation)):
        raise CheckpointError(  # sentence-transformers imports it by this name
            f"{path}: activation_function is {shown(activation)}, no activation of torch.nn",
            hint='such as "torch.nn.modules.activation.Tanh"',
        )
    tokenizer = values.get("tokenizer_class")
    if path.name == "wordembedding_config.json" and not (
        isinstance(tokenizer, str) and _TOKENIZER.fullmatch(tokenizer)
    ):
        raise CheckpointError(f"{path}: tokenizer_class is {shown(tokenizer)}, no class of sentence-transformers")
    parts = values.get("types")
    if parts is None:
        return
    if not isinstance(parts, dict):
        raise CheckpointError(f"{path}: types is {shown(parts)}, no object", hint="fetch the file again")
    for kind in parts.values():
        if _class_name(kind, path) == _ENCODER:
            raise CheckpointError(
                f"{path} is that of a Router with encoders of its own, which ternarize does not take",
                hint="save the encoder that you need as a model: SentenceTransformer(modules=[…]).save_pretrained(NEW)",
            )
