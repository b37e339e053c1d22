"""Lets transformers and sentence-transformers open ternary checkpoints and packed models.

    import ternarize_cli.hf
    model = AutoModel.from_pretrained("MiniLM-packed")            # or SentenceTransformer("MiniLM-packed")

It registers a quantizer under the method "ternarize". Before the weights are loaded, the quantizer replaces the linears
and embeddings that the artifact's config names by ternary modules; transformers then loads the tensors by name, as for
any model. Without the plug-in, a packed model can't be mistaken for a dense one: the packed tensor is named `weight` on
purpose, and its shape does not fit.

A Dense module of sentence-transformers has weights and a config of its own, and loads them itself. So two methods of
Dense are extended when the first artifact is loaded in a process that uses sentence-transformers: they read the
description in the module's config.json and put a ternary linear in place. A third extension keeps `requirements`, which
`save_pretrained` of sentence-transformers would drop. Without the plug-in such a module does not
load either: its tensors have other names or shapes.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers.quantizers import auto
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ternarize_cli.encoders import blocks, module_replacement
from ternarize_cli.encoders.anatomy import encoder_in
from ternarize_cli.encoders.checkpoint import REQUIREMENT, check_tensors
from ternarize_cli.errors import FormatError, InputError
from ternarize_cli.format.scheme import METHOD, Artifact
from ternarize_cli.kernels import FirstForward
from ternarize_cli.layers import PackedEmbedding, PackedLinear, TableDecoder, TernaryLinear, check_scale
from ternarize_cli.model_folder import integrity
from ternarize_cli.model_folder.folder_check import check_folder
from ternarize_cli.storage.weights import all_finite, open_files

__all__ = ["TernarizeConfig", "TernarizeQuantizer", "quiet_libraries"]


@register_quantization_config(METHOD)
class TernarizeConfig(QuantizationConfigMixin):
    """Presents an artifact's `quantization_config` to transformers, and takes the backend that a caller names.

        SentenceTransformer("my-packed", model_kwargs={"quantization_config": TernarizeConfig(backend="onednn")})

    Args:
        backend: the name of the backend that runs a packed model; "" leaves the choice to TERNARIZE_BACKEND and `auto`.
        values: the fields of the description; none where only the backend is named.

    Raises:
        FormatError: the description lacks a field, or a field has a value that the format does not allow.
    """

    def __init__(self, backend: str = "", **values: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        self.backend = backend
        self._artifact = Artifact.from_dict({"quant_method": METHOD, **values}) if values else None

    @property
    def artifact(self) -> Artifact:
        """The parsed description.

        Raises:
            InputError: the config names only a backend, and the model that is being loaded is not ternary.
        """
        if self._artifact is None:
            raise InputError(
                "TernarizeConfig(backend=…) is for packed models, and this model is none", hint="ternarize pack"
            )
        return self._artifact

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Makes the config from the dict in config.json, as transformers calls it; a file can't choose the backend."""
        config = cls(**config_dict | {"backend": ""})
        return (config, kwargs) if return_unused_kwargs else config

    def get_loading_attributes(self) -> dict[str, Any]:
        """Returns what a caller's config overrides in the one of the file: the backend."""
        return {"backend": self.backend}

    def to_dict(self) -> dict[str, Any]:
        """Makes the dict for config.json, without a digest, since `save_pretrained` writes other bytes than `pack`."""
        return self.artifact.to_dict()

    def to_diff_dict(self) -> dict[str, Any]:
        """Makes the dict for config.json with default values too, which transformers would otherwise leave out."""
        return self.to_dict()


auto.LOADING_ATTRIBUTES_CONFIG_TYPES += (TernarizeConfig,)  # type: ignore[assignment]


@register_quantizer(METHOD)
class TernarizeQuantizer(HfQuantizer):
    """Replaces modules by ternary ones before the weights are loaded, and checks the values afterwards."""

    requires_calibration = False
    quantization_config: TernarizeConfig

    @property
    def artifact(self) -> Artifact:
        """The description of the artifact that is being loaded."""
        return self.quantization_config.artifact

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if "sentence_transformers" in sys.modules:
            _extend_sentence_transformers()
        dtype = kwargs.get("dtype")
        paths = [Path(path) for path in kwargs.get("checkpoint_files") or []]
        _check_before_loading(paths, self.artifact)
        module_replacement.replace(model, self.artifact, dtype if isinstance(dtype, torch.dtype) else None)
        named = getattr(model.config, "architectures", None) or ()
        decodes = self.artifact.stage == "packed" and any(isinstance(m, TableDecoder) for m in model.modules())
        fresh = type(model).__name__ not in named and not decodes
        with open_files(paths) as shards:
            check_tensors(model, shards, FormatError, new_head=fresh)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        _check_values(model)
        backend = self.quantization_config.backend
        if self.artifact.stage == "packed":
            encoder = encoder_in(model)
            blocks.attach(encoder, self.artifact.block)
            encoder.forward = FirstForward(encoder, backend)
        elif backend:
            raise InputError(
                f"the backend {backend} runs packed models, and this one is not packed", hint="ternarize pack"
            )
        return model

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        return module_replacement.dequantize(model).to(dtype or torch.float32)

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Returns True: `save_pretrained` writes the model as an artifact."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether the model can be trained: True for a ternary checkpoint, False for a packed model."""
        return self.artifact.stage == "latent"

    @property
    def is_qat_trainable(self) -> bool:
        """Whether the model is trained with quantisation: True for a ternary checkpoint, False for a packed model."""
        return self.is_trainable


def _check_before_loading(paths: list[Path], artifact: Artifact) -> None:
    """Checks the folder that an artifact is loaded from, and a packed model's digest.

    Raises:
        CheckpointError: a config asks for something that no folder may ask for (`folder_check.check_folder`).
        FormatError: a packed model does not match its digest, or a weights file is no safetensors file.
    """
    for path in paths:
        if path.suffix != ".safetensors":
            raise FormatError(f"{path} is no safetensors file, and artifacts of ternarize have no others")
    for folder in {path.parent for path in paths}:
        check_folder(folder)
        if artifact.stage == "packed":
            integrity.verify(folder)


def _check_values(model: torch.nn.Module, prefix: str = "") -> None:
    """Checks the values of a model that was loaded from an artifact.

    Args:
        model: the loaded model, or one of its parts.
        prefix: what messages put before the names of tensors.

    Raises:
        FormatError: a code is invalid, a scale is negative, or a value is not finite; the message names the tensor.
    """
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and not tensor.is_meta and not all_finite(tensor.detach()):
            raise FormatError(f"{prefix}{name}: a value is not finite", hint="fetch or make the model again")
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear | PackedEmbedding):
            module.check(prefix + name)
        elif isinstance(module, TernaryLinear):
            check_scale(module.weight_scale.detach(), f"{prefix}{name}.weight_scale")


def _extend_sentence_transformers() -> None:
    """Lets Dense load and save ternary linears, and models keep their requirement of us; once in a process."""
    from sentence_transformers.base.model import BaseModel
    from sentence_transformers.base.modules import Dense

    if not getattr(Dense, "_reads_ternarize", False):
        _extend_dense(Dense)
        _extend_model(BaseModel)


def _extend_model(BaseModel: Any) -> None:
    make_config = BaseModel._get_model_config

    def _get_model_config(self: Any) -> dict[str, Any]:
        config: dict[str, Any] = make_config(self)
        if any(isinstance(module, PackedLinear | TernaryLinear) for module in self.modules()):
            config["requirements"] = {**config.get("requirements", {}), **REQUIREMENT}
        return config

    BaseModel._get_model_config = _get_model_config


def _extend_dense(Dense: Any) -> None:
    read_config, read_weights = Dense.load_config.__func__, Dense.load_torch_weights.__func__

    def load_config(cls: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        config: dict[str, Any] = read_config(cls, *args, **kwargs)
        config.pop("quantization_config", None)  # Dense takes no such argument
        return config

    def load_torch_weights(cls: Any, /, model_name_or_path: str, model: Any = None, **where: Any) -> Any:
        values = read_config(cls, model_name_or_path, **where).get("quantization_config")
        if model is None or values is None:
            return read_weights(cls, model_name_or_path, model=model, **where)
        artifact = Artifact.from_dict(values)
        name = where.get("subfolder") or "Dense"
        path = cls.load_file_path(model_name_or_path, filename="model.safetensors", **where)
        if path is None:
            raise FormatError(f"{name} holds no model.safetensors", hint="the model is incomplete: make it again")
        module_replacement.replace(model, artifact)
        with open_files([path]) as shards:
            check_tensors(model, shards, FormatError)
            tensors = {key: shard.get(key) for shard in shards for key in shard.keys()}  # noqa: SIM118
        model.load_state_dict(tensors)
        _check_values(model, f"{name}.")
        model.quantization_config = artifact.to_dict()
        model.config_keys = [*cls.config_keys, "quantization_config"]  # so that it is saved again
        return model

    Dense.load_config = classmethod(load_config)
    Dense.load_torch_weights = classmethod(load_torch_weights)
    Dense._reads_ternarize = True


def quiet_libraries() -> None:
    """Turns off the loading bars and load reports that transformers prints on stderr."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
