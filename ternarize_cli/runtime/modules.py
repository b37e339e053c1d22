"""Reads what a folder of sentence-transformers does with the hidden states of its encoder: the modules of modules.json.

    Transformer        the encoder itself
    Pooling            one vector of the tokens of a text
    Dense              a linear and an activation
    LayerNorm          a layer norm
    Normalize          length 1
    Dropout            nothing, outside of training

A module of another kind, or an option of one of these that is not known here, is refused by name.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ternarize_cli.errors import CheckpointError, InputError, UnavailableError, named, shown
from ternarize_cli.runtime.native.interface import POOLINGS
from ternarize_cli.runtime.native.library import Library, library
from ternarize_cli.runtime.native.weights import DenseWeights, NormWeights, PackedCodes
from ternarize_cli.runtime.packed_file import IN_TORCH, PackedFile, packed_artifact
from ternarize_cli.runtime.tensor_file import TensorFile
from ternarize_cli.storage.bounds import optional_object, read_json, read_object

__all__ = [
    "Dense",
    "Modules",
    "Pooling",
    "Prompts",
    "listed_modules",
    "read_modules",
    "read_prompts",
    "require_prompt",
]

_OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ORDER = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


@dataclass(frozen=True)
class Pooling:
    """How one vector is made of the tokens of a text.

    Attributes:
        modes: the ways to pool, some of `POOLINGS`, whose vectors are joined.
        includes_prompt: whether the tokens of a prompt count.
    """

    modes: tuple[str, ...]
    includes_prompt: bool = True


@dataclass(frozen=True)
class Dense:
    """A linear and an activation.

    Attributes:
        weights: the linear, of codes or of floats.
        activation: "Identity" or "Tanh".
    """

    weights: PackedCodes | DenseWeights
    activation: str

    def __call__(self, library: Library, x: np.ndarray) -> np.ndarray:
        """Computes float32 `[rows, out]` of float32 `[rows, in]`."""
        packed = isinstance(self.weights, PackedCodes)
        y = library.linear(self.weights, x) if packed else library.dense(self.weights, x)  # type: ignore[arg-type]
        return np.tanh(y) if self.activation == "Tanh" else y


class Prompts(NamedTuple):
    """The prompts of a model by name, and the name of the one that is used if none is named."""

    prompts: Mapping[str, str]
    default: str | None


@dataclass(frozen=True)
class Modules:
    """What a model does with the hidden states of its encoder.

    Attributes:
        pooling: how vectors are made of tokens; None if the encoder's own pooling is taken.
        layers: linears and layer norms behind it, in order.
        normalizes: whether vectors get length 1 at the end.
        similarity: how vectors are compared, by sentence-transformers' name.
        prompts: the prompts by name; default_prompt: the name of the one that is used if none is named.
        dimensions: the number of dimensions that vectors are cut to; None for all.
    """

    pooling: Pooling | None
    layers: tuple[Dense | NormWeights, ...]
    normalizes: bool
    similarity: str
    prompts: Mapping[str, str]
    default_prompt: str | None
    dimensions: int | None

    def width(self, pooled: int) -> int:
        """Returns the number of dimensions of a vector, given that of what pooling makes.

        Raises:
            CheckpointError: a module reads another number of dimensions than the one before it makes.
        """
        for layer in self.layers:
            reads = int(layer.weights.linear.inputs if isinstance(layer, Dense) else len(layer.gain))
            if reads != pooled:
                what = "Dense" if isinstance(layer, Dense) else "LayerNorm"
                raise CheckpointError(
                    f"a module {what} reads {reads} dimensions, and the one before it makes {pooled}",
                    hint="the folder mixes files of several models: fetch or make it again",
                )
            pooled = int(layer.weights.linear.outputs) if isinstance(layer, Dense) else pooled
        return pooled

    def behind_pooling(self, library: Library, vectors: np.ndarray, *, normalize: bool = True) -> np.ndarray:
        """Computes what the modules behind pooling make of vectors: float32 `[rows, dim]`.

        Args:
            library: the compiled library.
            vectors: float32 `[rows, width]`; they are overwritten.
            normalize: False leaves Normalize out, if the model has it.
        """
        for layer in self.layers:
            if isinstance(layer, Dense):
                vectors = layer(library, vectors)
            else:
                library.norm(layer, vectors)
        if self.normalizes and normalize:
            library.normalize(vectors)
        return vectors


def read_modules(folder: Path) -> Modules:
    """Reads modules.json and what it names.

    Raises:
        CheckpointError: a file is missing or damaged.
        UnavailableError: a module, or an option of one, is not known here; the message names it.
    """
    path = folder / "modules.json"
    if not path.is_file():
        raise UnavailableError(f"{folder} has no modules.json, which says how vectors are made", hint=IN_TORCH)
    pooling: Pooling | None = None
    layers: list[Dense | NormWeights] = []
    normalizes = False
    for i, (kind, where) in enumerate(listed_modules(folder)):
        if normalizes and kind != "Dropout":
            raise UnavailableError(f"{path} has a module {kind} behind Normalize", hint=IN_TORCH)
        if kind == "Transformer" and i == 0:
            continue
        if kind == "Pooling" and i == 1:
            pooling = _pooling(where)
        elif kind == "Dense":
            layers.append(_dense(where))
        elif kind == "LayerNorm":
            layers.append(_norm(where))
        elif kind == "Normalize":
            _check_normalize(where)
            normalizes = True
        elif kind != "Dropout":
            raise UnavailableError(f"{path} names the module {named(kind)} at place {i}", hint=IN_TORCH)
    settings = optional_object(folder / "config_sentence_transformers.json")
    prompts, default = read_prompts(settings, folder, "query", "document")
    dimensions = settings.get("truncate_dim")
    if dimensions is not None and (type(dimensions) is not int or dimensions < 1):
        raise CheckpointError(f"{folder}: truncate_dim is {shown(dimensions)}", hint="fetch the files again")
    return Modules(
        *(pooling, tuple(layers), normalizes, str(settings.get("similarity_fn_name") or "cosine"), prompts),
        *(default, dimensions),
    )


def read_prompts(settings: Mapping[str, Any], folder: Path, *always: str) -> Prompts:
    """Reads the prompts of a model.

    Args:
        settings: what config_sentence_transformers.json holds.
        folder: the model's folder, for messages.
        always: names that sentence-transformers has an empty prompt for where the settings have none.

    Raises:
        CheckpointError: a prompt is no text, or there is no prompt of the default's name.
    """
    given = settings.get("prompts") or {}
    if not isinstance(given, dict) or not all(isinstance(prompt, str | None) for prompt in given.values()):
        raise CheckpointError(f"{folder}: prompts are {shown(given)}, not texts", hint="fetch the files again")
    prompts = {name: prompt or "" for name, prompt in {**dict.fromkeys(always, ""), **given}.items()}
    default = settings.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise CheckpointError(f"{folder}: default_prompt_name {shown(default)} is no prompt", hint="fetch it again")
    return Prompts(prompts, default)


def require_prompt(prompts: Collection[str], name: str) -> None:
    """Checks that a model has a prompt.

    Raises:
        InputError: the name is no text, or there is no prompt of that name; the hint lists those that there are.
    """
    if not isinstance(name, str):
        raise InputError(f"{shown(name)} is no name of a prompt", hint="pass the prompt itself as prompt=")
    if name not in prompts:
        known = ", ".join(sorted(prompts)) or "none"
        raise InputError(f"the model has no prompt named {name!r}", hint=f"its prompts: {known}")


def listed_modules(folder: Path) -> list[tuple[str, Path]]:
    """Lists the modules of modules.json, each by the name of its class and its folder; empty without such a file.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / "modules.json"
    listed = read_json(path) if path.is_file() else []
    if not isinstance(listed, list) or not all(isinstance(m, dict) and isinstance(m.get("path"), str) for m in listed):
        raise CheckpointError(f"{path} is no list of modules", hint="fetch the file again")
    return [(str(module.get("type")).rpartition(".")[2], folder / module["path"]) for module in listed]


def _pooling(where: Path) -> Pooling:
    values = read_object(where / "config.json")
    modes = values.get("pooling_mode")
    if modes is None:
        chosen = {new for old, new in _OLD_MODES.items() if values.get(old)}
        modes = [mode for mode in _ORDER if mode in chosen] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes or not all(mode in POOLINGS for mode in modes):
        raise UnavailableError(f"{where} pools by {shown(modes)}", hint=IN_TORCH)
    return Pooling(tuple(modes), bool(values.get("include_prompt", True)))


def _dense(where: Path) -> Dense:
    values = read_object(where / "config.json")
    activation = str(values.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    known = {"in_features", "out_features", "bias", "activation_function", "quantization_config"}
    plain = (None, "sentence_embedding", False)
    asked = {key for key, value in values.items() if key not in known and value not in plain}
    if activation not in ("Identity", "Tanh") or asked:
        what = f"the activation {activation}" if not asked else f"{sorted(asked)[0]}"
        raise UnavailableError(f"{where} asks for {named(what)}", hint=IN_TORCH)
    file, inputs = TensorFile(where / "model.safetensors"), values.get("in_features")
    if type(inputs) is not int or inputs < 1:
        raise CheckpointError(f"{where}: in_features is {shown(inputs)}", hint="fetch the files again")
    described = values.get("quantization_config")
    if described is None:
        weights = file.floats("linear.weight", -1, inputs)
        bias = file.floats("linear.bias", len(weights)) if "linear.bias" in file else None
        return Dense(DenseWeights(weights, bias), activation)
    stored = PackedFile(file, packed_artifact(described, str(where))).linear("linear", inputs)
    return Dense(PackedCodes(library(), stored.codec, stored.rows, inputs, stored.scale, stored.bias), activation)


def _check_normalize(where: Path) -> None:
    values = optional_object(where / "config.json")
    for key in ("module_input_name", "module_output_name"):
        if values.get(key) not in (None, "sentence_embedding"):
            raise UnavailableError(f"{where} sets {key} to {shown(values[key])}", hint=IN_TORCH)


def _norm(where: Path) -> NormWeights:
    file = TensorFile(where / "model.safetensors")
    gain = file.floats("norm.weight", -1)
    return NormWeights("layer", gain, file.floats("norm.bias", len(gain)), 1e-5)
