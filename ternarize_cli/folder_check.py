"""What a model folder says is checked here before a loader of transformers or sentence-transformers sees it.

Those loaders do what configs tell them: take keyword arguments from `sentence_bert_config.json`, unpickle weights where
a file of that name lies, fetch kernels and base models from a hub, import classes by their dotted names. A folder may
come from anybody, so what such a file may ask for is a list of known things, and anything else is refused by name:

    modules.json                          classes of sentence-transformers; paths inside the folder
    config.json                           no code of its own, no hub kernels, no weights file of another name;
                                          numbers in the range that a model can have (`config_numbers`)
    sentence_bert_config.json             keys and keyword arguments from a list
    tokenizer_config.json                 no vocabulary file outside the folder
    preprocessor_config.json              images of a size that fits memory
    adapter_config.json                   refused: it would load another model from wherever it says
    pytorch_model.bin, in any subfolder   only where the user allows pickles

The loaders are told the same once more in their own arguments (`LOADING`).
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ternarize_cli.bounds import MAX_TOKENIZER, read_json, shown
from ternarize_cli.config_numbers import check_numbers
from ternarize_cli.errors import CheckpointError
from ternarize_cli.model_files import contained, model_files, module_folders, part_folders

__all__ = ["LOADING", "check_folder", "loading_arguments", "refuse_adapter"]

LOADING: Mapping[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""What every loader of transformers is told about a folder: no hub, no code."""

_ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_DTYPES = (None, "auto", *(f"{p}{t}" for p in ("", "torch.") for t in ("float64", "float32", "float16", "bfloat16")))
_ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_DTYPE_KEYS = ("dtype", "torch_dtype")
_REFUSED_IN_CONFIG = {
    "transformers_weights": "names a weights file for the loader",
    "use_pretrained_backbone": "asks for another model from a hub",
    "experts_implementation": "names kernels for the loader",
    "_experts_implementation": "names kernels for the loader",
}
_MODULE = re.compile(r"sentence_transformers(\.\w+)*\.(?P<name>[A-Za-z]\w*)")
_CLASSES = {
    *("Transformer", "MLMTransformer", "Pooling", "Normalize", "Dense", "LayerNorm", "Dropout", "Router", "Asym"),
    *("CNN", "LSTM", "BoW", "CLIPModel", "StaticEmbedding", "WeightedLayerPooling", "WordEmbeddings", "WordWeights"),
    *("SpladePooling", "SparseAutoEncoder", "SparseStaticEmbedding", "LogitScore", "MultiVectorMask", "TokenPooling"),
    *("CSRSparsity", "IDF"),
}
_ACTIVATION = re.compile(r"torch\.nn\.(modules\.(activation|linear)\.)?[A-Z]\w*")
_SENTENCE_KEYS = {
    *("max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name"),
    *("processing_kwargs", "unpad_inputs", "query_length", "document_length", "query_expansion"),
}
_ARGUMENTS = {
    "model": {*_ATTENTION_KEYS, *_DTYPE_KEYS, "add_pooling_layer"},
    "processor": {
        *("model_max_length", "padding_side", "truncation_side", "use_fast", "do_lower_case", "max_length", "padding"),
        *("truncation", "add_eos_token", "add_bos_token", "clean_up_tokenization_spaces", "min_pixels", "max_pixels"),
    },
    "config": {
        *(*_ATTENTION_KEYS, *_DTYPE_KEYS, "num_labels", "use_cache", "is_causal", "use_bidirectional_attention"),
        *("unpad_inputs", "use_memory_efficient_attention"),
    },
}
_ARGUMENT_KEYS = {
    "model_args": "model",
    "model_kwargs": "model",
    "tokenizer_args": "processor",
    "processor_kwargs": "processor",
    "config_args": "config",
    "config_kwargs": "config",
}
_TASKS = ("feature-extraction", "fill-mask", "sequence-classification", "text-generation", "retrieval", "any-to-any")
_METHOD = re.compile(r"forward|get_(text|image|audio|video)_features")
_LARGEST_SIDE, _LARGEST_IMAGE = 16_384, 1 << 26
"""Pixels of a side and of an image; some processors count the latter under `shortest_edge` and `longest_edge`."""


def check_folder(folder: Path, *, allow_pickle: bool = False) -> dict[str, Any]:
    """Checks everything in a model folder that a loader would act on, apart from the values of tensors.

    Args:
        folder: a model folder of any stage.
        allow_pickle: let pickled weights pass; they are then read for their tensors alone.

    Returns:
        config.json, checked.

    Raises:
        CheckpointError: a file is missing, damaged, too large or no regular file, or asks for something that is not in
            the lists of this module; the message names file, key and value.
    """
    refuse_adapter(folder)
    if not (folder / "config.json").exists():
        raise CheckpointError(f"{folder} is no model folder: it has no config.json")
    files = model_files(folder)
    config = _object(folder / "config.json")
    _check_modules(folder)
    _check_config(config, folder / "config.json")
    _check_pickles(folder, files, allow_pickle)
    for where in part_folders(folder):
        _check_part(folder / where, is_module=bool(where))
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


def _object(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object", hint="fetch the file again")
    return values


def _check_modules(folder: Path) -> None:
    path = folder / "modules.json"
    module_folders(folder)  # that they stay inside
    if not path.exists():
        return
    names: set[str] = set()
    for module in read_json(path):
        kind, name = module.get("type"), module.get("name")
        known = _MODULE.fullmatch(kind) if isinstance(kind, str) else None
        if known is None or known["name"] not in _CLASSES:
            raise CheckpointError(
                f"{path} names the module class {shown(kind)}, which is not one of sentence-transformers; the model "
                "brings its own code, and that is never run",
                hint="use a model whose modules sentence-transformers has",
            )
        if not isinstance(name, str) or name in names:
            raise CheckpointError(f"{path}: a module's name is {shown(name)}; names are text, each one once")
        names.add(name)
        kwargs = module.get("kwargs", [])
        if not isinstance(kwargs, list) or not all(isinstance(key, str) for key in kwargs):
            raise CheckpointError(f"{path}: `kwargs` of the module {name} is no list of names")


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    """Checks a config.json and the configs inside it."""
    for key, why in _REFUSED_IN_CONFIG.items():
        if config.get(key):
            raise CheckpointError(
                f"{path}: {key} is {shown(config[key])}, which {why}; that is not taken from a model folder",
                hint=f"take {key} out of the file",
            )
    _check_choices(config, path)
    for key, value in config.items():
        if isinstance(value, dict) and key not in ("quantization_config", "label2id", "id2label"):
            _check_config(value, path)
    check_numbers(config, path)


def _check_choices(values: Mapping[str, Any], path: Path) -> None:
    """Checks the keys that choose kernels and dtypes."""
    for keys, known in ((_ATTENTION_KEYS, _ATTENTION), (_DTYPE_KEYS, _DTYPES)):
        for key in keys:
            asked = values.get(key)
            for value in asked.values() if isinstance(asked, dict) else [asked]:
                if not (value is None or isinstance(value, str)) or value not in known:
                    raise CheckpointError(
                        f"{path}: {key} is {shown(value)}; known are {', '.join(v for v in known if v)}",
                        hint=f"take {key} out of the file",
                    )


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


def _check_part(folder: Path, *, is_module: bool) -> None:
    """Checks the files beside the weights in the model's folder or in that of a module."""
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith("sentence_") and path.name.endswith("_config.json"):
            _check_sentence_config(_object(path), path)
        elif path.name == "config_sentence_transformers.json":
            _check_settings(_object(path), path)
        elif path.name == "tokenizer_config.json":
            _check_tokenizer(_object(path), path)
        elif path.name in ("preprocessor_config.json", "processor_config.json"):
            _check_processor(_object(path), path)
        elif path.name in ("special_tokens_map.json", "added_tokens.json"):
            _object(path)
        elif (
            path.stat().st_size > MAX_TOKENIZER
        ):  # such as tokenizer.json, which the tokenizers library parses strictly
            raise CheckpointError(f"{path} has more than {MAX_TOKENIZER:,} bytes", hint="fetch the file again")
        elif path.name == "config.json" and is_module:
            _check_activation(_object(path).get("activation_function"), path)
        elif path.name == "wordembedding_config.json":
            kind = _object(path).get("tokenizer_class")
            if not isinstance(kind, str) or not _MODULE.fullmatch(kind):
                raise CheckpointError(f"{path}: tokenizer_class is {shown(kind)}, no class of sentence-transformers")


def _check_activation(name: Any, path: Path) -> None:
    """Refuses an activation that is no class of torch.nn: sentence-transformers imports it by its dotted name."""
    if name is not None and not (isinstance(name, str) and _ACTIVATION.fullmatch(name)):
        raise CheckpointError(
            f"{path}: activation_function is {shown(name)}, no activation of torch.nn",
            hint='such as "torch.nn.modules.activation.Tanh"',
        )


def _check_sentence_config(values: Mapping[str, Any], path: Path) -> None:
    for key, value in values.items():
        if key in _ARGUMENT_KEYS:
            _check_arguments(key, value, path)
        elif key not in _SENTENCE_KEYS and value is not None:
            raise CheckpointError(
                f"{path}: {key} is {shown(value)}; this key is not known, and is not passed on to a loader",
                hint=f"take {key} out of the file",
            )
    length = values.get("max_seq_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or not 0 < length < 1 << 31):
        raise CheckpointError(f"{path}: max_seq_length is {shown(length)}; it is a whole number of tokens, or null")
    if values.get("transformer_task", _TASKS[0]) not in _TASKS:
        raise CheckpointError(f"{path}: transformer_task is {shown(values['transformer_task'])}; known are {_TASKS}")
    kinds = values.get("modality_config", {})
    if not isinstance(kinds, dict) or not all(isinstance(kind, dict) for kind in kinds.values()):
        raise CheckpointError(f"{path}: modality_config is no object of objects", hint="fetch the file again")
    for kind in kinds.values():
        method = kind.get("method", "forward")
        if not isinstance(method, str) or not _METHOD.fullmatch(method):
            raise CheckpointError(f"{path}: modality_config names the method {shown(method)}, which no encoder has")


def _check_arguments(key: str, given: Any, path: Path) -> None:
    """Checks keyword arguments for transformers' loaders."""
    known = _ARGUMENTS[_ARGUMENT_KEYS[key]]
    if not isinstance(given, dict):
        raise CheckpointError(f"{path}: {key} is {shown(given)}, no object", hint="fetch the file again")
    for name, value in given.items():
        if name == "trust_remote_code":  # sentence-transformers drops it, and so do we
            continue
        if name not in known:
            raise CheckpointError(
                f"{path}: {key} passes {name}={shown(value)} to a loader of transformers; a folder may not do that",
                hint=f"take {name} out of {key} in the file",
            )
    _check_choices(given, path)


def _check_settings(values: Mapping[str, Any], path: Path) -> None:
    prompts = values.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(p, str) or p is None for p in prompts.values()):
        raise CheckpointError(f"{path}: prompts are no object of texts", hint="fetch the file again")
    for key in ("default_prompt_name", "similarity_fn_name", "model_type"):
        if not isinstance(values.get(key), str | None):
            raise CheckpointError(f"{path}: {key} is {shown(values[key])}, no text", hint="fetch the file again")
    for key in ("requirements", "__version__"):
        if not isinstance(values.get(key, {}), dict):
            raise CheckpointError(f"{path}: {key} is {shown(values[key])}, no object", hint="fetch the file again")


def _check_tokenizer(values: Mapping[str, Any], path: Path) -> None:
    """Refuses a vocabulary outside the folder; the paths of the author's own machine, which are not here, pass."""
    for key, value in values.items():
        named = path.parent / value if key.endswith("_file") and isinstance(value, str) else None
        if named is not None and named.exists() and not contained(path.parent, named):
            raise CheckpointError(
                f"{path}: {key} is {shown(value)}, a file outside the model's folder",
                hint=f"take {key} out of the file",
            )
    length = values.get("model_max_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int | float) or not length > 0):
        raise CheckpointError(f"{path}: model_max_length is {shown(length)}; it is a number of tokens")
    for key in ("padding_side", "truncation_side"):
        if values.get(key, "right") not in ("left", "right"):
            raise CheckpointError(f"{path}: {key} is {shown(values[key])}; it is left or right")


def _check_processor(values: Mapping[str, Any], path: Path) -> None:
    """Checks the sizes to which images are brought, and the numbers by which pixels are scaled."""
    for key, value in values.items():
        if isinstance(value, dict):
            _check_processor(value, path)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if not math.isfinite(number):
                raise CheckpointError(f"{path}: {key} is {number}, which is not finite", hint="fetch the file again")
            sides = dict.fromkeys(("height", "width", "size", "crop_size"), _LARGEST_SIDE)
            most = {**sides, "shortest_edge": _LARGEST_IMAGE, "longest_edge": _LARGEST_IMAGE}.get(key)
            if most is not None and not 0 < number <= most:
                raise CheckpointError(
                    f"{path}: {key} is {number}; it is a number of pixels from 1 to {most:,}",
                    hint="fetch the file again",
                )
