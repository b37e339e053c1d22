"""What calibration runs on: texts or images, drawn from the user's sources and made into batches of like length.

Every source gets an equal share of the token budget, so a file of passages counts as much as a file of sentences. A
model meets texts of all lengths, and the covariances of short and long ones differ: a quarter of a source's share goes
to texts joined to longer ones, of up to the model's full length. The model's prompts come before them in turn.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ternarize_cli.compress.calibrate.moments import Batch
from ternarize_cli.compress.options import DEFAULT_TOKENS
from ternarize_cli.data.images import read_images
from ternarize_cli.data.pairs import pairs_of
from ternarize_cli.data.text_sources import texts_of
from ternarize_cli.data.texts import drawn
from ternarize_cli.encoders.loading import prompts_of
from ternarize_cli.encoders.modalities import modality_of_sources
from ternarize_cli.errors import DataError
from ternarize_cli.model_folder.model_kind import kind_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["DEFAULT_IMAGES", "DEFAULT_TEXTS", "Features", "make_batches"]

DEFAULT_TEXTS = 8192
"""The most texts of a calibration, and about how many tokens they have."""
DEFAULT_IMAGES = 256
"""The most images of a calibration."""
_BATCH_TOKENS, _BATCH_IMAGES = 8192, 32
_FEWEST = 16
_LONGEST = 512
_JOINED = 0.25
_MOST_PAIRS = 2_000_000
_BETWEEN = "\0"


@dataclass(frozen=True)
class Features:
    """A batch of texts or images as the encoder takes it.

    Attributes:
        values: the arguments of the encoder's forward pass, such as `input_ids`.
        info: how many texts or images there are, and which of their tokens are padding.
        tokens: the padded length of a text in tokens, or the second dimension of an image's input.
    """

    values: dict[str, Any]
    info: Batch
    tokens: int

    def first(self, count: int) -> "Features":
        """Takes the first `count` texts or images; all of them if a value has no entry for each of them."""
        tensors = [value for value in self.values.values() if isinstance(value, Tensor)]
        if any(value.dim() == 0 or len(value) != self.info.size for value in tensors):
            return self
        values = {k: v[:count] if isinstance(v, Tensor) else v for k, v in self.values.items()}
        mask = None if self.info.mask is None else self.info.mask[:count]
        return replace(self, values=values, info=Batch(min(count, self.info.size), mask))


def make_batches(
    encoder: "SentenceTransformer",
    folder: Path,
    sources: Sequence[str | Path],
    *,
    samples: int | None = None,
    tokens: int = DEFAULT_TOKENS,
    seed: int = 0,
) -> list[Features]:
    """Draws texts or images and makes batches of them, on the encoder's device.

    Args:
        encoder: the model, loaded from `folder`.
        folder: the model's folder.
        sources: files, folders of files, or hub datasets (`owner/name`): all texts, or all images.
        samples: at most so many texts or images, over all sources; None: `DEFAULT_TEXTS` or `DEFAULT_IMAGES`.
        tokens: about so many tokens of text, over all sources; of no effect for images.
        seed: the seed by which texts or images are drawn from a source that has more of them.

    Returns:
        Batches; of a cross-encoder they hold pairs (`data.pairs.pairs_of`). Those of texts and pairs have up to 8,192
        padded tokens, and the longest come first.

    Raises:
        DataError: a source is missing, can't be read or holds fewer than 16 texts or images, or some hold texts and
            others images.
        CheckpointError: the model does not read what the sources hold.
    """
    kind = modality_of_sources(folder, sources)
    samples = samples or (DEFAULT_IMAGES if kind == "image" else DEFAULT_TEXTS)
    share = max(1, samples // len(sources))
    fewest = min(_FEWEST, share)
    if kind == "image":
        made = []
        for source in sources:
            images = read_images(source, limit=share, seed=seed)
            _check_count(len(images), fewest, "images", source)
            for start in range(0, len(images), _BATCH_IMAGES):
                made.append(_features(encoder, images[start : start + _BATCH_IMAGES]))
        return made
    limit = min(encoder.max_seq_length or _LONGEST, _LONGEST)
    if kind_of(folder) == "cross-encoder":
        return _batches(encoder, _drawn_pairs(encoder, sources, share, tokens // len(sources), limit, seed))
    texts: list[tuple[int, str]] = []
    for source in sources:
        given = filter(None, texts_of(source, share, seed))
        chosen = list(dict.fromkeys(drawn(given, share, seed, str(source))))
        _check_count(len(chosen), fewest, "distinct texts", source)
        texts += _of_all_lengths(encoder, chosen, tokens // len(sources), limit, seed)
    return _batches(encoder, texts)


def _batches(encoder: "SentenceTransformer", inputs: list[tuple[int, Any]]) -> list[Features]:
    """Makes batches of inputs, each with its number of tokens; the longest come first."""
    inputs.sort(key=lambda pair: -pair[0])
    batches, start = [], 0
    while start < len(inputs):
        end = start + max(1, _BATCH_TOKENS // inputs[start][0])
        batches.append(_features(encoder, [value for _, value in inputs[start:end]]))
        start = end
    return batches


def _drawn_pairs(
    encoder: "SentenceTransformer", sources: Sequence[str | Path], share: int, tokens: int, limit: int, seed: int
) -> list[tuple[int, tuple[str, str]]]:
    """Draws the pairs of texts of a cross-encoder, each source's within its budget of tokens, with their lengths."""
    made: list[tuple[int, tuple[str, str]]] = []
    for source in sources:
        whole = (_BETWEEN.join(pair) for pair in pairs_of(source, _MOST_PAIRS, seed))
        found = [
            (pair[0], pair[2])
            for pair in (text.partition(_BETWEEN) for text in dict.fromkeys(drawn(whole, share, seed, str(source))))
        ]
        _check_count(len(found), min(_FEWEST, share), "distinct pairs", source)
        first, second = (list(texts) for texts in zip(*found, strict=True))
        rows = encoder.tokenizer(first, second, truncation=True, max_length=limit, verbose=False)["input_ids"]
        spent = 0
        for ids, pair in zip(rows, found, strict=True):
            if spent >= tokens:
                break
            made.append((len(ids), pair))
            spent += len(ids)
    return made


def _check_count(count: int, fewest: int, what: str, source: str | Path) -> None:
    if count < fewest:
        raise DataError(
            f"{source} holds {count} {what}; calibration needs at least {fewest}",
            hint=f"{'hundreds' if what == 'images' else 'thousands'}, like those the model will see",
        )


def _of_all_lengths(
    encoder: "SentenceTransformer", texts: list[str], tokens: int, limit: int, seed: int
) -> list[tuple[int, str]]:
    """(tokens, text) pairs within the budget: most of it texts as they are, the rest others joined to any length."""
    rng = random.Random(seed)
    made = encoder.tokenizer(texts, truncation=True, max_length=limit, verbose=False)["input_ids"]
    measured = [(len(ids), text) for ids, text in zip(made, texts, strict=True)]
    tokens = min(tokens, sum(n for n, _ in measured))
    special = encoder.tokenizer.num_special_tokens_to_add()
    plain: list[tuple[int, str]] = []
    spent = 0
    while len(plain) < len(measured) and spent < tokens * (1 - _JOINED):
        plain.append(measured[len(plain)])
        spent += plain[-1][0]
    joined: list[tuple[int, str]] = []
    parts: list[str] = []
    spent, length, wanted = 0, special, rng.randint(limit // 4, limit)
    rest = measured[len(plain) :]
    for i, (n, text) in enumerate(rest, start=1):
        if spent >= tokens * _JOINED:
            break
        parts.append(text)
        length += n - special
        if length >= wanted or i == len(rest):
            joined.append((min(length, limit), " ".join(parts)))
            spent += joined[-1][0]
            parts, length, wanted = [], special, rng.randint(limit // 4, limit)
    prompts = prompts_of(encoder)
    return [(n, prompts[i % len(prompts)] + text) for pairs in (plain, joined) for i, (n, text) in enumerate(pairs)]


def _features(encoder: "SentenceTransformer", inputs: Sequence[Any]) -> Features:
    made = encoder.preprocess(list(inputs))
    values = {k: v.to(encoder.device) if isinstance(v, Tensor) else v for k, v in made.items()}
    mask = values.get("attention_mask")
    mask = mask.bool() if isinstance(mask, Tensor) and not torch.all(mask) else None
    widths = [v.shape[1] for v in values.values() if isinstance(v, Tensor) and v.dim() > 1]
    return Features(values, Batch(len(inputs), mask), max(widths, default=1))
