"""Computes what an image encoder knows of the places of patches, for images of any size.

Tables of positions, and BEiT's biases, are made for the images that the model was trained on. For another size, models
interpolate them as pictures, as PyTorch's `interpolate` does (align_corners=False), where the value at a place is a
weighted sum of a few neighbours, first along the rows and then along the columns:

    linear                 2 neighbours
    cubic                  4 neighbours, cubic convolution with a = -0.75 (Keys 1981)
    antialiased cubic      cubic convolution with a = -0.5, which is widened where the picture gets smaller

Places are rounded to float32 as PyTorch rounds them, and sums are float64, in the order of the neighbours. What PyTorch
itself gives differs from this by last bits.
"""

from typing import Literal

import numpy as np

from ternarize_cli.runtime.positions import Turns

__all__ = ["Interpolation", "patch_table", "patch_turns", "resized"]

Interpolation = Literal["linear", "cubic", "antialiased cubic"]


def resized(picture: np.ndarray, rows: int, columns: int, how: Interpolation) -> np.ndarray:
    """Interpolates a picture: float `[old rows, old columns, n]` to float32 `[rows, columns, n]`."""
    made = _along_rows(picture.astype(np.float64), rows, how)
    made = _along_rows(made.swapaxes(0, 1), columns, how).swapaxes(0, 1)
    return np.ascontiguousarray(made, dtype=np.float32)


def patch_turns(rows: int, columns: int, before: int, pairs: int, base: float) -> Turns:
    """Computes cosines and sines for the tokens of an image (DINOv3).

    The place of a patch is its centre, from -1 to 1 along rows and along columns. One half of the pairs of a head is
    turned by the row and the other by the column, by `2 pi * place / base ** (2i / pairs)` for the pair `i` of a half.

    Args:
        rows, columns: the number of rows and columns of patches.
        before: the number of tokens before the patches, which are not turned.
        pairs: the number of pairs of a head.
        base: the base of the frequencies.

    Returns:
        float32 `[before + rows * columns, pairs]` each.
    """
    half = -(-pairs // 2)
    frequency = (1.0 / np.float64(base) ** (np.arange(half) / (pairs / 2))).astype(np.float32)
    row, column = (
        np.float32(2.0) * (np.arange(n, dtype=np.float32) + np.float32(0.5)) / np.float32(n) - np.float32(1.0)
        for n in (rows, columns)
    )
    places = np.stack([np.repeat(row, columns), np.tile(column, rows)], axis=1)
    angles = np.zeros((before + rows * columns, 2 * half), dtype=np.float32)
    angles[before:] = (np.float32(2 * np.pi) * places[:, :, None] * frequency).reshape(rows * columns, -1)
    wide = angles.astype(np.float64)
    return np.cos(wide).astype(np.float32), np.sin(wide).astype(np.float32)


def patch_table(table: np.ndarray, trained: tuple[int, int], rows: int, columns: int) -> np.ndarray:
    """Computes BEiT's biases for one size of images, as `blocks.PatchBiases` has them.

    Args:
        table: float32 `[(2 * r - 1) * (2 * c - 1) + 3, heads]` for `r` rows and `c` columns: the biases by rows and
            columns from key to query; then of the first token as query, as key, and as both.
        trained: the rows and columns that it is for.
        rows, columns: the number of rows and columns of patches.

    Returns:
        float32 `[heads, (2 * rows - 1) * (2 * columns - 1) + 3]`, by rows and columns from query to key.
    """
    high, wide = (2 * n - 1 for n in trained)
    heads = table.shape[1]
    picture = table[:-3].reshape(wide, high, heads)  # the model's class has them the other way round
    made = resized(picture, 2 * rows - 1, 2 * columns - 1, "linear")[::-1, ::-1].reshape(-1, heads)
    return np.ascontiguousarray(np.concatenate([made, table[-3:]]).T, dtype=np.float32)


def _along_rows(picture: np.ndarray, rows: int, how: Interpolation) -> np.ndarray:
    if how == "antialiased cubic":
        places, weights = _antialiased(len(picture), rows)
    else:
        places, weights = _neighbours(len(picture), rows, how)
    made = np.zeros((rows, *picture.shape[1:]))
    for place, weight in zip(places.T, weights.T, strict=True):
        made += weight[:, None, None] * picture[place]
    return made


def _neighbours(old: int, new: int, how: Interpolation) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each new row its neighbours, `[new, n]`, and their weights."""
    scale = np.float32(old) / np.float32(new)
    centre = scale * (np.arange(new, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    if how == "linear":
        centre = np.maximum(centre, np.float32(0.0))
    first = np.floor(centre)
    t = (centre - first).astype(np.float64)
    if how == "linear":
        offsets, weights = [0, 1], [1 - t, t]
    else:
        offsets, weights = [-1, 0, 1, 2], [_cubic(x, -0.75) for x in (t + 1, t, 1 - t, 2 - t)]
    places = first.astype(np.int64)[:, None] + np.array(offsets)
    return np.clip(places, 0, old - 1), np.stack(weights, axis=1)


def _antialiased(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each new row its neighbours, `[new, n]`, and their weights, zeros where it has fewer than others."""
    scale = float(np.float32(old) / np.float32(new))
    widened = max(scale, 1.0)
    centre = scale * (np.arange(new) + 0.5)
    begin = np.maximum((centre - 2 * widened + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + 2 * widened + 0.5).astype(np.int64), old)
    places = begin[:, None] + np.arange(int((end - begin).max()))
    weights = _cubic(np.abs((places - centre[:, None] + 0.5) / widened), -0.5) * (places < end[:, None])
    return np.minimum(places, old - 1), weights / weights.sum(axis=1, keepdims=True)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Computes the kernel of cubic convolution at distances `x`, which are not negative."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    made: np.ndarray = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return made
