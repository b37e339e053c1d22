"""What a student trains on: texts as token ids, or images, from any mixture of sources.

Texts are tokenised once, before training, and held as ids; images are decoded when their batch comes up. Either can
make the features of any list of `order.Piece`, so training sees one kind of thing.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from ternarize_cli.batching import width_of
from ternarize_cli.distill.order import Mixture, Piece
from ternarize_cli.errors import DataError, InputError
from ternarize_cli.images import Images, read_images
from ternarize_cli.models import prompts_of
from ternarize_cli.progress import Track, silent
from ternarize_cli.text_sources import kind_of, texts_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Corpus", "ImageCorpus", "Sources", "TextCorpus", "mixture_of", "read_corpus"]

_FEWEST = 20
_LONGEST = 1 << 15
_TOKENISED = 4096
_UNKNOWN = 1 / 3
_MOST_CHANGED = 0.3


@dataclass(frozen=True)
class Sources:
    """Where training data comes from.

    Attributes:
        paths: files, folders, hub datasets, `-`: all texts, or all images.
        weights: how often each is seen, relative to its size; None: every text once an epoch.
        most: at most so many texts or images from one source.
        held_out: set aside for the live metric: at most so many, and about a tenth.
    """

    paths: Sequence[str | Path]
    weights: tuple[float, ...] | None = None
    most: int = 2_000_000
    held_out: int = 256

    def __post_init__(self) -> None:
        if self.weights is None:
            return
        if len(self.weights) != len(self.paths):
            raise InputError(
                f"there are {len(self.weights)} weights for {len(self.paths)} sources", hint="one --weight for each"
            )
        if not all(0 < weight <= 1000 for weight in self.weights):
            raise InputError(f"the weights are {self.weights}; each must be positive", hint="--weight 2 --weight 1")


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
        """What the encoder takes, on the CPU; `even` pads to `batching.width_of`."""

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
        return hashlib.sha256(names.encode() + self.chosen.tobytes()).hexdigest()

    def features(self, pieces: Sequence[Piece], *, even: bool = False) -> dict[str, Any]:
        """What the image processor makes, such as pixel_values `[images, 3, height, width]`."""
        ends = self._ends()
        images = []
        for piece in pieces:
            place = int(self.chosen[piece.rows[0]])
            part = int(np.searchsorted(ends, place, side="right"))
            images.append(self.parts[part][place - int(ends[part]) + len(self.parts[part])])
        return dict(self.prepare(images))

    def take(self, rows: Sequence[int]) -> "ImageCorpus":
        """As `Corpus`."""
        return ImageCorpus(self.parts, self.chosen[list(rows)], self.prepare)

    def _ends(self) -> np.ndarray:
        return np.cumsum([len(part) for part in self.parts])


def read_corpus(
    encoder: "SentenceTransformer",
    folder: Path,
    sources: Sources,
    *,
    max_length: int | None,
    seed: int,
    track: Track = silent,
) -> tuple[Corpus, Corpus]:
    """Reads all sources, drops texts that are there twice, and sets some aside: (training, held out).

    Args:
        encoder: whose tokenizer or image processor is used.
        folder: it was loaded from here.
        sources: where from.
        max_length: tokens of an input; None: the model's own limit, or 512.
        seed: draws what is held out, and from hub datasets.

    Raises:
        DataError: a source can't be read, or there are fewer than 20 different texts or images.
        CheckpointError: the model does not read them.
    """
    if kind_of(folder, sources.paths, stdin=True) == "image":
        return _split(_images(encoder, sources, seed), sources, seed, "images")
    texts: dict[str, int] = {}
    for number, path in enumerate(sources.paths):
        taken = 0
        for text in track(texts_of(path, sources.most, seed, paired=True), f"reading {path}"):
            if text not in texts:
                texts[text] = number
                taken += 1
            if taken >= sources.most:
                break
    if len(texts) < _FEWEST:
        _refuse(len(texts), "texts")
    return _split(_tokenised(encoder, texts, max_length, track), sources, seed, "texts")


def _refuse(count: int, what: str) -> None:
    raise DataError(
        f"there are {count} different {what}; distillation needs at least {_FEWEST}",
        hint="--data FILE with one text per line; thousands are better",
    )


def _split(corpus: Corpus, sources: Sources, seed: int, what: str) -> tuple[Corpus, Corpus]:
    count = len(corpus.lengths)
    if count < _FEWEST:
        _refuse(count, what)
    order = np.random.default_rng([seed, 1]).permutation(count)
    held = min(sources.held_out, max(count // 10, 3))
    return corpus.take(np.sort(order[held:]).tolist()), corpus.take(np.sort(order[:held]).tolist())


def _tokenised(
    encoder: "SentenceTransformer", texts: dict[str, int], max_length: int | None, track: Track
) -> TextCorpus:
    tokenizer = encoder.tokenizer
    limit = min(max_length or 512, encoder.max_seq_length or max_length or 512)
    head, tail = _special(tokenizer)
    heads = [np.concatenate([head, _bare(tokenizer, [prompt])[0]]) for prompt in prompts_of(encoder)]
    longest = max(map(len, heads)) + len(tail)
    if limit <= longest:
        raise InputError(
            f"texts of {limit} tokens have no room beside {longest} for special tokens and prompts",
            hint="a larger --max-length",
        )
    ids: list[np.ndarray] = []
    sources: list[int] = []
    names = list(texts)
    for start in track(range(0, len(names), _TOKENISED), "tokenising"):
        chunk = names[start : start + _TOKENISED]
        for text, made in zip(chunk, _bare(tokenizer, chunk), strict=True):
            if len(made):
                ids.append(made[:_LONGEST].copy() if len(made) > _LONGEST else made)
                sources.append(texts[text])
    _check_known(ids, tokenizer.unk_token_id)
    left = getattr(tokenizer, "padding_side", "right") == "left"
    return TextCorpus(ids, np.array(sources), heads, tail, limit - longest, tokenizer.pad_token_id or 0, left)


def _check_known(ids: Sequence[np.ndarray], unknown: int | None) -> None:
    if unknown is None or not ids:
        return
    share = sum(int((row == unknown).sum()) for row in ids) / sum(map(len, ids))
    if share > _UNKNOWN:
        raise DataError(
            f"{share:.0%} of the texts' tokens are unknown to the model's tokenizer",
            hint="train on texts in the languages that the model reads",
        )


def _bare(tokenizer: Any, texts: Iterable[str]) -> list[np.ndarray]:
    made = tokenizer(list(texts), add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    return [np.array(ids, dtype=np.int32) for ids in made]


def _special(tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """The special tokens before and after a text."""
    text = "a"
    whole, bare = tokenizer(text)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"]
    starts = (i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare)
    start = next(starts, None)
    if start is None or not bare:
        raise DataError("the tokenizer gives other tokens to a text with special tokens than to one without")
    return np.array(whole[:start], dtype=np.int32), np.array(whole[start + len(bare) :], dtype=np.int32)


def _images(encoder: "SentenceTransformer", sources: Sources, seed: int) -> ImageCorpus:
    parts = [read_images(path, limit=sources.most, seed=seed) for path in sources.paths]
    return ImageCorpus(parts, np.arange(sum(map(len, parts))), encoder.preprocess)


def mixture_of(
    corpus: Corpus, sources: Sources, joined: float, changed: float = 0.0, *, windows: bool = True
) -> Mixture:
    """How the inputs of an epoch are drawn from a corpus."""
    return Mixture(
        corpus.limit,
        corpus.around,
        corpus.prompts,
        joined if corpus.limit > 1 else 0.0,
        windows,
        changed,
        corpus.sources,
        sources.weights,
    )
