"""Random images with labels, as folders and IDX files."""

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def make_pixels(count: int, seed: int = 0) -> np.ndarray:
    """Grey images [count, 6, 5]: those of odd place are dark, those of even place bright."""
    noise = np.random.default_rng(seed).integers(0, 60, (count, 6, 5))
    return (noise + 180 * (np.arange(count) % 2 == 0)[:, None, None]).astype(np.uint8)


def make_labels(count: int) -> list[int]:
    return [i % 2 for i in range(count)]


def write_idx(folder: Path, part: str, pixels: np.ndarray, labels: Sequence[int] | None, suffix: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pack = gzip.compress if suffix else bytes
    path = folder / f"{part}-images-idx3-ubyte{suffix}"
    path.write_bytes(pack(struct.pack(">IIII", 0x803, *pixels.shape) + pixels.tobytes()))
    if labels is not None:
        content = struct.pack(">II", 0x801, len(labels)) + bytes(labels)
        (folder / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(pack(content))
    return path


def write_folder(root: Path, pixels: np.ndarray, labels: Sequence[int] | None) -> Path:
    for i, image in enumerate(pixels):
        folder = root if labels is None else root / str(labels[i])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:03}.png")
    return root
