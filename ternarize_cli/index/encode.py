"""From a file or a stream of texts or images to a file or a stream of vectors.

A chunk at a time, so that a stream of any length encodes in bounded memory and in order. While the model works on one,
the next is read and prepared (`ahead`).
"""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import numpy as np

from ternarize_cli import files, models, vision
from ternarize_cli.errors import CheckpointError
from ternarize_cli.images import is_images, read_parts
from ternarize_cli.index.ahead import overlapped
from ternarize_cli.index.encoders import ImageEncoder, Prepared, TextEncoder
from ternarize_cli.index.vectors import WRITERS
from ternarize_cli.progress import Track, silent
from ternarize_cli.texts import STDIN, read_texts

__all__ = ["LINGER", "encode_to_file", "encode_to_stream", "encoded", "image_folder", "open_input", "text_folder"]

LINGER = 0.05
"""Seconds that a text from a stream waits for others to share its batch."""
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
)


def text_folder(model: str, *, allow_pickle: bool = False) -> Path:
    """Resolves MODEL to a folder and makes sure that what is in it reads text.

    Raises:
        ModelNotFoundError, CheckpointError: as `models.resolve`; CheckpointError also for a model that reads images
            only and for one without a tokenizer.
    """
    folder = models.resolve(model, allow_pickle=allow_pickle)
    vision.require(folder, "text", model)
    if not any(next(folder.rglob(name), None) for name in (*_TOKENIZER_FILES, "sentencepiece*.model")):
        raise CheckpointError(
            f"{model} has no tokenizer, so it can't read text",
            hint="copy the tokenizer's files (tokenizer.json, …) into the folder",
        )
    return folder


def image_folder(model: str, *, allow_pickle: bool = False) -> Path:
    """Resolves MODEL to a folder and makes sure that what is in it reads images.

    Raises:
        ModelNotFoundError, CheckpointError: as `models.resolve`; CheckpointError also for a model that reads text only.
    """
    folder = models.resolve(model, allow_pickle=allow_pickle)
    vision.require(folder, "image", model)
    return folder


def open_input(source: str) -> tuple[Iterator[tuple[str, Any]], bool]:
    """Opens what is to be encoded: pairs of id and content, and whether the content is images.

    Args:
        source: a file of texts, `-` for stdin, or images as `images.read_parts` finds them, all parts in order.

    Raises:
        DataError: as `texts.read_texts` and `images.read_parts`.
    """
    if source != STDIN and (is_images(source) or Path(source).expanduser().is_dir()):
        parts = read_parts(source).values()
        return (pair for images in parts for pair in zip(images.ids, images, strict=True)), True
    return ((document.id, document.text) for document in read_texts(source)), False


def encoded(
    encode: TextEncoder | ImageEncoder, items: Iterable[tuple[str, Any]], *, linger: float | None = None
) -> Generator[tuple[list[str], np.ndarray], None, None]:
    """Yields ids and vectors (float32 `[ids, dim]`) in the order of `items`, a chunk at a time.

    Args:
        encode: what makes vectors of the contents.
        items: id, and text or image, of each; read in a thread, two chunks and an item ahead of what was yielded.
        linger: seconds that an item waits for others; None: until a chunk is full.

    Raises:
        TernarizeError: as `items` and `encode` do, after the vectors of all items before.
    """

    def prepare(chunk: list[tuple[str, Any]]) -> tuple[list[str], Prepared]:
        return [identity for identity, _ in chunk], encode.prepare([content for _, content in chunk])

    with closing(overlapped(encode.chunks(items, linger), prepare)) as chunks:
        for ids, prepared in chunks:
            yield ids, encode.forward(prepared)


def encode_to_stream(
    encode: TextEncoder | ImageEncoder,
    items: Iterable[tuple[str, Any]],
    stream: IO[bytes],
    kind: str,
    *,
    linger: float | None = None,
    track: Track = silent,
) -> None:
    """Writes ids and vectors in the order of `items`, a chunk at a time.

    Args:
        encode, items, linger: as `encoded` takes them.
        stream: where to.
        kind: a key of `vectors.WRITERS`.
        track: told of each item that was written.
    """
    writer = WRITERS[kind](stream)

    def written() -> Generator[str, None, None]:
        with closing(encoded(encode, items, linger=linger)) as chunks:
            for ids, vectors in chunks:
                writer.write(ids, vectors)
                yield from ids

    with closing(written()) as done:
        for _ in track(done, "encoding"):
            pass
    writer.close()


def encode_to_file(
    encode: TextEncoder | ImageEncoder,
    items: Iterable[tuple[str, Any]],
    output: Path,
    kind: str,
    *,
    force: bool = False,
    **options: Any,
) -> None:
    """As `encode_to_stream`, into a file that appears when it is whole (`files.atomic_file`)."""
    with files.atomic_file(output, force=force) as partial, partial.open("wb") as stream:
        encode_to_stream(encode, items, stream, kind, **options)
