"""Data to train on, ready to become features: texts as token ids, or images.

Either makes the features of any list of `order.Piece`, so training sees one kind of thing.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from ternarize_cli.data.images import Images
from ternarize_cli.data.length_buckets import width_of
from ternarize_cli.distill.batch_sampler import Piece

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Corpus", "ImageCorpus", "TextCorpus"]

_MOST_CHANGED = 0.3
_SMALLEST_CROP = 0.8


class Corpus(Protocol):
    """Data to train on."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text or image, without special ones."""

    @property
    def sources(self) -> np.ndarray:
        """The number of the source of each."""

    @property
    def limit(self) -> int:
        """Tokens of an input, without special ones and prompts."""

    @property
    def around(self) -> int:
        """Special tokens of an input and those of its prompt, at most."""

    @property
    def digest(self) -> str:
        """A hash of what it holds."""

    @property
    def prompts(self) -> int:
        """How many prompts there are."""

    def features(self, pieces: Sequence[Piece], *, even: bool = False) -> dict[str, Any]:
        """What the encoder takes, once it is on the device and went through `pixels.finished`.

        Args:
            pieces: the inputs of a batch.
            even: pad texts to `length_buckets.width_of` their longest.
        """

    def take(self, rows: Sequence[int]) -> "Corpus":
        """Some of the texts or images."""


@dataclass(frozen=True)
class TextCorpus:
    """Tokenised texts.

    Attributes:
        ids: int32 `[tokens]` of each, without special tokens.
        sources: int `[texts]`.
        heads: for each prompt what comes before a text: special tokens and prompt.
        tail: the special tokens after it.
        limit: tokens of an input, without those.
        pad, left: the id for padding, and whether it comes before the text.
    """

    ids: Sequence[np.ndarray] = field(repr=False)
    sources: np.ndarray = field(repr=False)
    heads: Sequence[np.ndarray]
    tail: np.ndarray
    limit: int
    pad: int
    left: bool

    @cached_property
    def lengths(self) -> np.ndarray:
        """As `Corpus`."""
        return np.array([len(ids) for ids in self.ids])

    @property
    def prompts(self) -> int:
        """As `Corpus`."""
        return len(self.heads)

    @property
    def around(self) -> int:
        """As `Corpus`."""
        return max(map(len, self.heads)) + len(self.tail)

    @property
    def digest(self) -> str:
        """As `Corpus`."""
        made = hashlib.sha256()
        for row in (*self.ids, *self.heads, self.tail, self.lengths, self.sources, np.array([self.limit])):
            made.update(np.ascontiguousarray(row).tobytes())
        return made.hexdigest()

    @cached_property
    def _flat(self) -> np.ndarray:
        return np.concatenate(self.ids)

    @cached_property
    def _first(self) -> np.ndarray:
        """Where each text begins in `_flat`."""
        return np.cumsum(self.lengths) - self.lengths

    def _bodies(self, pieces: Sequence[Piece]) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of pieces, without special ones, one after the other, and how many each has."""
        starts = np.array([piece.start for piece in pieces])
        wanted = np.array([piece.length for piece in pieces])
        if all(len(piece.rows) == 1 for piece in pieces):
            rows = np.array([piece.rows[0] for piece in pieces])
            sizes = np.minimum(wanted, self.lengths[rows] - starts)
            ends = np.cumsum(sizes)
            return self._flat[np.arange(ends[-1]) + np.repeat(self._first[rows] + starts - ends + sizes, sizes)], sizes
        whole = [np.concatenate([self.ids[row] for row in piece.rows]) for piece in pieces]
        cut = [ids[start : start + size] for ids, start, size in zip(whole, starts, wanted, strict=True)]
        return np.concatenate(cut), np.array([len(ids) for ids in cut])

    def features(self, pieces: Sequence[Piece], *, even: bool = False) -> dict[str, Any]:
        """input_ids and attention_mask, int64 `[pieces, tokens]`.

        Of pieces to be changed up to three tenths of the tokens become others of the corpus, frequent ones more often.
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
        """As `Corpus`."""
        ids = [self.ids[i] for i in rows]
        return TextCorpus(ids, self.sources[list(rows)], self.heads, self.tail, self.limit, self.pad, self.left)


@dataclass(frozen=True)
class ImageCorpus:
    """Images of one or several sources, one after the other, and what prepares them for the encoder."""

    parts: Sequence[Images]
    chosen: np.ndarray
    prepare: Callable[[list[Any]], dict[str, Any]] = field(repr=False)
    limit: int = 1
    around: int = 0
    prompts: int = 1

    @property
    def lengths(self) -> np.ndarray:
        """As `Corpus`: an image counts as one."""
        return np.ones(len(self.chosen), dtype=np.int64)

    @property
    def sources(self) -> np.ndarray:
        """As `Corpus`."""
        return np.searchsorted(self._ends(), self.chosen, side="right")

    @property
    def digest(self) -> str:
        """As `Corpus`: by the images' names and places, not their pixels."""
        names = "\n".join(f"{part.path} {name}" for part in self.parts for name in part.ids)
        return hashlib.sha256(names.encode(errors="backslashreplace") + self.chosen.tobytes()).hexdigest()

    def features(self, pieces: Sequence[Piece], *, even: bool = False) -> dict[str, Any]:
        """What `pixels.preparation` makes, such as pixel_values `[images, 3, height, width]`.

        Of an image that is to be changed a part, at least four fifths of each side, is made as large as the whole, and
        every other one is mirrored.
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
        """As `Corpus`."""
        return ImageCorpus(self.parts, self.chosen[list(rows)], self.prepare)

    def _ends(self) -> np.ndarray:
        return np.cumsum([len(part) for part in self.parts])


def _changed(image: "Image", seed: int) -> "Image":
    """A part of an image, or of its mirror image, made as large as the whole: not every processor resizes."""
    from PIL import Image, ImageOps

    rng = np.random.default_rng(seed)
    width, height = (size * rng.uniform(_SMALLEST_CROP, 1) for size in image.size)
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    part = image.resize(image.size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    return ImageOps.mirror(part) if rng.random() < 0.5 else part
