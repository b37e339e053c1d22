"""Model folders: what they are, whether they are whole, and what travels from one to the next."""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ternarize_cli.errors import CheckpointError
from ternarize_cli.naming import names_in_model, split_fused
from ternarize_cli.scheme import METHOD, Artifact
from ternarize_cli.weights import DTYPES, INDEX_FILES, Shard, open_shards

__all__ = [
    "artifact_of",
    "check_tensors",
    "copy_companions",
    "names_in_model",
    "read_config",
    "read_json",
    "skeleton",
    "split_fused",
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
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises CheckpointError if the file holds none."""
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

    Of T5 and its kin it is the encoder alone, as in sentence-transformers.

    Raises:
        CheckpointError: transformers does not know the architecture, or the config asks for code from its folder.
    """
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoConfig, AutoModel, AutoModelForTextEncoding

    values = read_config(folder)
    if "auto_map" in values and not _known(values.get("model_type")):
        raise CheckpointError(
            f"{folder} brings its own model code, which is never run", hint="use a model that transformers has"
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        text_encoder = MODEL_FOR_TEXT_ENCODING_MAPPING.get(type(config), None)
        encoder_only = text_encoder is not None and text_encoder.__name__.endswith("EncoderModel")
        with torch.device("meta"):
            return (AutoModelForTextEncoding if encoder_only else AutoModel).from_config(config)
    except Exception as e:  # whatever a config with wrong values sets off in a model's constructor
        text = " ".join(str(e).split())[:240]
        raise CheckpointError(
            f"transformers can't build the model that {folder / 'config.json'} describes: {text}"
        ) from e


def _known(model_type: Any) -> bool:
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


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

    Only what transformers itself expects to be absent may be: a pooler that no module of ours stands for, tied tensors,
    those a model lists as ignorable, and, in a class around the encoder, the layers beside it.

    Args:
        model: the skeleton, with the modules of an artifact in place.
        shards: the opened files.
        error: what is raised.
    """
    from ternarize_cli.anatomy import names_in_encoder
    from ternarize_cli.layers import PackedEmbedding, PackedLinear, SimulatedEmbedding, TernaryLinear

    state = model.state_dict(keep_vars=True)
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
    held = {id(state[name]) for name in found}
    encoder = names_in_encoder(model)
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    ignorable = [re.compile(p) for p in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()]
    for name in state:
        module = name.rpartition(".")[0]
        if name in found or id(state[name]) in held or name in tied or module not in encoder:
            continue
        optional = "pooler" in name or name.endswith("mask_token") or any(p.search(name) for p in ignorable)
        if module in required or not optional:
            raise error(f"the tensor {name} is missing", hint="the model is incomplete: fetch or make it again")


def write_config(source: Path, folder: Path, artifact: Artifact) -> None:
    """Writes config.json with the artifact's description, and names us as a requirement to sentence-transformers.

    Call it when the companion files are in place.
    """
    config = read_config(source)
    config.pop("torch_dtype", None)
    config["dtype"] = "float32"
    config["quantization_config"] = artifact.to_dict()
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if not (folder / "modules.json").is_file():
        return
    path = folder / "config_sentence_transformers.json"
    settings = read_json(path) if path.is_file() else {}
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
