"""Reads the training data of a student, texts, images or pairs of texts, from any mixture of sources.

Texts are tokenised once, before training, and held as ids; images are decoded when their batch is prepared.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ternarize_cli.data.images import read_images
from ternarize_cli.data.text_sources import texts_of
from ternarize_cli.distill.batch_sampler import Mixture
from ternarize_cli.distill.pair_corpus import tokenised_pairs
from ternarize_cli.distill.pixels import preparation
from ternarize_cli.distill.training_corpus import ImageCorpus, TextCorpus, TrainingCorpus
from ternarize_cli.encoders.loading import prompts_of
from ternarize_cli.encoders.modalities import modality_of_sources
from ternarize_cli.errors import DataError, InputError
from ternarize_cli.model_folder.model_kind import kind_of
from ternarize_cli.progress import Track, silent
from ternarize_cli.storage.bounds import Held

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Sources", "mixture_of", "read_corpus"]

_FEWEST = 20
_LONGEST = 1 << 15
_TOKENISED = 4096
_UNKNOWN = 1 / 3


@dataclass(frozen=True)
class Sources:
    """The sources of training data.

    Attributes:
        paths: files, folders, hub datasets or `-`; all hold texts, or all hold images.
        weights: how often each source is seen, relative to its size; None sees every text once an epoch.
        most: the most texts or images to take from one source.
        held_out: the most texts or images to hold out for the metric during training, and about a tenth of all at most.
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


def read_corpus(
    encoder: "SentenceTransformer",
    folder: Path,
    sources: Sources,
    *,
    max_length: int | None,
    seed: int,
    track: Track = silent,
) -> tuple[TrainingCorpus, TrainingCorpus]:
    """Reads all sources, drops duplicate texts, and holds some out; returns the training data and the held-out data.

    Args:
        encoder: the model whose tokenizer or image processor is used; a cross-encoder reads pairs (`pair_corpus`).
        folder: the folder that the model was loaded from.
        sources: the sources.
        max_length: the most tokens of an input; None takes the model's limit, at most 512.
        seed: seed for choosing held-out data, and for drawing from hub datasets.
        track: reports progress.

    Raises:
        DataError: a source can't be read, the texts don't fit in memory, or there are fewer than 20 different texts
            or images.
        CheckpointError: the model does not read texts, or images.
    """
    if kind_of(folder) == "cross-encoder":
        pairs = tokenised_pairs(
            encoder,  # type: ignore[arg-type]
            sources.paths,
            sources.most,
            max_length=max_length,
            seed=seed,
            track=track,
        )
        _check_known(pairs.ids, encoder.tokenizer.unk_token_id)
        return _split(pairs, sources, seed, "pairs")
    if modality_of_sources(folder, sources.paths, stdin=True) == "image":
        return _split(_images(encoder, sources, seed), sources, seed, "images")
    texts: dict[str, int] = {}
    held = Held("the data to train on", DataError)
    for number, path in enumerate(sources.paths):
        taken = 0
        for text in track(texts_of(path, sources.most, seed, paired=True), f"reading {path}"):
            if text not in texts:
                held.add(text)
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


def _split(corpus: TrainingCorpus, sources: Sources, seed: int, what: str) -> tuple[TrainingCorpus, TrainingCorpus]:
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
            hint="choose a larger --max-length",
        )
    ids: list[np.ndarray] = []
    sources: list[int] = []
    names = list(texts)
    ends = getattr(tokenizer, "truncation_side", "right") == "left"
    for start in track(range(0, len(names), _TOKENISED), "tokenising"):
        chunk = names[start : start + _TOKENISED]
        for text, made in zip(chunk, _bare(tokenizer, chunk), strict=True):
            if len(made):
                ids.append((made[-_LONGEST:] if ends else made[:_LONGEST]).copy() if len(made) > _LONGEST else made)
                sources.append(texts[text])
    _check_known(ids, tokenizer.unk_token_id)
    left = getattr(tokenizer, "padding_side", "right") == "left"
    return TextCorpus(ids, np.array(sources), heads, tail, limit - longest, tokenizer.pad_token_id or 0, left, ends)


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
    """Finds the ids of the special tokens before and after a text."""
    text = "a"
    whole, bare = tokenizer(text)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"]
    starts = (i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare)
    start = next(starts, None)
    if start is None or not bare:
        raise DataError("the tokenizer gives other tokens to a text with special tokens than to one without")
    return np.array(whole[:start], dtype=np.int32), np.array(whole[start + len(bare) :], dtype=np.int32)


def _images(encoder: "SentenceTransformer", sources: Sources, seed: int) -> ImageCorpus:
    parts = [read_images(path, limit=sources.most, seed=seed) for path in sources.paths]
    return ImageCorpus(parts, np.arange(sum(map(len, parts))), preparation(encoder))


def mixture_of(
    corpus: TrainingCorpus, sources: Sources, joined: float, changed: float = 0.0, *, windows: bool = True
) -> Mixture:
    """Makes the settings for drawing the inputs of an epoch from a corpus."""
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
