"""Model folders: what they are, whether they are whole, and what travels from one to the next.

Names in a file need not be the names of modules (a `bert.` prefix, `gamma` for `weight`, renamed attention
blocks): `names_in_model` maps them as transformers itself does when it loads, so artifacts keep the source's names and
every version of transformers that reads the source reads the artifact.
"""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ternarize_cli.errors import CheckpointError
from ternarize_cli.scheme import METHOD, Artifact
from ternarize_cli.weights import DTYPES, INDEX_FILES, Shard, open_shards

__all__ = [
    "artifact_of",
    "check_tensors",
    "copy_companions",
    "names_in_model",
    "read_config",
    "skeleton",
    "stage",
    "validate",
    "write_config",
]

_FLOATS = ("F64", "F32", "F16", "BF16")
_FOREIGN = ("*.bin", "*.h5", "*.msgpack", "*.onnx", "*.ot", "*.pt", "*.pth", "*.ckpt", "*.tflite", "*.py", "*.gguf")
_FOREIGN_FOLDERS = ("onnx", "openvino", "coreml", "__pycache__")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as a dict.

    Raises:
        CheckpointError: it is missing or no JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} is no model folder: it has no config.json")
    return _json_object(path)


def _json_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
        raise CheckpointError(f"{path} is not valid JSON: {e}", hint="fetch the file again") from e
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object", hint="fetch the file again")
    return values


def artifact_of(folder: Path) -> Artifact | None:
    """The artifact description in a folder's config; None for a model that is not ours.

    Raises:
        FormatError: it is ours but breaks the format.
        CheckpointError: config.json is missing or damaged.
    """
    quantization = read_config(folder).get("quantization_config")
    if quantization is None:
        return None
    if not isinstance(quantization, dict):
        raise CheckpointError(f"{folder / 'config.json'}: quantization_config is no JSON object", hint="fetch it again")
    if quantization.get("quant_method") != METHOD:
        return None
    return Artifact.from_dict(quantization)


def stage(folder: Path) -> str | None:
    """ "latent" or "packed" for an artifact of ours, None for a full-precision model."""
    artifact = artifact_of(folder)
    return artifact.stage if artifact else None


def skeleton(folder: Path) -> Any:
    """The encoder that `AutoModel` builds for a folder's config, on the meta device (no memory, no values).

    Raises:
        CheckpointError: transformers does not know the architecture, or the config asks for code from its folder.
    """
    from transformers import AutoConfig, AutoModel

    values = read_config(folder)
    if "auto_map" in values and not _known(values.get("model_type")):
        raise CheckpointError(
            f"{folder} brings its own model code, which is never run", hint="use a model that transformers has"
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.device("meta"):
            return AutoModel.from_config(config)
    except Exception as e:  # whatever a config with wrong values sets off in a model's constructor
        text = " ".join(str(e).split())[:240]
        raise CheckpointError(
            f"transformers can't build the model that {folder / 'config.json'} describes: {text}"
        ) from e


def _known(model_type: Any) -> bool:
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def names_in_model(model: Any, keys: Iterable[str]) -> dict[str, str]:
    """Maps tensor names of a file to names in a model's state dict; names the model has no place for are left out.

    Args:
        model: a transformers model (meta is fine); the mapping is transformers' own.
        keys: names in the file. `X.weight_scale` follows `X.weight`.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    state = dict.fromkeys(model.state_dict(), True)
    renamings = [t for t in get_model_conversion_mapping(model) if isinstance(t, WeightRenaming)]
    found = {}
    for key in keys:
        base, is_scale = (key.removesuffix("_scale"), True) if key.endswith(".weight_scale") else (key, False)
        name, _ = rename_source_key(base, renamings, [], model.base_model_prefix, state)
        if name not in state:
            name, _ = rename_source_key(base, [], [], model.base_model_prefix, state)
        if name in state:
            found[key] = f"{name}_scale" if is_scale else name
    return found


def validate(folder: Path, *, allow_pickle: bool = False) -> Artifact | None:
    """Checks that a folder's files are complete and readable, and an artifact's config well-formed.

    The content of packed tensors (codes, scales) is checked by the plug-in when they are loaded.

    Raises:
        CheckpointError, FormatError: what is wrong, and where.
    """
    artifact = artifact_of(folder)
    with open_shards(folder, allow_pickle=allow_pickle) as shards:
        if not any(shard.keys() for shard in shards):
            raise CheckpointError(f"{shards[0].path} holds no tensors", hint="fetch the file again")
    return artifact


def check_tensors(model: Any, shards: Iterable[Shard], error: type[CheckpointError] = CheckpointError) -> None:
    """Checks that the files hold every tensor of a model, in its shape and kind, from their headers alone.

    Only what transformers itself expects to be absent may be: a pooler that no module of ours stands for, tied tensors
    and those a model lists as ignorable.

    Args:
        model: the skeleton, with the modules of an artifact in place.
        shards: the opened files.
        error: what is raised.
    """
    from ternarize_cli.layers import PackedEmbedding, PackedLinear, SimulatedEmbedding, TernaryLinear

    state = model.state_dict()
    found: set[str] = set()
    for shard in shards:
        for key, name in names_in_model(model, shard.keys()).items():
            wanted = state.get(name)
            if wanted is None:
                continue
            found.add(name)
            if shard.shape(key) != tuple(wanted.shape):
                raise error(f"{key} is {list(shard.shape(key))}, and config.json makes it {list(wanted.shape)}")
            exact = wanted.dtype in (torch.uint8, torch.int8)
            allowed = [n for n, t in DTYPES.items() if t == wanted.dtype] if exact else _FLOATS
            if (exact or wanted.is_floating_point()) and shard.dtype(key) not in allowed:
                raise error(f"{key} is {shard.dtype(key)}, not {' or '.join(allowed)}")
    ours = (TernaryLinear, PackedLinear, SimulatedEmbedding, PackedEmbedding)
    required = {name for name, module in model.named_modules() if isinstance(module, ours)}
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    ignorable = [re.compile(p) for p in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()]
    for name in state:
        optional = "pooler" in name or name.endswith("mask_token") or any(p.search(name) for p in ignorable)
        if name not in found and name not in tied and (name.rpartition(".")[0] in required or not optional):
            raise error(f"the tensor {name} is missing", hint="the model is incomplete: fetch or make it again")


def write_config(source: Path, folder: Path, artifact: Artifact) -> None:
    """Writes config.json with the artifact's description, and names us as a requirement to sentence-transformers."""
    config = read_config(source)
    config.pop("torch_dtype", None)
    config["dtype"] = "float32"
    config["quantization_config"] = artifact.to_dict()
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if not (source / "modules.json").is_file():
        return
    path = folder / "config_sentence_transformers.json"
    settings = _json_object(path) if path.is_file() else {}
    version = artifact.tool_version
    settings["requirements"] = {**settings.get("requirements", {}), "ternarize-cli": {"specifier": f">={version}"}}
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_companions(source: Path, folder: Path) -> None:
    """Copies all that is not the encoder's weights: tokenizer, processors, pooling and other modules, model card.

    Pickles, other frameworks' weights, code and hidden files stay behind.
    """
    for entry in sorted(source.iterdir()):
        name = entry.name
        if name.startswith(".") or name in INDEX_FILES or any(entry.match(p) for p in _FOREIGN):
            continue
        if entry.is_dir() and name not in _FOREIGN_FOLDERS:
            ignore = shutil.ignore_patterns(*_FOREIGN, ".*", *_FOREIGN_FOLDERS)
            shutil.copytree(entry, folder / name, ignore=ignore)
        elif entry.is_file() and entry.suffix != ".safetensors":
            shutil.copyfile(entry, folder / name)
