"""Reads what sentence-transformers' settings ask of an encoder: sentence_bert_config.json and its like.

These settings say how long texts may be, and hand arguments on to the loaders of transformers. Some of those change
what a model computes. Each is followed here, or has no effect, or is refused by name:

    max_seq_length, do_lower_case            followed
    processor_kwargs (or tokenizer_args)     followed: length, sides, case; `pack` compares the ids of tokens
    config_kwargs (or config_args)           must not change what config.json says
    model_kwargs (or model_args)             must not ask for another dtype than float32
    processing_kwargs                        must not cut or pad texts in another way
    modality_config                          the caller compares it with what it computes
    query_length, query_expansion, …         no effect: they are for tasks that are not done here
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ternarize_cli.errors import CheckpointError, UnavailableError, named, shown
from ternarize_cli.runtime.packed_file import IN_TORCH
from ternarize_cli.storage.bounds import optional_object

__all__ = ["LAST_HIDDEN_STATES", "TransformerSettings", "read_settings"]

_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_DTYPES: Mapping[str, tuple[Any, ...]] = dict.fromkeys(
    ("dtype", "torch_dtype"), (None, "auto", "float32", "torch.float32")
)
_WITHOUT_EFFECT = {
    *("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "use_cache", "unpad_inputs"),
    *(
        "use_memory_efficient_attention",
        "attention_dropout",
        "hidden_dropout",
        "add_pooling_layer",
        "low_cpu_mem_usage",
    ),
    *("trust_remote_code", "cache_dir", "local_files_only", "revision", "token", "use_safetensors", "weights_only"),
}
"""Arguments of the loaders of configs and models that do not change the vectors of a packed model."""
_PROCESSING: Mapping[str, tuple[Any, ...]] = {
    "padding": (True, "longest"),
    "truncation": (True, "longest_first"),
    "return_tensors": ("pt",),
}
"""Arguments of a tokenizer's call, with the values that change nothing."""
_NONE = object()

LAST_HIDDEN_STATES: Mapping[str, Any] = {"method": "forward", "method_output_name": "last_hidden_state"}
"""What `modality_config` says of texts for an encoder whose tokens are pooled."""


@dataclass(frozen=True)
class TransformerSettings:
    """What the settings of an encoder ask for.

    Attributes:
        max_seq_length: the most tokens of a text, special tokens included; None if the settings name none.
        do_lower_case: whether texts are lower-cased before they are tokenised.
        tokenizer: the settings that the tokenizer is loaded with, beside those of tokenizer_config.json.
        text_output: what is taken of the model for texts: the method and the name in what it returns.
    """

    max_seq_length: int | None = None
    do_lower_case: bool = False
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    text_output: Mapping[str, Any] = field(default_factory=lambda: LAST_HIDDEN_STATES)


def read_settings(folder: Path, config: Mapping[str, Any], task: str = "feature-extraction") -> TransformerSettings:
    """Reads the settings in a model's folder, which count only beside a modules.json.

    Args:
        folder: the model's folder.
        config: what config.json holds.
        task: the `transformer_task` that the model must have.

    Raises:
        CheckpointError: a file is damaged, or has a value that is none.
        UnavailableError: the settings ask for something that is not done here; the message names it.
    """
    for key in ("output_hidden_states", "output_attentions"):
        if config.get(key):
            raise UnavailableError(f"{folder / 'config.json'} asks for {key}", hint=IN_TORCH)
    if config.get("return_dict", True) is False:
        raise UnavailableError(f"{folder / 'config.json'} asks for return_dict: false", hint=IN_TORCH)
    if not (folder / "modules.json").is_file():
        return TransformerSettings()
    path = next((folder / name for name in _FILES if (folder / name).is_file()), folder / _FILES[0])
    values = optional_object(path)
    _check(values, config, task, path)
    length = values.get("max_seq_length")
    if length is not None and (type(length) is not int or not 0 < length < 1 << 31):
        raise CheckpointError(f"{path}: max_seq_length is {shown(length)}", hint="fetch the files again")
    processor = values.get("processor_kwargs", values.get("tokenizer_args", {}))
    output = values.get("modality_config", {}).get("text", LAST_HIDDEN_STATES)
    return TransformerSettings(length, bool(values.get("do_lower_case")), dict(processor), output)


def _check(values: Mapping[str, Any], config: Mapping[str, Any], task: str, path: Path) -> None:
    arguments = ("model_kwargs", "model_args", "config_kwargs", "config_args", "processor_kwargs", "tokenizer_args")
    objects = (*arguments, "processing_kwargs", "modality_config")
    for key in objects:
        if not isinstance(values.get(key, {}), dict):
            raise CheckpointError(f"{path}: {key} is {shown(values[key])}, no object", hint="fetch the files again")
    given = values.get("transformer_task", "feature-extraction")
    if given != task:
        raise UnavailableError(f"{path} names the task {shown(given)}, not {task}", hint=IN_TORCH)
    for key, name, value in _asked(values, arguments[:4]):
        stays = value in _DTYPES.get(name, (config.get(name, _NONE),))
        if name not in _WITHOUT_EFFECT and not stays:
            raise UnavailableError(f"{path}: {key} sets {named(name)} to {shown(value)}", hint=IN_TORCH)
    for kind in ("text", "common"):
        for name, value in (values.get("processing_kwargs", {}).get(kind) or {}).items():
            if value not in _PROCESSING.get(name, ()):
                what = f"{path}: processing_kwargs sets {named(name)} to {shown(value)}"
                raise UnavailableError(what, hint=IN_TORCH)


def _asked(values: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[tuple[str, str, Any]]:
    for key in keys:
        for name, value in values.get(key, {}).items():
            yield key, name, value
