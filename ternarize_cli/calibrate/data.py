"""What calibration runs on: texts or images, drawn from the user's sources and made into batches of like length.

Every source gets an equal share of the token budget, so a file of passages counts as much as a file of sentences. A
model meets texts of all lengths, and the covariances of short and long ones differ: half of a source's share goes to
texts as they are, half to texts joined up to the model's full length.
"""

import logging
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ternarize_cli import vision
from ternarize_cli.calibrate.moments import Batch
from ternarize_cli.errors import DataError
from ternarize_cli.images import is_images, read_images
from ternarize_cli.texts import read_texts

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["DEFAULT_SAMPLES", "DEFAULT_TOKENS", "Features", "make_batches"]

DEFAULT_SAMPLES, DEFAULT_TOKENS = 8192, 150_000
_BATCH_TOKENS = 8192
_FEWEST = 16
_LONGEST = 512
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TEXT_FILES = (".txt", ".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True)
class Features:
    """A batch as the encoder takes it.

    Attributes:
        values: what its forward pass gets.
        info: size and padding.
        tokens: padded length of a text, or of an image's input, for choosing a small batch.
    """

    values: dict[str, Any]
    info: Batch
    tokens: int


def make_batches(
    encoder: "SentenceTransformer",
    folder: Path,
    sources: Sequence[str | Path],
    *,
    samples: int = DEFAULT_SAMPLES,
    tokens: int = DEFAULT_TOKENS,
    seed: int = 0,
) -> list[Features]:
    """Draws texts or images and makes batches of them, on the encoder's device.

    Args:
        encoder: loaded from `folder`.
        sources: files, folders of files, or hub datasets (`owner/name`): all texts, or all images.
        samples: at most so many texts or images, over all sources.
        tokens: about so many tokens, over all sources (texts only).
        seed: draws them.

    Raises:
        DataError: a source can't be read, holds both or hardly anything, or the model reads nothing of its kind.
    """
    kinds = {str(source): "image" if is_images(source) else "text" for source in sources}
    if len(set(kinds.values())) > 1:
        image = next(name for name, kind in kinds.items() if kind == "image")
        raise DataError(f"{image} holds images, other sources hold text", hint="calibrate with one kind")
    kind = next(iter(kinds.values()))
    vision.require(folder, kind, folder)
    share = max(1, samples // len(sources))
    if kind == "image":
        images = [image for source in sources for image in read_images(source, limit=share, seed=seed)]
        _check_count(len(images), "images", sources)
        return [_features(encoder, images[i : i + 32]) for i in range(0, len(images), 32)]
    limit = min(encoder.max_seq_length or _LONGEST, _LONGEST)
    texts: list[tuple[int, str]] = []
    for source in sources:
        drawn = list(dict.fromkeys(_draw(_texts_of(source), share, seed)))
        _check_count(len(drawn), "distinct texts", [source])
        texts += _of_all_lengths(encoder, _with_prompts(encoder, drawn), tokens // len(sources), limit)
    texts.sort(key=lambda pair: -pair[0])
    batches, start = [], 0
    while start < len(texts):
        end = start + max(1, _BATCH_TOKENS // texts[start][0])
        batches.append(_features(encoder, [text for _, text in texts[start:end]]))
        start = end
    return batches


def _check_count(count: int, what: str, sources: Sequence[str | Path]) -> None:
    if count < _FEWEST:
        named = ", ".join(map(str, sources))
        raise DataError(
            f"{named} holds {count} {what}; calibration needs at least {_FEWEST}",
            hint="a thousand or more, like those the model will see",
        )


def _texts_of(source: str | Path) -> Iterator[str]:
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in _TEXT_FILES)
        if not files:
            raise DataError(f"{source} holds no texts", hint=f"files named *{', *'.join(_TEXT_FILES)}, or images")
        for file in files:
            yield from _texts_of(file)
    elif path.is_file() and path.suffix.lower() == ".parquet":
        yield from _dataset(str(source), {"path": "parquet", "data_files": str(path)})
    elif _HUB_ID.fullmatch(str(source)) and not (path.exists() or path.suffix or path.parent.exists()):
        yield from _dataset(str(source), {"path": str(source)})
    else:
        yield from (document.text for document in read_texts(source))


def _dataset(name: str, where: dict[str, Any]) -> Iterator[str]:
    import datasets

    for library in ("datasets", "huggingface_hub"):  # which announce every retry
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        rows = datasets.load_dataset(**where, split="train", streaming=True)
        first = next(iter(rows))
    except StopIteration:
        raise DataError(f"{name} holds no rows") from None
    except Exception as e:  # whatever the hub, a proxy or a damaged file sets off
        text = " ".join(f"{type(e).__name__}: {e}".split())[:200]
        raise DataError(f"{name} is no file here and can't be read as a dataset: {text}", hint="pass a file") from e
    columns = [column for column, value in first.items() if isinstance(value, str)]
    if not columns:
        raise DataError(f"{name} has no column of texts: {', '.join(first)}", hint="a column named `text`")
    column = "text" if "text" in columns else columns[0]
    yield from (row[column] for row in rows if row[column])


def _draw(texts: Iterable[str], count: int, seed: int) -> list[str]:
    """A uniform sample without holding all texts (reservoir sampling), in random order."""
    rng = random.Random(seed)
    kept: list[str] = []
    for i, text in enumerate(texts):
        if i < count:
            kept.append(text)
        elif (place := rng.randrange(i + 1)) < count:
            kept[place] = text
    rng.shuffle(kept)
    return kept


def _with_prompts(encoder: "SentenceTransformer", texts: list[str]) -> list[str]:
    """The model's prompts in turn before the texts, if it has any."""
    prompts = sorted({prompt for prompt in encoder.prompts.values() if prompt})
    return [prompts[i % len(prompts)] + text for i, text in enumerate(texts)] if prompts else texts


def _of_all_lengths(encoder: "SentenceTransformer", texts: list[str], tokens: int, limit: int) -> list[tuple[int, str]]:
    """(tokens, text) pairs within the budget: half of it texts as they are, half texts joined up to `limit` tokens."""
    made = encoder.tokenizer(texts, truncation=True, max_length=limit, verbose=False)["input_ids"]
    measured = [(len(ids), text) for ids, text in zip(made, texts, strict=True)]
    plain: list[tuple[int, str]] = []
    spent = 0
    while len(plain) < len(measured) and spent < tokens / 2:
        plain.append(measured[len(plain)])
        spent += plain[-1][0]
    joined: list[tuple[int, str]] = []
    parts: list[tuple[int, str]] = []
    spent = 0
    for pair in [*measured[len(plain) :], *plain]:
        if spent >= tokens / 2:
            break
        parts.append(pair)
        if sum(n for n, _ in parts) >= limit:
            joined.append((limit, " ".join(text for _, text in parts)))
            spent, parts = spent + limit, []
    return plain + joined


def _features(encoder: "SentenceTransformer", inputs: Sequence[Any]) -> Features:
    made = encoder.preprocess(list(inputs))
    values = {k: v.to(encoder.device) if isinstance(v, Tensor) else v for k, v in made.items()}
    mask = values.get("attention_mask")
    mask = mask.bool() if isinstance(mask, Tensor) and not torch.all(mask) else None
    widths = [v.shape[1] for v in values.values() if isinstance(v, Tensor) and v.dim() > 1]
    return Features(values, Batch(len(inputs), mask), max(widths, default=1))
