"""Makes batches of random inputs for an encoder: token ids and a mask, or pixels.

    modality   batch                                          random values
    texts      ids, mask: int64 [batch, tokens]               any token but padding, the mask all ones
    images     pixels: float32 [batch, channels, high, wide]  normally distributed, like normalised images

The caller chooses the length of texts. An image has the size that the model's own image processor makes of a square
image, which fixes the number of tokens: DINOv2 learnt positions at 518 x 518, is used at 224 x 224, and then runs 257
tokens.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ternarize_cli.encoders import checkpoint, vision
from ternarize_cli.encoders.modalities import modalities_of
from ternarize_cli.measuring.timing import GridPoint
from ternarize_cli.model_folder.folder_check import LOADING

__all__ = ["Batch", "image_shape", "names", "random_batch", "random_images", "random_tokens"]

Batch = tuple[Tensor, ...]
"""The tensors of one forward pass, in the order of `names`."""


def names(model: nn.Module) -> tuple[str, ...]:
    """Names of the tensors of a batch, as arguments of a transformers model."""
    return ("pixel_values",) if model.main_input_name == "pixel_values" else ("input_ids", "attention_mask")


def image_shape(folder: Path) -> tuple[int, int, int] | None:
    """Finds channels, height and width of the images that a model reads; None for an encoder of texts.

    Raises:
        CheckpointError: config.json is missing or damaged.
    """
    if modalities_of(folder) != {"image"}:
        return None
    from PIL import Image
    from transformers import AutoConfig, AutoImageProcessor

    config = AutoConfig.from_pretrained(folder, **LOADING)
    size = config.image_size
    high, wide = size if isinstance(size, list | tuple) else (size, size)
    if not vision.has_processor(folder):
        return getattr(config, "num_channels", 3), high, wide
    processor = AutoImageProcessor.from_pretrained(folder, **LOADING)
    channels, high, wide = processor(Image.new("RGB", (wide, high)), return_tensors="pt")["pixel_values"].shape[1:]
    return channels, high, wide


def random_batch(folder: Path, point: GridPoint, seed: int, device: str = "cpu") -> Batch:
    """Makes a batch of random values for the model in `folder`; for images, the tokens of `point` are ignored."""
    shape = image_shape(folder)
    if shape is not None:
        return (random_images(shape, point.batch, seed, device),)
    return random_tokens(checkpoint.read_config(folder), point, seed, device)


def random_images(shape: tuple[int, int, int], batch: int, seed: int, device: str = "cpu") -> Tensor:
    """Draws normally distributed pixels: float32 `[batch, channels, height, width]`."""
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed)).to(device)


def random_tokens(config: dict[str, Any], point: GridPoint, seed: int, device: str = "cpu") -> Batch:
    """Draws random ids, except the padding token, and makes a mask of ones, both int64 `[batch, tokens]`."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(config["vocab_size"] - 1, (point.batch, point.tokens), generator=generator)
    ids += ids >= (config.get("pad_token_id") or 0)
    return ids.to(device), torch.ones_like(ids, device=device)
