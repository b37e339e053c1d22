"""What a packed model has that reads images: from images of PIL to vectors, up to the modules behind the encoder.

    images ──image_processing──▶ pixel values ──image_blocks──▶ hidden states ──pooling──▶ vectors

sentence_bert_config.json says which output of the encoder is taken: the hidden states of all tokens, which a module
Pooling then pools, or what the encoder itself pools (`image_pooling`). A model of two towers, such as CLIP, gives what
its `get_image_features` gives.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ternarize_cli.errors import CheckpointError, FormatError, UnavailableError, named, shown
from ternarize_cli.format.block import Block
from ternarize_cli.format.scheme import Artifact
from ternarize_cli.runtime.blocks import BATCH_TOKENS, Blocks, head_refusal, norm_weights
from ternarize_cli.runtime.image_blocks import ImageBlocks
from ternarize_cli.runtime.image_families import IMAGE_FAMILIES, ImageFamily
from ternarize_cli.runtime.image_pooling import AttentionPooler, FirstPooler, MeanPooler, Pooler, TanhPooler
from ternarize_cli.runtime.image_processing import LARGEST_SIDE, ImageProcessor
from ternarize_cli.runtime.image_processor_file import read_processor
from ternarize_cli.runtime.image_tensors import FileTensors, Linear
from ternarize_cli.runtime.modules import Modules, Pooling, read_modules
from ternarize_cli.runtime.native.library import Library, library
from ternarize_cli.runtime.packed_file import IN_TORCH, FileSource, PackedFile, packed_artifact
from ternarize_cli.runtime.tensor_file import TensorFile
from ternarize_cli.storage.bounds import read_object

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["PackedImages", "modules_of", "open_images"]

_TOWERS = {"clip": "visual_projection", "siglip": None}
"""The models of two towers by `model_type`, with the linear behind the tower that reads images."""
_FEATURES = Modules(
    pooling=None,
    layers=(),
    normalizes=False,
    similarity="cosine",
    prompts={},
    default_prompt=None,
    dimensions=None,
)
"""What is done with the features of a model of two towers whose folder has no modules.json."""
_ARGUMENTS = ("model_kwargs", "model_args", "config_kwargs", "config_args", "processor_kwargs", "tokenizer_args")


@dataclass(frozen=True)
class PackedImages:
    """What a packed model has that reads images.

    Attributes:
        processor: makes pixel values of an image.
        blocks: makes hidden states of pixel values.
        pooling: how vectors are made of the hidden states of all tokens; None if the encoder pools.
        pooler: the encoder's own pooling; None if the hidden states of all tokens are taken.
        projection: the linear behind it; None if there is none.
        width: the number of dimensions of a vector.
        has_towers: whether another tower of the model reads texts.
    """

    processor: ImageProcessor
    blocks: ImageBlocks
    pooling: Pooling | None
    pooler: Pooler | None
    projection: Linear | None
    width: int
    has_towers: bool

    def pixels(self, images: "Sequence[Image]", name: Callable[[int], str]) -> list[np.ndarray]:
        """Makes the pixel values of images: float32 `[channels, height, width]` of each.

        Args:
            images: the images.
            name: gives the name by which a message calls an image.

        Raises:
            InputError: an image can't be read, or the model does not read its channels or its size.
        """
        made = []
        for i, image in enumerate(images):
            made.append(self.processor(image, name(i)))
            self.blocks.check((1, *made[i].shape))
        return made

    def vectors(self, library: Library, pixels: Sequence[np.ndarray]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Encodes images in batches of one size.

        Args:
            library: the compiled library.
            pixels: of each image, as `pixels` gives them.

        Yields:
            The places of some images, and their vectors, float32 `[images, width]`.
        """
        waiting: dict[tuple[int, ...], list[int]] = {}
        for i, one in enumerate(pixels):
            places = waiting.setdefault(one.shape, [])
            places.append(i)
            if (len(places) + 1) * self.blocks.tokens(one.shape) > BATCH_TOKENS:
                del waiting[one.shape]
                yield places, self._pooled(library, np.stack([pixels[place] for place in places]))
        for places in waiting.values():
            yield places, self._pooled(library, np.stack([pixels[place] for place in places]))

    def _pooled(self, library: Library, pixels: np.ndarray) -> np.ndarray:
        hidden, starts = self.blocks(pixels)
        if self.pooler is None:
            assert self.pooling is not None
            return library.pool(hidden, starts, self.pooling.modes)
        made = self.pooler(hidden.reshape(len(pixels), -1, self.blocks.width))
        return made if self.projection is None else self.projection(made)


def modules_of(folder: Path) -> Modules:
    """Reads what a folder does with the output of its encoder; a model of two towers may leave that out.

    Raises:
        CheckpointError, UnavailableError: as `read_modules`.
    """
    if not (folder / "modules.json").is_file() and _vision_stack(_artifact(read_object(folder / "config.json"))):
        return _FEATURES
    return read_modules(folder)


def open_images(folder: Path, pooling: Pooling | None) -> PackedImages:
    """Reads what a packed model has that reads images.

    Args:
        folder: the model's folder.
        pooling: what the folder's module Pooling does; None if it has none.

    Raises:
        CheckpointError: a file is missing or damaged (FormatError: the weights or their description).
        UnavailableError: the compiled library is missing, or the model asks for something that this runtime does not
            do, which the message names.
    """
    config = read_object(folder / "config.json")
    artifact = _artifact(config)
    stack = _vision_stack(artifact)
    block = artifact.block.get(stack)
    if block is None or block.embeddings is not None:
        raise UnavailableError(f"{folder} has no description of blocks that read images", hint=IN_TORCH)
    if reason := artifact.torch_only or head_refusal(block):
        raise UnavailableError(f"{folder}: {reason}", hint=IN_TORCH)
    kind, own, family = _family(folder, config, stack)
    pools = _pools(folder, config, pooling, has_towers=bool(stack))
    file = PackedFile(
        TensorFile(folder / "model.safetensors"), packed_artifact(config["quantization_config"], str(folder))
    )
    prefix, lib = f"{stack}." if stack else "", library()
    norm = block.norms.get("attention.before")
    if norm is None:
        raise FormatError(f"{folder}: the description of its blocks has no norm before attention", hint="pack it again")
    source, tensors = FileSource(file, block, prefix), FileTensors(lib, file, norm.eps, prefix)
    embedding_norm = norm_weights(source, None, "embeddings", block.width)
    blocks = ImageBlocks(Blocks(lib, source), embedding_norm, tensors, family, _image_size(folder, own))
    name = _TOWERS.get(kind)
    behind = None if name is None else FileTensors(lib, file, norm.eps).linear(name, block.width)
    modes = 1 if pooling is None else len(pooling.modes)
    return PackedImages(
        processor=read_processor(folder, kind, blocks.channels),
        blocks=blocks,
        pooling=pooling,
        pooler=_pooler(folder, own, family, tensors, block) if pools else None,
        projection=behind,
        width=block.width * modes if name is None else file.file.shape(file.find(f"{name}.weight"))[0],
        has_towers=bool(stack),
    )


def _artifact(config: Mapping[str, Any]) -> Artifact:
    described = config.get("quantization_config")
    return Artifact.from_dict(described if isinstance(described, dict) else {})


def _vision_stack(artifact: Artifact) -> str:
    """Returns the name of the stack of blocks that reads images in a model of two towers; "" in other models."""
    return "vision_model" if "vision_model" in artifact.block else ""


def _family(folder: Path, config: Mapping[str, Any], stack: str) -> tuple[str, Mapping[str, Any], ImageFamily]:
    """Returns the `model_type`, the config of the model that reads images, and its family."""
    kind, own = config.get("model_type"), config
    if stack:
        own = config.get("vision_config") or {}
        if kind not in _TOWERS:
            raise UnavailableError(f"{folder} is a {shown(kind)}, whose towers are not known here", hint=IN_TORCH)
    name = f"{kind}_vision_model" if stack else kind
    if not isinstance(own, dict) or not isinstance(name, str) or name not in IMAGE_FAMILIES:
        raise UnavailableError(f"{folder} is a {shown(kind)}, whose images are not read here", hint=IN_TORCH)
    return str(kind), own, IMAGE_FAMILIES[name]


def _image_size(folder: Path, config: Mapping[str, Any]) -> tuple[int, int]:
    """Returns the height and width of the images that a model was trained on."""
    size = config.get("image_size", 224)
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(type(side) is int and 0 < side <= LARGEST_SIDE for side in sides):
        raise CheckpointError(f"{folder / 'config.json'}: image_size is {shown(size)}", hint="fetch the file again")
    return sides[0], sides[1]


def _pools(folder: Path, config: Mapping[str, Any], pooling: Pooling | None, *, has_towers: bool) -> bool:
    """Returns whether the encoder's own pooling is taken, and not the hidden states of all tokens.

    Raises:
        UnavailableError: the settings ask for another output, or for something that is not done here.
    """
    for key in ("output_hidden_states", "output_attentions"):
        if config.get(key):
            raise UnavailableError(f"{folder / 'config.json'} asks for {key}", hint=IN_TORCH)
    path = folder / "sentence_bert_config.json"
    if has_towers and not (folder / "modules.json").is_file():
        return True
    values = read_object(path)
    for key in _ARGUMENTS:
        if values.get(key):
            raise UnavailableError(f"{path} has {key}", hint=IN_TORCH)
    for key in ("modality_config", "processing_kwargs"):
        if not isinstance(values.get(key, {}), dict):
            raise CheckpointError(f"{path}: {key} is {shown(values[key])}, no object", hint="fetch the file again")
    for key in ("image", "common"):
        if asked := values.get("processing_kwargs", {}).get(key):
            raise UnavailableError(f"{path}: processing_kwargs has {shown(asked)} for {key}", hint=IN_TORCH)
    asked = values.get("modality_config", {}).get("image")
    given, pooled = (
        (asked, values.get("module_output_name")),
        {"method": "forward", "method_output_name": "pooler_output"},
    )
    if has_towers:
        pooled["method"] = "get_image_features"
    elif given == ({"method": "forward", "method_output_name": "last_hidden_state"}, "token_embeddings"):
        if pooling is None:
            raise UnavailableError(f"{folder} has no module that pools tokens", hint=IN_TORCH)
        return False
    if given != (pooled, "sentence_embedding") or pooling is not None:
        what = f"{shown(asked)} of images, as {named(str(given[1]))}"
        raise UnavailableError(f"{path} takes {what}", hint=IN_TORCH)
    return True


def _pooler(folder: Path, config: Mapping[str, Any], family: ImageFamily, tensors: FileTensors, block: Block) -> Pooler:
    """Makes what computes the `pooler_output` of a model."""
    lib, width, kind = tensors.library, block.width, family.pooler
    if kind == "first" or (kind == "mean of patches" and config.get("use_mean_pooling", True) is False):
        return FirstPooler(lib)
    if kind == "norm of first":
        return FirstPooler(lib, tensors.norm(family.pooler_norm, width))
    if kind == "mean of patches":
        return MeanPooler(lib, tensors.norm(family.pooler_norm, width))
    if kind == "attention" and tensors.has("head.probe"):
        return AttentionPooler(tensors, "head", width, block.heads, block.activation)
    if kind == "tanh of first" and tensors.has("pooler.dense.weight") and config.get("pooler_act", "tanh") == "tanh":
        return TanhPooler(tensors.linear("pooler.dense", width))
    raise UnavailableError(f"{folder} asks for pooler_output, which the model does not have", hint=IN_TORCH)
