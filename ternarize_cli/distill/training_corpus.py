"""Makes features of training data: texts as token ids, or images.

Both make the features of any list of `batch_sampler.Piece`, so training needs to know only one interface.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from ternarize_cli.data.images import Images
from ternarize_cli.data.length_buckets import width_of
from ternarize_cli.distill.batch_sampler import Piece

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageCorpus", "TextCorpus", "TrainingCorpus"]

_MOST_CHANGED = 0.3
_SMALLEST_CROP = 0.8


class TrainingCorpus(Protocol):
    """The interface of training data."""

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each text, without special tokens, or 1 for each image: int `[items]`."""

    @property
    def sources(self) -> np.ndarray:
        """The number of the source of each text or image: int `[items]`."""

    @property
    def limit(self) -> int:
        """The most tokens of an input, without special tokens and prompt."""

    @property
    def around(self) -> int:
        """The most special tokens and tokens of a prompt that an input can have."""

    @property
    def digest(self) -> str:
        """A hash of the data."""

    @property
    def prompts(self) -> int:
        """The number of prompts."""

    def features(self, pieces: Sequence[Piece], *, even: bool = False) -> dict[str, Any]:
        """Makes the encoder's features, which still need to be moved to the device and finished (`pixels.finished`).

        Args:
            pieces: the inputs of a batch.
            even: pad texts to `length_buckets.width_of` the longest.
        """

    def take(self, rows: Sequence[int]) -> "TrainingCorpus":
        """Selects some of the texts or images."""


@dataclass(frozen=True)
class TextCorpus:
    """Tokenised texts.

    Attributes:
        ids: for each text, its ids without special tokens, int32 `[tokens]`.
        sources: the number of each text's source, int `[texts]`.
        heads: for each prompt, the ids before a text: special tokens and prompt.
        tail: the ids of the special tokens after a text.
        limit: the most tokens of an input, without head and tail.
        pad: the id for padding.
        left: whether padding comes before the text.
        ends: whether the end of a text is read if it is too long (truncation on the left). The `start` of a piece then
            counts tokens from the end of its text.
    """

    ids: Sequence[np.ndarray] = field(repr=False)
    sources: np.ndarray = field(repr=False)
    heads: Sequence[np.ndarray]
    tail: np.ndarray
    limit: int
    pad: int
    left: bool
    ends: bool = False

    @cached_property
    def lengths(self) -> np.ndarray:
        """As `TrainingCorpus`."""
        return np.array([len(ids) for ids in self.ids])

    @property
    def prompts(self) -> int:
        """As `TrainingCorpus`."""
        return len(self.heads)

    @property
    def around(self) -> int:
        """As `TrainingCorpus`."""
        return max(map(len, self.heads)) + len(self.tail)

    @property
    def digest(self) -> str:
        """As `TrainingCorpus`."""
        made = hashlib.sha256()
        for row in (*self.ids, *self.heads, self.tail, self.lengths, self.sources, np.array([self.limit])):
            made.update(np.ascontiguousarray(row).tobytes())
        return made.hexdigest()

    @cached_property
    def _flat(self) -> np.ndarray:
        return np.concatenate(self.ids)

    @cached_property
    def _first(self) -> np.ndarray:
        """The position in `_flat` at which each text begins."""
        starts: np.ndarray = np.cumsum(self.lengths) - self.lengths
        return starts

    def _bodies(self, pieces: Sequence[Piece]) -> tuple[np.ndarray, np.ndarray]:
        """Concatenates the tokens of pieces, without special tokens; also returns how many each has."""
        starts = np.array([piece.start for piece in pieces])
        wanted = np.array([piece.length for piece in pieces])
        if all(len(piece.rows) == 1 for piece in pieces):
            rows = np.array([piece.rows[0] for piece in pieces])
            sizes = np.minimum(wanted, self.lengths[rows] - starts)
            starts = self.lengths[rows] - starts - sizes if self.ends else starts
            ends = np.cumsum(sizes)
            return self._flat[np.arange(ends[-1]) + np.repeat(self._first[rows] + starts - ends + sizes, sizes)], sizes
        whole = [np.concatenate([self.ids[row] for row in piece.rows]) for piece in pieces]
        whole = [ids[::-1] for ids in whole] if self.ends else whole
        cut = [ids[start : start + size] for ids, start, size in zip(whole, starts, wanted, strict=True)]
        cut = [ids[::-1] for ids in cut] if self.ends else cut
        return np.concatenate(cut), np.array([len(ids) for ids in cut])

    def features(self, pieces: Sequence[Piece], *, even: bool = False) -> dict[str, Any]:
        """Makes input_ids and attention_mask, int64 `[pieces, tokens]` each.

        In pieces to be changed, up to 30% of the tokens are replaced by random tokens of the corpus, by frequency.
        """
        heads = np.array([len(self.heads[piece.prompt]) for piece in pieces])[:, None]
        flat, sizes = self._bodies(pieces)
        bodies = sizes[:, None]
        width = width_of(int(bodies.max()) + self.around) if even else int((heads + bodies).max()) + len(self.tail)
        place = np.arange(width) - (width - heads - bodies - len(self.tail) if self.left else 0)  # 0: the first token
        inside = (place >= heads) & (place < heads + bodies)
        ids = np.full((len(pieces), width), self.pad, dtype=np.int64)
        ids[inside] = flat
        for prompt in {piece.prompt for piece in pieces}:
            of_prompt = np.array([[piece.prompt == prompt] for piece in pieces])
            for at, token in enumerate(self.heads[prompt]):
                ids[of_prompt & (place == at)] = token
        for at, token in enumerate(self.tail):
            ids[place == heads + bodies + at] = token
        changes = np.array([piece.change for piece in pieces])
        if changes.any():
            rng = np.random.default_rng(int(np.bitwise_xor.reduce(changes)))
            shares = np.where(changes > 0, rng.uniform(0, _MOST_CHANGED, size=len(pieces)), 0.0)
            changing = inside & (rng.random(ids.shape, dtype=np.float32) < shares[:, None])
            ids[changing] = self._flat[rng.integers(len(self._flat), size=int(changing.sum()))]
        mask = ((place >= 0) & (place < heads + bodies + len(self.tail))).astype(np.int64)
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}

    def take(self, rows: Sequence[int]) -> "TextCorpus":
        """As `TrainingCorpus`."""
        ids = [self.ids[i] for i in rows]
        return replace(self, ids=ids, sources=self.sources[list(rows)])


@dataclass(frozen=True)
class ImageCorpus:
    """Images of one or several sources, in order, and the function that prepares them for the encoder."""

    parts: Sequence[Images]
    chosen: np.ndarray
    prepare: Callable[[list[Any]], dict[str, Any]] = field(repr=False)
    limit: int = 1
    around: int = 0
    prompts: int = 1

    @property
    def lengths(self) -> np.ndarray:
        """Returns 1 for each image: int `[images]`."""
        return np.ones(len(self.chosen), dtype=np.int64)

    @property
    def sources(self) -> np.ndarray:
        """As `TrainingCorpus`."""
        return np.searchsorted(self._ends(), self.chosen, side="right")

    @property
    def digest(self) -> str:
        """A hash of the images' names and positions, without their pixels."""
        names = "\n".join(f"{part.path} {name}" for part in self.parts for name in part.ids)
        return hashlib.sha256(names.encode(errors="backslashreplace") + self.chosen.tobytes()).hexdigest()

    def features(self, pieces: Sequence[Piece], *, even: bool = False) -> dict[str, Any]:
        """Makes the features of `pixels.preparation`, such as pixel_values `[images, 3, height, width]`.

        An image to be changed is cropped to at least four fifths of each side and resized to its old size; every other
        one is mirrored.
        """
        ends = self._ends()
        images = []
        for piece in pieces:
            place = int(self.chosen[piece.rows[0]])
            part = int(np.searchsorted(ends, place, side="right"))
            image = self.parts[part][place - int(ends[part]) + len(self.parts[part])]
            images.append(_changed(image, piece.change) if piece.change else image)
        return dict(self.prepare(images))

    def take(self, rows: Sequence[int]) -> "ImageCorpus":
        """As `TrainingCorpus`."""
        return ImageCorpus(self.parts, self.chosen[list(rows)], self.prepare)

    def _ends(self) -> np.ndarray:
        return np.cumsum([len(part) for part in self.parts])


def _changed(image: "Image", seed: int) -> "Image":
    """Crops an image or its mirror image, and resizes the crop to the old size, because not every processor resizes."""
    from PIL import Image, ImageOps

    rng = np.random.default_rng(seed)
    width, height = (size * rng.uniform(_SMALLEST_CROP, 1) for size in image.size)
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    part = image.resize(image.size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    return ImageOps.mirror(part) if rng.random() < 0.5 else part
