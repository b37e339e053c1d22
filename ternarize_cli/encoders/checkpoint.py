"""Reads the config of a model folder, builds the skeleton that it describes, and checks the tensors against it."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ternarize_cli import __version__
from ternarize_cli.encoders.encoder_alone import encoder_alone, refuse_unreadable, require_encoder_tensors
from ternarize_cli.encoders.projections import refuse_projection
from ternarize_cli.encoders.tensor_names import names_in_model, split_fused
from ternarize_cli.errors import CheckpointError
from ternarize_cli.format.scheme import METHOD, Artifact
from ternarize_cli.model_folder import config_check, integrity
from ternarize_cli.model_folder.folder_check import LOADING, check_folder
from ternarize_cli.model_folder.model_files import copy_companions
from ternarize_cli.model_folder.model_kind import Head, left_out
from ternarize_cli.storage.bounds import optional_object, read_object
from ternarize_cli.storage.weights import DTYPES, WeightShard, open_shards

__all__ = [
    "REQUIREMENT",
    "artifact_of",
    "brings_code",
    "check_tensors",
    "copy_companions",
    "names_in_model",
    "read_config",
    "skeleton",
    "split_fused",
    "stage",
    "validate",
    "write_config",
]

REQUIREMENT = {"ternarize-cli": {"specifier": f">={__version__}"}}
"""What config_sentence_transformers.json of an artifact requires: sentence-transformers says what to install."""
_MOST_COMPUTED = 1 << 30
"""The most bytes that those buffers of a model may take that are computed from its config and are in no file."""
_FLOATS = ("F64", "F32", "F16", "BF16")
_AUTO: dict[Head, str] = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "fill-mask": "AutoModelForMaskedLM",
}


def read_config(folder: Path) -> dict[str, Any]:
    """Reads the config.json of a model folder as a dict.

    Raises:
        CheckpointError: config.json is missing, can't be read, or is no JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} is no model folder: it has no config.json")
    return read_object(path)


def artifact_of(folder: Path) -> Artifact | None:
    """Reads the artifact's description (`quantization_config`) from a folder's config; None for full precision.

    Raises:
        FormatError: the description lacks a field, or a field has a value that the format does not allow.
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
    """Returns the stage of a model folder: "latent" (a ternary checkpoint), "packed", or None (full precision).

    Raises:
        FormatError: the artifact's description breaks the format.
        CheckpointError: config.json is missing or damaged.
    """
    artifact = artifact_of(folder)
    return artifact.stage if artifact else None


def skeleton(folder: Path, head: Head | None = None) -> Any:
    """Builds the model that transformers has for a folder's config, on the meta device (no memory, no values).

    Args:
        folder: the model folder.
        head: the head to build beside the encoder; None builds the encoder alone. For encoder-decoder models such as
            T5 the encoder alone lacks the decoder, as in sentence-transformers.

    Raises:
        CheckpointError: config.json is missing or damaged, transformers does not know the architecture or can't build
            it from these values, only the folder's own code has the class, or its computed buffers are too large.
    """
    import transformers
    from transformers import AutoConfig

    values = read_config(folder)
    _check_own_code(values, folder)
    try:
        config = AutoConfig.from_pretrained(folder, **LOADING)
        config_check.check_built(config, folder / "config.json")
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        refuse_unreadable(config, folder)
        alone = encoder_alone(config) if head is None else None
        with torch.device("meta"):
            auto: Any = getattr(transformers, _AUTO[head] if head else "AutoModel")
            model = alone(config) if alone else auto.from_config(config)
    except (CheckpointError, MemoryError):
        raise
    except Exception as e:  # a config with wrong values can raise any error in a model's constructor
        text = " ".join(str(e).split())[:240]
        raise CheckpointError(
            f"transformers can't build the model that {folder / 'config.json'} describes: {text}"
        ) from e
    computed = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    if computed > _MOST_COMPUTED:  # GPT-Neo's masks, for one, are positions × positions
        raise CheckpointError(
            f"the model that {folder / 'config.json'} describes fills {computed:,} bytes of memory beside its weights",
            hint="check that this config belongs to the weights, or lower max_position_embeddings in it",
        )
    return model


def brings_code(config: Mapping[str, Any]) -> bool:
    """Returns whether a config.json names model code in its own folder (`auto_map`)."""
    return bool(config.get("auto_map"))


def _check_own_code(config: Mapping[str, Any], folder: Path) -> None:
    """Checks that transformers has the class of a model that brings its own code, and logs that the code is not run.

    Raises:
        CheckpointError: only the folder's own code, which is never run, has the class.
    """
    import transformers

    if not brings_code(config):
        return
    named = config_check.architectures_of(config, folder / "config.json")
    missing = [name for name in named if not hasattr(transformers, name)]
    if config.get("model_type") not in transformers.CONFIG_MAPPING or missing:
        raise CheckpointError(
            f"{folder} brings its own model code (auto_map in config.json), which is never run, and transformers has "
            f"no class {missing[0] if missing else config.get('model_type')}",
            hint="use a model that transformers has",
        )
    integrity.note_once(
        f"{folder} names model code of its own (auto_map), which is not run; the class of transformers for "
        f"{config.get('model_type')} takes its place"
    )


def validate(folder: Path, *, allow_pickle: bool = False, always_verify: bool = False) -> Artifact | None:
    """Checks a folder before anything in it is loaded: what its configs ask for, its weights files, and its digest.

    `transformers_plugin` checks the codes and scales in packed tensors when they are loaded.

    Args:
        folder: the folder of a model of any stage.
        allow_pickle: accept pickled weights.
        always_verify: compare a packed model with its digest even if TERNARIZE_VERIFY is 0.

    Returns:
        The artifact's description; None for a full-precision model.

    Raises:
        CheckpointError: a file is missing or damaged, or a config asks for something that no folder may ask for, such
            as running its own code (`model_folder.folder_check`).
        FormatError: the artifact's description breaks the format, or a packed model does not match its digest.
    """
    config = check_folder(folder, allow_pickle=allow_pickle)
    artifact = artifact_of(folder)
    if artifact is not None and artifact.stage == "packed":
        integrity.verify(folder, always=always_verify)
    with open_shards(folder, allow_pickle=allow_pickle) as shards:
        count = sum(len(shard.keys()) for shard in shards)
        if not count:
            raise CheckpointError(f"{shards[0].path} holds no tensors", hint="fetch the file again")
    config_check.check_layers(config, folder / "config.json", count)
    return artifact


def check_tensors(
    model: Any,
    shards: Iterable[WeightShard],
    error: type[CheckpointError] = CheckpointError,
    *,
    new_head: bool = False,
) -> None:
    """Checks, by the headers of weights files, that these hold every tensor of a model in its shape and dtype.

    Only tensors that transformers itself expects to be absent may be missing: a pooler without ternary modules, tied
    tensors, and those a model lists as ignorable. Tensors that the model has no place for are ignored (heads of a
    pre-training task), unless they belong to a layer of the encoder or to a further head of a classifier: then
    config.json describes another model than the one that was saved.

    Args:
        model: the skeleton; for an artifact, after its modules were replaced by ternary ones.
        shards: the opened weights files.
        error: the class of the error to raise.
        new_head: whether the layers beside the encoder may be missing, because they are to be trained.

    Raises:
        CheckpointError (of the class `error`): a tensor is missing, has another shape or dtype, or belongs to layers
            that the model does not have; the message names it.
    """
    from ternarize_cli.encoders.anatomy import names_in_encoder
    from ternarize_cli.layers import PackedEmbedding, PackedLinear, SimulatedEmbedding, TernaryLinear

    state = model.state_dict(keep_vars=True)
    found: set[str] = set()
    for shard in shards:
        names = names_in_model(model, shard.keys())
        homeless = [key for key in shard.keys() if names.get(key) not in state and not _BUFFERS.search(key)]  # noqa: SIM118
        if further := _further_head(model, homeless):
            raise error(
                f"the model has a further head, {further}, for which {type(model).__name__} has no place",
                hint="ternarize takes classifiers with the one head of the class in config.json",
            )
        require_encoder_tensors(model, homeless)
        refuse_projection(model, homeless)
        if surplus := _surplus(model, homeless):
            raise error(
                f"the model that config.json describes has no place for the tensor {surplus} in its layers",
                hint="config.json and the weights are of different models: fetch or make the model again",
            )
        for key, name in names.items():
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
        if name in found or id(state[name]) in held or name in tied or (new_head and module not in encoder):
            continue
        optional = "pooler" in name or name.endswith("mask_token") or any(p.search(name) for p in ignorable)
        if module in required or not optional:
            raise error(f"the tensor {name} is missing", hint="the model is incomplete: fetch or make it again")


_BUFFERS = re.compile(
    r"(\.|^)(masked_bias|(attn|attention)\.bias|inv_freq|position_ids|attn_mask|\w*relative_position_index|embed_positions)$"
)
"""Names of buffers that earlier versions of transformers stored in files; the config determines their values."""


def _further_head(model: Any, keys: Iterable[str]) -> str | None:
    """Finds the first of `keys` that names a tensor beside the encoder of a classifier; None if no key does.

    A masked language model may have been saved with the heads of its pre-training, which no one needs.
    """
    if not type(model).__name__.endswith("ForSequenceClassification"):
        return None
    base = f"{getattr(model, 'base_model_prefix', '')}."
    return next((key for key in keys if not key.startswith((base, "pooler."))), None)


def _surplus(model: Any, keys: Iterable[str]) -> str | None:
    """Finds the first of `keys` that names a tensor of one of the model's layers; None if no key does."""
    lists = [re.escape(name) for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)]
    if not lists:
        return None
    base = re.escape(getattr(model, "base_model_prefix", "") or "model")
    layer = re.compile(rf"({base}\.)?({'|'.join(lists)})\.\d+\.")
    ignorable = [re.compile(p) for p in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    for key in keys:
        if layer.match(key) and not _BUFFERS.search(key) and not any(p.search(key) for p in ignorable):
            return key
    return None


def write_config(source: Path, folder: Path, artifact: Artifact) -> None:
    """Writes config.json with the artifact's description, and ternarize-cli as a requirement of the model.

    sentence-transformers reads the requirement from config_sentence_transformers.json, so the companion files must
    have been copied before.

    Args:
        source: the model folder whose config is taken.
        folder: the folder of the artifact.
        artifact: the description, which becomes `quantization_config`.

    Raises:
        CheckpointError: a config of `source` or `folder` is missing or damaged.
    """
    config = read_config(source)
    config.pop("torch_dtype", None)
    config["dtype"] = "float32"
    config["quantization_config"] = artifact.to_dict()
    if left_out(source) is not None:  # so that no class makes a random head in place of the one that is not there
        config["architectures"] = [type(skeleton(source)).__name__]
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if not (folder / "modules.json").is_file():
        return
    path = folder / "config_sentence_transformers.json"
    settings = optional_object(path)
    settings["requirements"] = {**settings.get("requirements", {}), **REQUIREMENT}
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
