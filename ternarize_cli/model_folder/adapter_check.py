"""Reads and checks adapter_config.json: a LoRA adapter of the library peft, without anything beside LoRA's product.

An adapter changes linears of a base model, W + scaling · B·A, and names that base. Nothing of the config is run: which
linears are adapted follows from the names of the adapter's tensors, so that `target_modules`, which may be a regular
expression that never ends, is not matched. A key that changes what peft computes, or that is not known here, must be
empty: a merge that leaves such a key out would give other vectors than the adapter was trained for.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ternarize_cli.errors import CheckpointError, named, shown
from ternarize_cli.model_folder.model_files import contained
from ternarize_cli.storage.bounds import read_object, require_regular

__all__ = ["LoraAdapter", "is_adapter", "read_adapter"]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_EMPTY = type(None)
_TYPES: Mapping[str, tuple[type, ...]] = {
    "alpha_pattern": (dict, _EMPTY),
    "auto_mapping": (dict, _EMPTY),
    "base_model_name_or_path": (str,),
    "bias": (str,),
    "exclude_modules": (str, list, _EMPTY),
    "fan_in_fan_out": (bool,),
    "inference_mode": (bool,),
    "init_lora_weights": (bool, str, _EMPTY),
    "layers_pattern": (str, list, _EMPTY),
    "layers_to_transform": (int, list, _EMPTY),
    "lora_alpha": (int, float),
    "lora_dropout": (int, float),
    "megatron_core": (str, _EMPTY),
    "peft_type": (str,),
    "peft_version": (str, _EMPTY),
    "qalora_group_size": (int,),
    "r": (int,),
    "rank_pattern": (dict, _EMPTY),
    "revision": (str, _EMPTY),
    "target_modules": (str, list, _EMPTY),
    "task_type": (str, _EMPTY),
    "use_rslora": (bool,),
}
"""The keys that are read or do not matter to a merge, with the types of their values."""
_KEEP_BASE = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base as it is; others, such as "pissa", are for a changed base."""
_LONGEST, _MOST, _HIGHEST_RANK, _LARGEST_ALPHA = 1024, 4096, 1 << 16, 1e6
_BY_PEFT = "merge it with peft: PeftModel.from_pretrained(BASE, ADAPTER).merge_and_unload().save_pretrained(NEW)"


@dataclass(frozen=True)
class LoraAdapter:
    """A LoRA adapter whose config was checked.

    Attributes:
        folder: the folder that holds adapter_config.json.
        base: the base model as the config names it: a path or a hub id.
        revision: the revision of the base on the hub; None: main.
        rank: rank of the product B·A, where `ranks` names no other.
        alpha: numerator of the scaling, where `alphas` names no other.
        rank_stabilised: whether the scaling is alpha / √rank instead of alpha / rank.
        ranks, alphas: ranks and alphas of modules by the ends of their names, or by `^` and their full names.
    """

    folder: Path
    base: str
    revision: str | None
    rank: int
    alpha: float
    rank_stabilised: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]

    @property
    def weights(self) -> Path:
        """The file with the adapter's tensors."""
        return self.folder / _WEIGHTS

    def rank_of(self, module: str) -> int:
        """Returns the rank of the adapter's product for a module, by the module's name in the adapter's tensors."""
        return next((rank for key, rank in self.ranks.items() if _fits(key, module)), self.rank)

    def alpha_of(self, module: str) -> float:
        """Returns the numerator of the scaling for a module, by the module's name in the adapter's tensors."""
        return next((alpha for key, alpha in self.alphas.items() if _fits(key, module)), self.alpha)


def _fits(key: str, module: str) -> bool:
    """Whether a key of `rank_pattern` names a module, as peft decides it."""
    return module == key.removeprefix("^") or module.endswith(f".{key}")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter (adapter_config.json) for another model."""
    return (folder / _CONFIG).exists()


def read_adapter(folder: Path) -> LoraAdapter:
    """Reads and checks the config of an adapter, and checks that its tensors are in a safetensors file.

    Raises:
        CheckpointError: the config is damaged, is not of a LoRA adapter, or holds a key that is unknown or has a value
            that can't be merged; or there is no adapter_model.safetensors, or it is a link to another place.
    """
    path = folder / _CONFIG
    config = read_object(path)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{path}: peft_type is {shown(kind)}; ternarize merges LORA alone", hint=_BY_PEFT)
    for key, value in config.items():
        known = _TYPES.get(key)
        if known is None and value:
            raise CheckpointError(
                f"{path}: {named(key)} is {shown(value)}, and ternarize merges plain LoRA adapters only", hint=_BY_PEFT
            )
        if known is not None and (not isinstance(value, known) or (isinstance(value, bool) and bool not in known)):
            raise CheckpointError(f"{path}: {key} is {shown(value)}, which no such key can be", hint=_BY_PEFT)
    _check_choices(config, path)
    base, revision = config.get("base_model_name_or_path", ""), config.get("revision")
    if not 0 < len(base) <= _LONGEST or not base.isprintable():
        raise CheckpointError(
            f"{path}: base_model_name_or_path is {shown(base)}, which names no model", hint="write the base's hub id"
        )
    if not (folder / _WEIGHTS).exists():
        raise CheckpointError(
            f"{folder} holds an adapter of {named(base)} without {_WEIGHTS}; an adapter's pickle is never read",
            hint="fetch it again, or save it anew with peft: save_pretrained(NEW, safe_serialization=True)",
        )
    require_regular(folder / _WEIGHTS)
    if not contained(folder, folder / _WEIGHTS):
        raise CheckpointError(
            f"{folder / _WEIGHTS} is a link to a place outside the adapter's folder", hint="put the file in its place"
        )
    return LoraAdapter(
        folder=folder,
        base=base,
        revision=revision or None,
        rank=_number(config.get("r", 8), "r", path, _HIGHEST_RANK),
        alpha=_number(config.get("lora_alpha", 8), "lora_alpha", path, _LARGEST_ALPHA),
        rank_stabilised=config.get("use_rslora", False),
        ranks=_pattern(config, "rank_pattern", path, _HIGHEST_RANK),
        alphas=_pattern(config, "alpha_pattern", path, _LARGEST_ALPHA),
    )


def _check_choices(config: Mapping[str, Any], path: Path) -> None:
    if config.get("bias", "none") != "none":
        raise CheckpointError(f"{path}: bias is {shown(config['bias'])}; ternarize merges weights only", hint=_BY_PEFT)
    if config.get("init_lora_weights", True) not in _KEEP_BASE:
        raise CheckpointError(
            f"{path}: init_lora_weights is {shown(config['init_lora_weights'])}, which changes the base itself",
            hint=_BY_PEFT,
        )
    for key, value in (config.get("auto_mapping") or {}).items():  # names the class that was adapted; peft imports it
        if key == "parent_library" and not re.fullmatch(r"(transformers|sentence_transformers)(\.\w+)*", str(value)):
            raise CheckpointError(
                f"{path}: auto_mapping names the library {shown(value)}; a base is of transformers", hint=_BY_PEFT
            )


def _pattern(config: Mapping[str, Any], key: str, path: Path, most: float) -> dict[str, Any]:
    """Reads the numbers of single modules. Keys are regular expressions to peft, and plain names are taken here."""
    values = config.get(key) or {}
    if len(values) > _MOST:
        raise CheckpointError(f"{path}: {key} names {len(values):,} modules, more than a model has", hint=_BY_PEFT)
    for name in values:
        if not re.fullmatch(r"\^?[\w.]+", name) or len(name) > _LONGEST:
            raise CheckpointError(f"{path}: {key} holds {shown(name)}, which is no module's name", hint=_BY_PEFT)
    return {name: _number(value, f"{key}[{named(name)}]", path, most) for name, value in values.items()}


def _number(value: Any, key: str, path: Path, most: float) -> Any:
    """Checks a rank or an alpha: a positive number of at most `most`; a rank is a whole one."""
    whole = most == _HIGHEST_RANK
    good = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not good or not 0 < value <= most:  # nor NaN, which no comparison holds of
        kind = "whole" if whole else "positive"
        raise CheckpointError(
            f"{path}: {key} is {shown(value)}; it must be a {kind} number of at most {most:,.0f}",
            hint="fetch the file again",
        )
    return value
