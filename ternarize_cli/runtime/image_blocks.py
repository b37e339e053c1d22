"""An image encoder: patches, positions and blocks, from pixel values to the last hidden states.

Models in PyTorch run here, too (`kernels.native.encoder`), with arrays of their modules, so that both give equal bits.
"""

import math
from threading import Lock
from typing import Any

import numpy as np

from ternarize_cli.errors import CheckpointError, FormatError, InputError
from ternarize_cli.runtime.blocks import Blocks, PatchBiases, Prepared
from ternarize_cli.runtime.image_families import ImageFamily
from ternarize_cli.runtime.image_positions import patch_table, patch_turns, resized
from ternarize_cli.runtime.image_tensors import ImageTensors
from ternarize_cli.runtime.native.arrays import aligned
from ternarize_cli.runtime.native.weights import DenseWeights, NormWeights

__all__ = ["ImageBlocks"]

_SIZES = 8
"""Sizes of images whose positions are kept."""
_MOST = 1 << 16
"""The most patches of an image: each attends to all."""
_AGAIN = "fetch or pack the model again"


class ImageBlocks:
    """The patches, positions and blocks of an image encoder, laid out for the compiled library.

    Attributes:
        channels: the number of channels of an image.
        patch: the height and width of a patch.
        image_size: the height and width of the images that the model was trained on.
        takes_any_size: whether images may have another size.
        width: the width of the hidden states.
    """

    def __init__(
        self,
        blocks: Blocks,
        norm: NormWeights | None,
        tensors: ImageTensors,
        family: ImageFamily,
        image_size: tuple[int, int],
    ) -> None:
        """Lays the weights out.

        Args:
            blocks: the blocks.
            norm: the norm of the embeddings; None if there is none.
            tensors: the other tensors of the model.
            family: how the model makes tokens of an image.
            image_size: the height and width of the images that the model was trained on.

        Raises:
            CheckpointError: a tensor is missing, or has another shape than the others ask for.
        """
        self._blocks, self._norm, self._tensors, self._family = blocks, norm, tensors, family
        self._library, self.width, self.image_size = blocks.library, blocks.block.width, image_size
        self.takes_any_size = family.resized is not None or family.positions is None
        kernel = tensors.floats(f"{family.patches}.weight", self.width, -1, -1, -1)
        if not kernel.size:
            raise FormatError(f"{family.patches}.weight is {list(kernel.shape)}: it has no numbers", hint=_AGAIN)
        self.channels = int(kernel.shape[1])
        self.patch: tuple[int, int] = (kernel.shape[2], kernel.shape[3])
        bias = f"{family.patches}.bias"
        given = tensors.floats(bias, self.width) if tensors.has(bias) else None
        self._patches = DenseWeights(kernel.reshape(self.width, -1), given)
        self._trained = image_size[0] // self.patch[0], image_size[1] // self.patch[1]
        none = np.zeros((0, self.width), dtype=np.float32)
        self._first = np.concatenate([none, *(self._tokens(name) for name in family.first)])
        self._registers = none if family.registers is None else self._tokens(family.registers)
        self._before = len(self._first) + len(self._registers)
        self._positions = self._read_positions()
        self._placed: dict[tuple[int, int], tuple[np.ndarray, np.ndarray | None]] = {}
        self._prepared: dict[tuple[int, int], Prepared] = {}
        self._lock = Lock()

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Returns whether the model reads pixel values of a shape, `[images, channels, height, width]`."""
        if len(shape) != 4 or shape[1] != self.channels:
            return False
        if not self.takes_any_size:
            return shape[2:] == self.image_size
        rows, columns = shape[2] // self.patch[0], shape[3] // self.patch[1]
        return 0 < rows * columns <= _MOST

    def check(self, shape: tuple[int, ...]) -> None:
        """Checks that the model reads pixel values of a shape, `[images, channels, height, width]`.

        Raises:
            InputError: it does not; the message says what it reads.
        """
        if not self.takes(shape):
            high, wide = self.patch if self.takes_any_size else self.image_size
            least, most = ("at least ", f" with at most {_MOST:,} patches") if self.takes_any_size else ("", "")
            raise InputError(
                f"an image has the pixel values {list(shape[1:])}, and the model reads {least}"
                f"{[self.channels, high, wide]}{most}",
                hint="the image processor and the model disagree: fetch both again",
            )

    def tokens(self, shape: tuple[int, ...]) -> int:
        """Returns the number of tokens of images whose pixel values have a shape, `[…, height, width]`."""
        rows, columns = (int(side) // patch for side, patch in zip(shape[-2:], self.patch, strict=True))
        made: int = self._before + rows * columns
        return made

    def __call__(self, pixels: np.ndarray, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Encodes images of one size.

        Args:
            pixels: float32 `[images, channels, height, width]`, which `check` accepts.
            count: the number of blocks that run; None: all.

        Returns:
            The last hidden states of all images, one after the other, float32 `[images * tokens, width]`; and the row
            where each image begins, then the row where the last ends, int32 `[images + 1]`.
        """
        rows, columns = pixels.shape[2] // self.patch[0], pixels.shape[3] // self.patch[1]
        x = self._embedded(pixels, rows, columns)
        starts = np.arange(len(pixels) + 1, dtype=np.int32) * np.int32(self.tokens(pixels.shape))
        made = self._for_size(rows, columns, count)  # is held while it runs
        self._library.encode(made.encoder, starts, x)
        return x, starts

    def _embedded(self, pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
        """Computes the tokens that the first block reads: float32 `[images * tokens, width]`."""
        images, channels = pixels.shape[:2]
        high, wide = self.patch
        whole = pixels[:, :, : rows * high, : columns * wide]
        split = whole.reshape(images, channels, rows, high, columns, wide).transpose(0, 2, 4, 1, 3, 5)
        unfolded = aligned(images * rows * columns, channels * high * wide, filled=False)
        unfolded.reshape(split.shape)[:] = split
        made = self._library.dense(self._patches, unfolded).reshape(images, rows * columns, self.width)
        first, positions = self._with_positions(rows, columns)
        x = aligned(images * (len(first) + rows * columns), self.width, filled=False)
        tokens = x.reshape(images, -1, self.width)
        tokens[:, : len(first)] = first
        if positions is None:
            tokens[:, len(first) :] = made
        else:
            np.add(made, positions, out=tokens[:, len(first) :])
        if self._norm is not None:
            self._library.norm(self._norm, x)
        return x

    def _with_positions(self, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns the tokens before the patches, and the positions of the patches, for images of a size."""
        found = self._placed.get((rows, columns))
        if found is None:
            count = len(self._first)
            first, positions = self._first, None
            if self._positions is not None:
                first, positions = first + self._positions[:count], self._positions[count:]
                side = math.isqrt(len(positions))
                if self._family.resized is not None and not rows == columns == side:
                    picture = positions.reshape(side, side, self.width)
                    positions = resized(picture, rows, columns, self._family.resized).reshape(-1, self.width)
            first = np.concatenate([first[:1], self._registers, first[1:]])
            found = first, positions
            with self._lock:
                _keep(self._placed, (rows, columns), found)
        return found

    def _for_size(self, rows: int, columns: int, count: int | None) -> Prepared:
        """Returns the blocks for images of a size; those with another number of blocks are not kept."""
        found = self._prepared.get((rows, columns)) if count is None else None
        if found is None:
            block, tokens = self._blocks.block, self._before + rows * columns
            turns = [
                None
                if k.rotary is None
                else patch_turns(rows, columns, self._before, k.rotary.numbers // 2, k.rotary.theta)
                for k in block.kinds
            ]
            found = self._blocks.prepared(turns, tokens, self._biases(rows, columns), count)
            if count is None:
                with self._lock:
                    _keep(self._prepared, (rows, columns), found)
        return found

    def _biases(self, rows: int, columns: int) -> PatchBiases | None:
        block = self._blocks.block
        given = block.patch_bias
        if given is None:
            return None
        high, wide = (2 * n - 1 for n in self._trained)
        tables: list[np.ndarray] = []
        for i in range(1 if given.shared else len(block)):
            name = given.name if given.shared else f"{block.layers}.{i}.{given.name}"
            table = self._tensors.floats(f"{name}.relative_position_bias_table", high * wide + 3, block.heads)
            tables.append(patch_table(table, self._trained, rows, columns))
        return PatchBiases(rows, columns, tables * len(block) if given.shared else tables)

    def _tokens(self, name: str) -> np.ndarray:
        """Returns tokens that are parameters: float32 `[tokens, width]`."""
        made = self._tensors.floats(name)
        if made.shape[-1:] != (self.width,):
            raise FormatError(f"{name} is {list(made.shape)}, and tokens are {self.width} wide", hint=_AGAIN)
        return made.reshape(-1, self.width)

    def _read_positions(self) -> np.ndarray | None:
        """Returns the positions, float32 `[tokens before the patches + patches, width]`; None if there are none."""
        family = self._family
        if family.positions is None or (family.may_lack_positions and not self._tensors.has(family.positions)):
            return None
        is_table = family.is_table
        made = self._tensors.table(family.positions, self.width) if is_table else self._tokens(family.positions)
        patches = len(made) - len(self._first)
        expected = self._trained[0] * self._trained[1]
        if patches != expected or (family.resized is not None and math.isqrt(patches) ** 2 != patches):
            raise CheckpointError(
                f"{family.positions} has {patches} positions of patches, and an image of {self.image_size[0]} × "
                f"{self.image_size[1]} pixels has {expected} patches",
                hint=_AGAIN,
            )
        return made


def _keep(kept: dict[tuple[int, int], Any], size: tuple[int, int], value: Any) -> None:
    if len(kept) >= _SIZES:
        kept.clear()
    kept[size] = value
