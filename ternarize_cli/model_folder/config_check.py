"""Checks a config.json before transformers builds a model from it.

A config may name kernels and weights of a hub, a million layers, zero heads, or a table of a billion rows. Building the
model, even without memory for its values, would run foreign code, never end, or fail deep inside a library. First the
keys that loaders act on are checked, and the numbers against what any encoder has (`check_config`); then the layers
against the tensors that the files hold (`check_layers`), and the heads against the hidden dimension (`check_built`).
Dimensions and vocabularies are compared with the shapes of the tensors once the skeleton is built (`checkpoint`).
"""

import importlib.util
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ternarize_cli.errors import CheckpointError, shown

__all__ = [
    "ATTENTION_KEYS",
    "DTYPE_KEYS",
    "architectures_of",
    "check_built",
    "check_choices",
    "check_config",
    "check_layers",
]

ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
"""Keys by which a config or a keyword argument chooses the code that computes attention."""
DTYPE_KEYS = ("dtype", "torch_dtype")
"""Keys by which a config or a keyword argument chooses the dtype of weights."""
_DTYPES = {"auto", *(f"{p}{t}" for p in ("", "torch.") for t in ("float64", "float32", "float16", "bfloat16"))}
_REFUSED = {
    "transformers_weights": "names a weights file for the loader",
    "use_pretrained_backbone": "asks for another model from a hub",
    "experts_implementation": "names kernels for the loader",
    "_experts_implementation": "names kernels for the loader",
}
_INNER = re.compile(r"\w+_config|encoder|decoder|question_encoder|generator|trunk|backbone")
"""Keys under which a config holds the config of a part of the model."""
_LAYERS = re.compile(r"(num_(hidden_|encoder_|decoder_)?layers|n_layers?|encoder_layers|decoder_layers|num_blocks)")
_HEADS = re.compile(
    r"(num_(attention|key_value)_heads|num_heads|n_heads?|(encoder|decoder)_attention_heads|num_kv_heads)"
)
_WIDTHS = re.compile(
    r"(hidden_size|intermediate_size|embedding_size|d_model|d_ff|d_kv|dim|hidden_dim|n_embd|n_inner|n_positions|head_dim"
    r"|vocab_size|type_vocab_size|max_position_embeddings|patch_size|num_channels|projection_dim|embed_dim|n_ctx)"
)
_ESSENTIAL = {"hidden_size", "d_model", "num_attention_heads", "num_heads", "n_heads"}
"""Counts that are 1 or more in every encoder; other counts are 0 or -1 if the encoder has no such part."""
_EPSILON = re.compile(r"((layer|rms|group|batch)?_?norm_?)?(eps|epsilon)|layernorm_epsilon|norm_epsilon")
_MOST_LABELS = 1 << 16
_MOST_LAYERS, _MOST_HEADS, _WIDEST, _LONGEST_WINDOW = 4096, 4096, 1 << 24, 1 << 14
_SHARED = 64
"""The most layers that may share one set of tensors, as ALBERT's do."""
_AGAIN = "fetch the file again"


def check_config(config: Mapping[str, Any], path: Path, *, numbers: bool = True) -> None:
    """Checks a config and the objects inside it: the keys that loaders act on, and the numbers of a model's parts.

    Args:
        config: config.json, or an object in it.
        path: path of config.json, for messages.
        numbers: whether this is the config of a model or a part, and not a table for training or tasks.

    Raises:
        CheckpointError: the config asks for something that a folder may not ask for, or a count, dimension or epsilon
            is not a number that an encoder can have; the message names key and value.
    """
    for key, why in _REFUSED.items():
        if config.get(key):
            raise CheckpointError(
                f"{path}: {key} is {shown(config[key])}, which {why}; that is not taken from a model folder",
                hint=f"take {key} out of the file",
            )
    check_choices(config, path, dtypes=numbers)
    architectures_of(config, path)
    if not isinstance(config.get("model_type", ""), str | None):
        raise CheckpointError(f"{path}: model_type is {shown(config['model_type'])}, no text", hint=_AGAIN)
    _check_labels(config, path)
    if numbers:
        _check_numbers(config, path)
    for key, value in config.items():
        if isinstance(value, dict) and key not in ("quantization_config", "label2id", "id2label"):
            check_config(value, path, numbers=numbers and _INNER.fullmatch(key) is not None)


def _check_labels(config: Mapping[str, Any], path: Path) -> None:
    """Checks the number of labels, for each of which transformers makes a name.

    Raises:
        CheckpointError: it is no number of labels, or there are more than 65,536.
    """
    count, names = config.get("num_labels"), config.get("id2label")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= _MOST_LABELS):
        raise CheckpointError(
            f"{path}: num_labels is {shown(count)}; it must be a whole number of at most {_MOST_LABELS:,}", hint=_AGAIN
        )
    if isinstance(names, dict | list) and len(names) > _MOST_LABELS:
        raise CheckpointError(
            f"{path}: id2label has {len(names):,} names; {_MOST_LABELS:,} are the most",
            hint="take id2label and label2id out of the file",
        )


def architectures_of(config: Mapping[str, Any], path: Path) -> list[str]:
    """Reads the names of classes in `architectures` of a config; empty if there are none.

    Raises:
        CheckpointError: the key holds something else than a list of names. transformers would read a text as a list of
            letters, and find no head in it.
    """
    found = config.get("architectures")
    listed = [] if found is None else found
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise CheckpointError(
            f"{path}: architectures is {shown(found)}; it must be a list of names of classes",
            hint=f'"architectures": ["{found}"]' if isinstance(found, str) and found.isidentifier() else _AGAIN,
        )
    return listed


def check_choices(values: Mapping[str, Any], path: Path, *, dtypes: bool = True) -> None:
    """Checks the keys that choose kernels and dtypes, in a config or among keyword arguments for a loader.

    Args:
        values: the config or the arguments.
        path: path of the file that holds them, for messages.
        dtypes: whether dtypes are checked, which a loader reads only in the config of a model or a part.

    Raises:
        CheckpointError: the attention is a kernel of a hub, or a package that is not installed and that transformers
            would replace by such a kernel; or the dtype is not one that weights can have.
    """
    for key in ATTENTION_KEYS:
        for value in _each(values.get(key)):
            if not isinstance(value, str) or "/" in value or ":" in value:
                raise CheckpointError(
                    f"{path}: {key} is {shown(value)}; kernels of a hub are not fetched for a model folder",
                    hint=f"take {key} out of the file",
                )
            if "flash_attention" in value and not importlib.util.find_spec("flash_attn"):
                raise CheckpointError(
                    f"{path}: {key} is {shown(value)}, and the package flash_attn is not installed",
                    hint=f"take {key} out of the file: torch's attention is used then",
                )
    for key in DTYPE_KEYS if dtypes else ():
        for value in _each(values.get(key)):
            if not isinstance(value, str) or value not in _DTYPES:
                raise CheckpointError(
                    f"{path}: {key} is {shown(value)}; known are {', '.join(sorted(_DTYPES))}",
                    hint=f"take {key} out of the file",
                )


def _each(asked: Any) -> list[Any]:
    """Lists the values of a choice, which may be one for each part of the model; empty if it is null."""
    return [value for value in (asked.values() if isinstance(asked, dict) else [asked]) if value is not None]


def _check_numbers(config: Mapping[str, Any], path: Path) -> None:
    for key, value in config.items():
        if _LAYERS.fullmatch(key):
            _check_count(path, key, value, _MOST_LAYERS)
        elif _HEADS.fullmatch(key):
            _check_count(path, key, value, _MOST_HEADS)
        elif key == "attention_window":  # Longformer pads every text to a multiple of it
            _check_count(path, key, value, _LONGEST_WINDOW)
        elif _WIDTHS.fullmatch(key):
            _check_count(path, key, value, _WIDEST)
        elif key == "chunk_size_feed_forward" and value not in (0, None):
            raise CheckpointError(
                f"{path}: {key} is {shown(value)}, for which texts must have a multiple of as many tokens",
                hint=f"take {key} out of the file: it saves memory, and changes no vector",
            )
        elif _EPSILON.fullmatch(key) and value is not None:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or not 0 <= value < 1:
                raise CheckpointError(f"{path}: {key} is {shown(value)}; it must be from 0 to below 1", hint=_AGAIN)


def _check_count(path: Path, key: str, value: Any, most: int) -> None:
    lowest = 1 if key in _ESSENTIAL else -1
    for one in value if isinstance(value, list) else [value]:
        if one is None:
            continue
        whole = isinstance(one, int | float) and not isinstance(one, bool) and one == one // 1
        if not whole or not lowest <= one <= most:
            least = "from 1 to" if lowest == 1 else "of at most"
            raise CheckpointError(
                f"{path}: {key} is {shown(value)}; it must be a whole number {least} {most:,}", hint=_AGAIN
            )


def check_layers(config: Mapping[str, Any], path: Path, tensors: int) -> None:
    """Checks that a config asks for no more layers than its files hold tensors.

    Args:
        config: config.json or an object in it; objects inside it are checked too.
        path: path of config.json, for messages.
        tensors: number of tensors in the weights files.

    Raises:
        CheckpointError: the config asks for more layers than `tensors` can fill.
    """
    for key, value in config.items():
        if isinstance(value, dict):
            check_layers(value, path, tensors)
        elif _LAYERS.fullmatch(key) and isinstance(value, int) and value > max(tensors, _SHARED):
            raise CheckpointError(
                f"{path}: {key} is {value}, and the weights files hold {tensors} tensors in all", hint=_AGAIN
            )


def check_built(config: Any, path: Path) -> None:
    """Checks the attention heads of a config that transformers has read against its hidden dimension.

    Args:
        config: a `PreTrainedConfig`; configs inside it are checked too.
        path: path of config.json, for messages.

    Raises:
        CheckpointError: the number of heads does not divide the hidden dimension, or the number of key-value heads does
            not divide the number of heads.
    """
    for name in getattr(config, "sub_configs", None) or ():
        inner = getattr(config, name, None)
        if inner is not None and hasattr(inner, "to_dict"):
            check_built(inner, path)
    width, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if not isinstance(width, int) or not isinstance(heads, int):
        return
    if heads < 1 or heads > width:
        raise CheckpointError(f"{path}: num_attention_heads is {heads}, and the width is {width}", hint=_AGAIN)
    has_head_width = any(
        isinstance(getattr(config, key, None), int) for key in ("head_dim", "d_kv", "d_head", "attention_head_size")
    )
    if not has_head_width and width % heads:
        raise CheckpointError(
            f"{path}: num_attention_heads is {heads}, which does not divide the width {width}", hint=_AGAIN
        )
    groups = getattr(config, "num_key_value_heads", None)
    if isinstance(groups, int) and (groups < 1 or heads % groups):
        raise CheckpointError(
            f"{path}: num_key_value_heads is {groups}, which does not divide the {heads} heads", hint=_AGAIN
        )
