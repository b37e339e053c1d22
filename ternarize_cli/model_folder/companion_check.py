"""The files beside an encoder's config and weights, checked before a tokenizer, processor or module is made of them.

sentence_bert_config.json             known keys and keyword arguments only
config_sentence_transformers.json     prompts and names are text
tokenizer_config.json                 no vocabulary file outside the folder
tokenizer.json                        checked by `tokenizer_json`
preprocessor_config.json              images of a size that fits memory
config.json of a module               checked by `module_check`
every file                            at most MAX_TOKENIZER bytes
"""

import filecmp
import math
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ternarize_cli.errors import CheckpointError, named, shown
from ternarize_cli.model_folder.config_check import ATTENTION_KEYS, DTYPE_KEYS, check_choices
from ternarize_cli.model_folder.model_files import contained
from ternarize_cli.model_folder.module_check import check_activation, check_module_config
from ternarize_cli.model_folder.tokenizer_json import check_tokenizer_json
from ternarize_cli.storage.bounds import MAX_TOKENIZER, read_object, require_regular

__all__ = ["check_companion"]

_ARGUMENTS = {
    "model": {*ATTENTION_KEYS, *DTYPE_KEYS, "add_pooling_layer"},
    "processor": {
        *("model_max_length", "padding_side", "truncation_side", "use_fast", "do_lower_case", "max_length", "padding"),
        *("truncation", "add_eos_token", "add_bos_token", "clean_up_tokenization_spaces", "min_pixels", "max_pixels"),
    },
    "config": {
        *(*ATTENTION_KEYS, *DTYPE_KEYS, "num_labels", "use_cache", "is_causal", "use_bidirectional_attention"),
        *("unpad_inputs", "use_memory_efficient_attention", "attention_dropout", "hidden_dropout"),
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
_SENTENCE_KEYS = {
    *("max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name"),
    *("processing_kwargs", "unpad_inputs", "query_length", "document_length", "query_expansion", "backend"),
}
_DROPPED = {"trust_remote_code", "cache_dir", "local_files_only", "revision", "token"}
"""Keys that sentence-transformers drops, or that `folder_check.LOADING` overrides."""
_SAFE = {"use_safetensors": True, "weights_only": True, "low_cpu_mem_usage": True, "device_map": "cpu"}
"""Keyword arguments that may have one value only."""
_LONGEST = 1 << 20
"""The most tokens to which a text may be cut or padded."""
_TASKS = ("feature-extraction", "fill-mask", "sequence-classification", "text-generation", "retrieval", "any-to-any")
_KINDS = ("common", "text", "image")
_METHOD = re.compile(r"forward|get_(text|image|audio|video)_features")
_NOT_OPENED = {
    *("special_tokens_map_file", "tokenizer_config_file", "added_tokens_file", "chat_template_file", "name_or_path"),
    *("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens", "chat_template", "tokenizer_class"),
}
"""Keys of tokenizer_config.json whose texts are not checked for file names: none is read, or there are very many."""
_LARGEST_SIDE, _LARGEST_IMAGE = 16_384, 1 << 26
_PIXELS = {
    **dict.fromkeys(("height", "width", "size", "crop_size"), _LARGEST_SIDE),
    **dict.fromkeys(("shortest_edge", "longest_edge"), _LARGEST_IMAGE),
}
"""The most pixels of a side of an image, by key; for the last two keys, of the whole image."""


def check_companion(path: Path, *, is_module: bool) -> None:
    """Checks one file of a model that holds no weights.

    Args:
        path: the file, in the folder of the model or of a module.
        is_module: whether the file is in the folder of a module.

    Raises:
        CheckpointError: the file has more than MAX_TOKENIZER bytes, is damaged, or has a key or value that is not in
            the lists of this module; the message names file, key and value.
    """
    if require_regular(path).st_size > MAX_TOKENIZER:
        raise CheckpointError(f"{path} has more than {MAX_TOKENIZER:,} bytes", hint="fetch the file again")
    if path.name == "tokenizer.json":
        check_tokenizer_json(path)
    for pattern, check in _CHECKS.items():
        if fnmatchcase(path.name, pattern):
            check(read_object(path), path)
    if path.name in _OBJECTS:
        read_object(path)
    if is_module and path.name == "config.json":
        check_module_config(read_object(path), path)


def _check_sentence_config(values: Mapping[str, Any], path: Path) -> None:
    for key, value in values.items():
        if key in _ARGUMENT_KEYS:
            _check_arguments(_ARGUMENT_KEYS[key], key, value, path)
        elif key not in _SENTENCE_KEYS | _DROPPED and value is not None:
            raise CheckpointError(
                f"{path}: {named(key)} is {shown(value)}; this key is not known, and is not passed on to a loader",
                hint=f"take {named(key)} out of the file",
            )
    length = values.get("max_seq_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or not 0 < length < 1 << 31):
        raise CheckpointError(
            f"{path}: max_seq_length is {shown(length)}; it must be a whole number of tokens, or null"
        )
    if values.get("transformer_task", _TASKS[0]) not in _TASKS:
        raise CheckpointError(f"{path}: transformer_task is {shown(values['transformer_task'])}; known are {_TASKS}")
    for kind, settings in _objects(values, "processing_kwargs", path):
        if kind not in _KINDS:
            raise CheckpointError(
                f"{path}: processing_kwargs are for {named(kind)}; known are {', '.join(_KINDS)}",
                hint=f"take {named(kind)} out of processing_kwargs in the file",
            )
        _check_arguments("processor", f"processing_kwargs of {kind}", settings, path)
    for kind, settings in _objects(values, "modality_config", path):
        if kind == "message":
            raise CheckpointError(
                f"{path}: modality_config puts all text into a chat template, and ternarize encodes texts as they are",
                hint="take message out of modality_config in the file",
            )
        method = settings.get("method", "forward")
        if not isinstance(method, str) or not _METHOD.fullmatch(method):
            raise CheckpointError(f"{path}: modality_config names the method {shown(method)}, which no encoder has")


def _objects(values: Mapping[str, Any], key: str, path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Lists the keys and objects in the JSON object under `key`; empty if the file has no such key."""
    found = values.get(key) or {}
    if not isinstance(found, dict) or not all(isinstance(inner, dict) for inner in found.values()):
        raise CheckpointError(f"{path}: {key} is no object of objects", hint="fetch the file again")
    return list(found.items())


def _check_arguments(loader: str, key: str, given: Any, path: Path) -> None:
    """Checks keyword arguments that a file passes to a loader of transformers; `loader` is a key of `_ARGUMENTS`."""
    if not isinstance(given, dict):
        raise CheckpointError(f"{path}: {key} is {shown(given)}, no object", hint="fetch the file again")
    for name, value in given.items():
        if name in _DROPPED or (name in _SAFE and value in (None, _SAFE[name])):
            continue
        if name not in _ARGUMENTS[loader]:
            raise CheckpointError(
                f"{path}: {key} passes {named(name)}={shown(value)} to transformers; a folder may not do that",
                hint=f"take {named(name)} out of {key} in the file",
            )
    length = given.get("max_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or not 0 < length <= _LONGEST):
        raise CheckpointError(f"{path}: max_length is {shown(length)}; it must be 1 to {_LONGEST:,} tokens")
    if given.get("padding") not in (None, True, False, "longest", "do_not_pad") and length is None:
        raise CheckpointError(
            f"{path}: padding is {shown(given['padding'])}, without a max_length beside it",
            hint="take padding out of the file",
        )
    check_choices(given, path)


def _check_settings(values: Mapping[str, Any], path: Path) -> None:
    prompts = values.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(p, str) or p is None for p in prompts.values()):
        raise CheckpointError(f"{path}: prompts are no object of texts", hint="fetch the file again")
    check_activation("activation_fn", values.get("activation_fn"), path)
    dimensions = values.get("truncate_dim")
    if dimensions is not None and (type(dimensions) is not int or dimensions < 1):
        raise CheckpointError(
            f"{path}: truncate_dim is {shown(dimensions)}; it must be a whole number of dimensions, or null",
            hint="fetch the file again",
        )
    for key in ("default_prompt_name", "similarity_fn_name", "model_type"):
        if not isinstance(values.get(key), str | None):
            raise CheckpointError(f"{path}: {key} is {shown(values[key])}, no text", hint="fetch the file again")
    for key in ("requirements", "__version__"):
        if not isinstance(values.get(key), dict | str | None):
            raise CheckpointError(f"{path}: {key} is {shown(values[key])}, no object", hint="fetch the file again")


def _check_tokenizer(values: Mapping[str, Any], path: Path) -> None:
    for key, value in values.items():
        if key not in _NOT_OPENED:
            for text in _texts(value):
                _check_not_outside(key, text, path)
    length = values.get("model_max_length")
    whole = isinstance(length, int) or (isinstance(length, float) and length >= _LONGEST)  # 1e30: no limit
    if length is not None and (isinstance(length, bool) or not whole or not length > 0):
        raise CheckpointError(f"{path}: model_max_length is {shown(length)}; it must be a whole number of tokens")
    for key in ("padding_side", "truncation_side"):
        if values.get(key) not in (None, "left", "right"):
            raise CheckpointError(f"{path}: {key} is {shown(values[key])}; it must be left or right")


def _texts(value: Any) -> list[str]:
    """Lists the texts in a value: the value itself, or the texts inside a list or an object."""
    inner = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else [value]
    return [text for text in inner if isinstance(text, str)]


def _check_not_outside(key: str, value: str, path: Path) -> None:
    """Refuses a text that names a file outside the folder, from which a tokenizer might read its vocabulary.

    On the author's machine, a path in a config may still lead to the original of a file in the folder. So a file with
    the contents of one in the folder passes, as does a path that leads nowhere.
    """
    folder = path.parent
    for named_file in (folder / value, Path(value)):
        try:
            if not named_file.exists() or named_file.is_dir() or contained(folder, named_file):
                continue
            own = folder / named_file.name
            if named_file.is_file() and own.is_file() and filecmp.cmp(named_file, own, shallow=False):
                continue
        except (OSError, ValueError, RuntimeError):  # an impossible path, such as a link to itself
            continue
        raise CheckpointError(
            f"{path}: {named(key)} is {shown(value)}, a file outside the model's folder",
            hint=f"take {named(key)} out of the file",
        )


def _check_processor(values: Mapping[str, Any], path: Path) -> None:
    """Checks the sizes to which images are resized, and the numbers by which pixels are scaled."""
    for key, value in values.items():
        if isinstance(value, dict):
            _check_processor(value, path)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if not math.isfinite(number):
                raise CheckpointError(
                    f"{path}: {named(key)} is {number}, which is not finite", hint="fetch the file again"
                )
            most = _PIXELS.get(key)
            if most is not None and not 0 < number <= most:
                raise CheckpointError(
                    f"{path}: {key} is {number}; it must be a number of pixels from 1 to {most:,}",
                    hint="fetch the file again",
                )


_CHECKS: Mapping[str, Callable[[dict[str, Any], Path], None]] = {
    "sentence_*_config.json": _check_sentence_config,
    "config_sentence_transformers.json": _check_settings,
    "tokenizer_config.json": _check_tokenizer,
    "preprocessor_config.json": _check_processor,
    "processor_config.json": _check_processor,
}
"""The check of the JSON object in a file, by a pattern of the file's name."""
_OBJECTS = ("special_tokens_map.json", "added_tokens.json")
"""Files that must hold a JSON object, whose content is not checked."""
