"""The numbers in a config.json, checked before a model is built from them.

A config may ask for a million layers, for heads that are none, or for a table of a billion rows: building the model,
even without memory for its values, would take for ever or fail somewhere deep inside. The numbers are first held
against what any encoder has (`check_numbers`), then layers against the tensors that the files hold (`check_layers`);
widths and vocabularies are compared with the shapes of the tensors when the skeleton is there (`checkpoint`).
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ternarize_cli.bounds import shown
from ternarize_cli.errors import CheckpointError

__all__ = ["check_built", "check_layers", "check_numbers"]

_LAYERS = re.compile(r"(num_(hidden_|encoder_|decoder_)?layers|n_layers?|encoder_layers|decoder_layers|num_blocks)")
_HEADS = re.compile(
    r"(num_(attention|key_value)_heads|num_heads|n_heads?|(encoder|decoder)_attention_heads|num_kv_heads)"
)
_WIDTHS = re.compile(
    r"(hidden_size|intermediate_size|embedding_size|d_model|d_ff|d_kv|dim|hidden_dim|n_embd|n_inner|n_positions|head_dim"
    r"|vocab_size|type_vocab_size|max_position_embeddings|patch_size|num_channels|projection_dim|embed_dim|n_ctx)"
)
_EPSILON = re.compile(r"\w*(_eps|_epsilon)|eps|epsilon")
_MOST = {"layers": 4096, "heads": 4096, "width": 1 << 24}
_WITHOUT = ("max_position_embeddings", "n_inner", "type_vocab_size", "projection_dim", "embedding_size", "head_dim")
"""Widths that some families set to 0, -1 or null where there is no such table or part."""
_SHARED = 64
"""Layers that may share one set of tensors, as ALBERT's do."""


def check_numbers(config: Mapping[str, Any], path: Path) -> None:
    """Checks the counts, widths and epsilons of one object of a config.json.

    Raises:
        CheckpointError: one is no number, or none that an encoder can have; the message names key and value.
    """
    for key, value in config.items():
        if _LAYERS.fullmatch(key):
            _check_count(path, key, value, _MOST["layers"], lowest=0)  # of an encoder's decoder, such as T5's
        elif _HEADS.fullmatch(key):
            _check_count(path, key, value, _MOST["heads"])
        elif _WIDTHS.fullmatch(key):
            lowest = -1 if key in _WITHOUT else 1
            _check_count(path, key, value, _MOST["width"], lowest)
        elif _EPSILON.fullmatch(key) and value is not None:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or not 0 <= value < 1:
                raise CheckpointError(f"{path}: {key} is {shown(value)}; it is a small positive number", hint=_AGAIN)


_AGAIN = "fetch the file again"


def _check_count(path: Path, key: str, value: Any, most: int, lowest: int = 1) -> None:
    for one in value if isinstance(value, list) else [value]:
        if one is None:
            continue
        if isinstance(one, bool) or not isinstance(one, int) or not lowest <= one <= most:
            raise CheckpointError(
                f"{path}: {key} is {shown(value)}; it is a whole number from 1 to {most:,}", hint=_AGAIN
            )


def check_layers(config: Mapping[str, Any], path: Path, tensors: int) -> None:
    """Checks that a config asks for no more layers than its files hold tensors.

    Args:
        config: config.json or an object in it; objects inside are checked, too.
        path: config.json, for messages.
        tensors: how many the files hold.

    Raises:
        CheckpointError: it asks for more.
    """
    for key, value in config.items():
        if isinstance(value, dict):
            check_layers(value, path, tensors)
        elif _LAYERS.fullmatch(key) and isinstance(value, int) and value > max(tensors, _SHARED):
            raise CheckpointError(
                f"{path}: {key} is {value}, and the weights files hold {tensors} tensors in all", hint=_AGAIN
            )


def check_built(config: Any, path: Path) -> None:
    """Checks the heads of a config that transformers has read against its width.

    Args:
        config: a `PreTrainedConfig`; those inside it are checked, too.
        path: config.json, for messages.

    Raises:
        CheckpointError: the heads don't share the width equally, or the key-value heads the heads.
    """
    for name in getattr(config, "sub_configs", None) or ():
        inner = getattr(config, name, None)
        if inner is not None and hasattr(inner, "to_dict"):
            check_built(inner, path)
    width, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if not isinstance(width, int) or not isinstance(heads, int):
        return
    if heads < 1 or heads > width:
        raise CheckpointError(f"{path}: num_attention_heads is {heads}, of a width of {width}", hint=_AGAIN)
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
