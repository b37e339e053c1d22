"""Chooses how the patch embeddings of an image encoder are pooled to one vector.

sentence-transformers runs image encoders (its Transformer module calls the image processor that the folder names, on
PIL images, without torchvision), but it would pool the embeddings of any plain folder by their mean. Vision models have
a better vector, and their modules show which one:

    pooler_output                DINOv2: the CLS token after the last LayerNorm. CLIP: the CLS token after a LayerNorm
                                 of its own. SigLIP: the attention head. Swin, BEiT: the mean of the patches.
    CLS token, after LayerNorm   ViT, DeiT: their pooler is a linear with tanh that most checkpoints lack, and that
                                 transformers then invents at random.
    mean                         models that have neither
"""

from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ternarize_cli.errors import CheckpointError, UnavailableError, reason

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules.module import Module

__all__ = ["explain_processor", "gives_features", "has_processor", "image_modules", "image_pooling", "vector_width"]

Pooling = Literal["pooler_output", "cls", "mean"]
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def has_processor(folder: Path) -> bool:
    """Returns whether a model folder holds the config of an image processor, which resizes and normalises images."""
    return any((folder / name).is_file() for name in _PROCESSOR_FILES)


def explain_processor(folder: Path) -> None:
    """Opens the image processor of a folder that could not be loaded, and says so if a package is missing.

    sentence-transformers opens it through AutoProcessor, which reports a missing package as an unknown class.

    Raises:
        UnavailableError: the processor needs a package that is not installed, such as torchvision.
    """
    from transformers import AutoImageProcessor

    from ternarize_cli.model_folder.folder_check import LOADING

    if not has_processor(folder):
        return
    try:
        AutoImageProcessor.from_pretrained(folder, **LOADING)
    except ImportError as e:
        text = reason(e)
        package = next((name for name in ("torchvision", "timm", "scipy", "cv2") if name in text.lower()), None)
        raise UnavailableError(
            f"the image processor of {folder} needs a package that is not installed here: {text.partition('.')[0]}",
            hint=f"pip install {package}; for a CPU as torch was installed (--index-url …/cpu)" if package else None,
        ) from e
    except Exception:  # a config with wrong values can raise any error, which the caller has, too
        return


def image_pooling(model: Any) -> Pooling:
    """Chooses the pooling of an image encoder of transformers (the meta device is enough) by its modules."""
    pooler = getattr(model, "pooler", None)
    if hasattr(pooler, "dense"):
        return "cls"
    if _gives_pooler_output(model):
        return "pooler_output"
    return "cls" if any(name.endswith("cls_token") for name, _ in model.named_parameters()) else "mean"


def gives_features(model: Any) -> bool:
    """Whether a model of texts and images gives one vector for each, as CLIP does, and no embeddings of tokens.

    sentence-transformers then calls `get_text_features` and `get_image_features`, and pools nothing.
    """
    return hasattr(model, "get_text_features") and "last_hidden_state" not in _outputs(model)


def _gives_pooler_output(model: Any) -> bool:
    return "pooler_output" in _outputs(model)


def _outputs(model: Any) -> set[str]:
    """The names of what a model's forward pass returns, by its annotation."""
    from ternarize_cli.kernels.fused_encoder import output_kinds

    return {name for kind in output_kinds(model) for name in kind.__dataclass_fields__}


def image_modules(folder: Path, *, allow_pickle: bool = False) -> "list[Module]":
    """Makes the sentence-transformers modules for a plain transformers folder of an image encoder.

    Args:
        folder: the model's folder.
        allow_pickle: read pytorch_model.bin if there is no safetensors file.

    Raises:
        CheckpointError: the folder has no config of an image processor.
    """
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling as PoolingModule

    from ternarize_cli.model_folder.folder_check import loading_arguments

    if not has_processor(folder):
        raise CheckpointError(
            f"{folder} has no image processor ({_PROCESSOR_FILES[0]})",
            hint="copy the file over from the model's source: it says how images are resized and normalised",
        )
    transformer = Transformer(str(folder), **loading_arguments(allow_pickle=allow_pickle))
    pooling = image_pooling(transformer.model)
    if pooling == "pooler_output":
        transformer.modality_config = {"image": {"method": "forward", "method_output_name": pooling}}
        transformer.module_output_name = "sentence_embedding"
        return [transformer]
    return [transformer, PoolingModule(transformer.get_embedding_dimension(), pooling)]


def vector_width(encoder: "SentenceTransformer") -> int:
    """Returns the number of dimensions of an encoder's vectors; 0 if its modules do not say.

    sentence-transformers takes the `projection_dim` of a config for the width of `pooler_output`, which CLIP's vision
    tower gives before its projection.
    """
    first: Any
    first, *others = encoder
    read = list((getattr(first, "modality_config", None) or {}).values())
    pooled = bool(read) and all(one == {"method": "forward", "method_output_name": "pooler_output"} for one in read)
    if not pooled or any(hasattr(module, "get_embedding_dimension") for module in others):
        return encoder.get_embedding_dimension() or 0
    unprojected = copy(first)
    unprojected.module_output_name = "token_embeddings"
    width: int = unprojected.get_embedding_dimension()
    return min(width, encoder.truncate_dim or width)
