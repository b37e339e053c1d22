"""The plug-in: `import ternarize_cli.hf`, and transformers and sentence-transformers open our artifacts.

    import ternarize_cli.hf
    model = AutoModel.from_pretrained("MiniLM-packed")            # or SentenceTransformer("MiniLM-packed")

It registers a quantizer under the method "ternarize". Before the weights are loaded it puts our modules in place of the
linears and embeddings that the artifact's config names; transformers then loads the tensors by name as for any model.
Without the plug-in a packed folder can't be mistaken for a dense one: the packed tensor is named `weight` on purpose,
and its shape does not fit.
"""

from typing import Any

import torch
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ternarize_cli import surgery
from ternarize_cli.checkpoint import check_tensors
from ternarize_cli.errors import FormatError
from ternarize_cli.layers import PackedEmbedding, PackedLinear, TernaryLinear, check_scale
from ternarize_cli.scheme import METHOD, Artifact
from ternarize_cli.weights import open_files

__all__ = ["TernarizeConfig", "TernarizeQuantizer", "quiet_libraries"]


@register_quantization_config(METHOD)
class TernarizeConfig(QuantizationConfigMixin):
    """An artifact's `quantization_config`, as transformers wants to see one; `artifact` holds it parsed.

    Raises:
        FormatError: as `Artifact.from_dict`.
    """

    def __init__(self, **values: Any) -> None:
        self.quant_method = METHOD
        self.artifact = Artifact.from_dict({"quant_method": METHOD, **values})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Built from the dict in config.json."""
        config = cls(**config_dict)
        return (config, kwargs) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        """The dict for config.json."""
        return self.artifact.to_dict()

    def to_diff_dict(self) -> dict[str, Any]:
        """All of it: an artifact explains itself."""
        return self.to_dict()


@register_quantizer(METHOD)
class TernarizeQuantizer(HfQuantizer):
    """Puts our modules in place before loading and checks what was loaded."""

    requires_calibration = False
    quantization_config: TernarizeConfig

    @property
    def artifact(self) -> Artifact:
        """What is being loaded."""
        return self.quantization_config.artifact

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        dtype = kwargs.get("dtype")
        surgery.replace(model, self.artifact, dtype if isinstance(dtype, torch.dtype) else None)
        with open_files(kwargs.get("checkpoint_files") or []) as shards:
            check_tensors(model, shards, FormatError)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        for name, module in model.named_modules():
            if isinstance(module, PackedLinear | PackedEmbedding):
                module.check(name)
            elif isinstance(module, TernaryLinear):
                check_scale(module.weight_scale.detach(), f"{name}.weight_scale")
        return model

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        return surgery.dequantize(model).to(dtype or torch.float32)

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """`save_pretrained` writes the artifact again."""
        return True

    @property
    def is_trainable(self) -> bool:
        """A ternary checkpoint trains; a packed model does not."""
        return self.artifact.stage == "latent"

    @property
    def is_qat_trainable(self) -> bool:
        """Training a ternary checkpoint is quantisation-aware."""
        return self.is_trainable


def quiet_libraries() -> None:
    """Turns off the loading bars and load reports that transformers prints on stderr."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
