"""What calibration runs on: texts or images, drawn from the user's sources and made into batches of like length.

Every source gets an equal share of the token budget, so a file of passages counts as much as a file of sentences. A
model meets texts of all lengths, and the covariances of short and long ones differ: a quarter of a source's share goes
to texts joined to longer ones, of up to the model's full length. The model's prompts come before them in turn.
"""

import logging
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ternarize_cli import vision
from ternarize_cli.calibrate.moments import Batch
from ternarize_cli.errors import DataError
from ternarize_cli.images import is_images, read_images
from ternarize_cli.texts import STDIN, read_texts, text_files

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["DEFAULT_IMAGES", "DEFAULT_TEXTS", "DEFAULT_TOKENS", "Features", "check_sources", "make_batches"]

DEFAULT_TEXTS, DEFAULT_TOKENS = 8192, 120_000
DEFAULT_IMAGES = 256
_BATCH_TOKENS, _BATCH_IMAGES = 8192, 32
_FEWEST = 16
_LONGEST = 512
_JOINED = 0.25
_SHUFFLED, _HEAD = 10_000, 100
_TABLES = (".parquet",)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


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

    def first(self, count: int) -> "Features":
        """Its first texts or images; all of them if the values do not tell them apart."""
        tensors = [value for value in self.values.values() if isinstance(value, Tensor)]
        if any(value.dim() == 0 or len(value) != self.info.size for value in tensors):
            return self
        values = {k: v[:count] if isinstance(v, Tensor) else v for k, v in self.values.items()}
        mask = None if self.info.mask is None else self.info.mask[:count]
        return replace(self, values=values, info=Batch(min(count, self.info.size), mask))


def check_sources(folder: Path, sources: Sequence[str | Path]) -> str:
    """Tells whether sources hold texts or images ("text", "image"), by their names; reads none of them.

    Args:
        folder: the model. One that reads only text takes the texts of a folder that holds both.
        sources: as `make_batches` takes them.

    Raises:
        DataError: one is missing, or there are both texts and images.
        CheckpointError: the model reads nothing of their kind.
    """
    reads = vision.modalities(folder)
    kinds = {}
    for source in sources:
        path = Path(source).expanduser()
        if str(source) in (STDIN, ""):
            raise DataError("calibration does not read stdin", hint="write the texts to a file")
        if not path.exists() and not _is_hub_id(source):
            raise DataError(f"{source} can't be read: there is no such file", hint="a file, a folder, or a hub dataset")
        image = is_images(path) and ("image" in reads or not (path.is_dir() and text_files(path, also=_TABLES)))
        kinds[str(source)] = "image" if image else "text"
    if len(set(kinds.values())) > 1:
        image_source = next(name for name, kind in kinds.items() if kind == "image")
        raise DataError(f"{image_source} holds images, other sources hold text", hint="calibrate with one kind")
    kind = next(iter(kinds.values()))
    vision.require(folder, kind, folder)
    return kind


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
        encoder: loaded from `folder`.
        sources: files, folders of files, or hub datasets (`owner/name`): all texts, or all images.
        samples: at most so many texts or images, over all sources; None: `DEFAULT_TEXTS` or `DEFAULT_IMAGES`.
        tokens: about so many tokens, over all sources (texts only).
        seed: draws them.

    Raises:
        DataError, CheckpointError: as `check_sources`; a source can't be read or holds hardly anything.
    """
    kind = check_sources(folder, sources)
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
    texts: list[tuple[int, str]] = []
    for source in sources:
        drawn = list(dict.fromkeys(_draw(_texts_of(source, share, seed), share, seed)))
        _check_count(len(drawn), fewest, "distinct texts", source)
        texts += _of_all_lengths(encoder, drawn, tokens // len(sources), limit, seed)
    texts.sort(key=lambda pair: -pair[0])
    batches, start = [], 0
    while start < len(texts):
        end = start + max(1, _BATCH_TOKENS // texts[start][0])
        batches.append(_features(encoder, [text for _, text in texts[start:end]]))
        start = end
    return batches


def _check_count(count: int, fewest: int, what: str, source: str | Path) -> None:
    if count < fewest:
        raise DataError(
            f"{source} holds {count} {what}; calibration needs at least {fewest}",
            hint=f"{'hundreds' if what == 'images' else 'thousands'}, like those the model will see",
        )


def _is_hub_id(source: str | Path) -> bool:
    path = Path(source)
    return bool(_HUB_ID.fullmatch(str(source))) and not (path.exists() or path.suffix or path.parent.exists())


def _texts_of(source: str | Path, count: int, seed: int) -> Iterator[str]:
    """The texts of a source; of a hub dataset, which may be endless, about `count` texts drawn by the seed."""
    path = Path(source).expanduser()
    if path.is_dir():
        files = text_files(path, also=_TABLES)
        if not files:
            raise DataError(f"{source} holds no texts", hint="files named *.txt, *.jsonl or *.parquet, or images")
        for file in files:
            yield from _texts_of(file, count, seed)
    elif path.is_file() and path.suffix.lower() == ".parquet":
        yield from _parquet(path)
    elif _is_hub_id(source):
        yield from islice(_hub_dataset(str(source), count, seed), count)
    else:
        yield from (document.text for document in read_texts(source))


def _parquet(path: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def is_text(kind: Any) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))

    try:
        file = pq.ParquetFile(path)
        names = [field.name for field in file.schema_arrow if is_text(field.type)]
        if not names:
            columns = ", ".join(file.schema_arrow.names)
            raise DataError(f"{path} has no column of texts: {columns}", hint="a column named `text`")
        head = next(file.iter_batches(batch_size=_HEAD, columns=names), None) if file.metadata.num_rows else None
        column = _column(head.to_pylist() if head is not None else []) or names[0]
        for batch in file.iter_batches(columns=[column]):
            yield from filter(None, batch.column(0).to_pylist())
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path} can't be read as Parquet: {e}", hint="fetch the file again") from e


def _hub_dataset(name: str, count: int, seed: int) -> Iterator[str]:
    import datasets

    for library in ("datasets", "huggingface_hub"):  # which announce every retry
        logging.getLogger(library).setLevel(logging.ERROR)
    column = None
    head: list[dict[str, Any]] = []
    try:
        rows = iter(datasets.load_dataset(name, split="train", streaming=True).shuffle(seed, buffer_size=_SHUFFLED))
        head = list(islice(rows, max(_HEAD, min(count, _SHUFFLED))))
        column = _column(head)
        for row in chain(head, rows) if column else ():
            value = row.get(column)
            if isinstance(value, str) and value:
                yield value
    except Exception as e:  # whatever the hub, a proxy or a damaged file sets off
        text = " ".join(f"{type(e).__name__}: {e}".split())[:200]
        raise DataError(
            f"{name} is no file here and can't be read as a hub dataset: {text}", hint="pass a file of texts"
        ) from e
    if not head:
        raise DataError(f"{name} holds no rows")
    if column is None:
        raise DataError(f"{name} has no column of texts: {', '.join(head[0])}", hint="a column named `text`")


def _column(rows: Sequence[dict[str, Any]]) -> str | None:
    """The column `text`, or else that with the longest texts, which is neither an id nor a title; None without any."""
    lengths: dict[str, int] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, str):
                lengths[name] = lengths.get(name, 0) + len(value)
    return "text" if "text" in lengths else max(lengths, key=lengths.__getitem__, default=None)


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


def _prompts(encoder: "SentenceTransformer") -> list[str]:
    """What the model's users put before texts; "" where they put nothing."""
    bare = [] if encoder.default_prompt_name else [""]
    return sorted({*encoder.prompts.values(), *bare})


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
    prompts = _prompts(encoder)
    return [(n, prompts[i % len(prompts)] + text) for pairs in (plain, joined) for i, (n, text) in enumerate(pairs)]


def _features(encoder: "SentenceTransformer", inputs: Sequence[Any]) -> Features:
    made = encoder.preprocess(list(inputs))
    values = {k: v.to(encoder.device) if isinstance(v, Tensor) else v for k, v in made.items()}
    mask = values.get("attention_mask")
    mask = mask.bool() if isinstance(mask, Tensor) and not torch.all(mask) else None
    widths = [v.shape[1] for v in values.values() if isinstance(v, Tensor) and v.dim() > 1]
    return Features(values, Batch(len(inputs), mask), max(widths, default=1))
