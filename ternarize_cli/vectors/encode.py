"""From a file or a stream of texts or images to a file or a stream of vectors.

A chunk at a time, so that a stream of any length encodes in bounded memory and in order. While the model works on one,
the next is read and prepared, and what goes to a file is written in a thread (`prefetch`).
"""

from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import numpy as np

from ternarize_cli.data.prefetch import ReadAhead, one_behind, overlapped
from ternarize_cli.encoders import loading
from ternarize_cli.encoders.modalities import modalities_of, require_modality
from ternarize_cli.errors import CheckpointError, InputError
from ternarize_cli.progress import Track, silent
from ternarize_cli.runtime import Encoder
from ternarize_cli.storage import files
from ternarize_cli.tokenizers.tokenizer_files import has_tokenizer
from ternarize_cli.vectors.image_batches import ImageBatches
from ternarize_cli.vectors.options import EncoderOptions
from ternarize_cli.vectors.pace import Pace
from ternarize_cli.vectors.runtime_encoder import RuntimeEncoder, RuntimeImageEncoder, opened
from ternarize_cli.vectors.text_batches import Prepared, Role, TextBatches
from ternarize_cli.vectors.vector_files import WRITERS

__all__ = [
    "LINGER",
    "EncoderOptions",
    "OpenModel",
    "encode_to_file",
    "encode_to_stream",
    "encoded",
    "encoded_chunks",
    "image_folder",
    "open_model",
    "reads",
    "text_folder",
]

LINGER = 0.05
"""Seconds that a text from a stream waits for others to share its batch."""

_BY_LENGTH = ("dot", "euclidean")
"""Similarities, by sentence-transformers' names, that depend on the length of vectors; the others normalise them."""


def text_folder(model: str, *, allow_pickle: bool = False) -> Path:
    """Resolves MODEL to a folder and makes sure that what is in it reads text.

    Raises:
        ModelNotFoundError, CheckpointError: as `loading.resolve`; CheckpointError also for a model that reads images
            only and for one without a tokenizer.
    """
    folder = loading.resolve(model, allow_pickle=allow_pickle)
    require_modality(folder, "text", model)
    if not has_tokenizer(folder):
        raise CheckpointError(
            f"{model} has no tokenizer, so it can't read text",
            hint="copy the tokenizer's files (tokenizer.json, …) into the folder",
        )
    return folder


def image_folder(model: str, *, allow_pickle: bool = False) -> Path:
    """Resolves MODEL to a folder and makes sure that what is in it reads images.

    Raises:
        ModelNotFoundError, CheckpointError: as `loading.resolve`; CheckpointError also for one that reads text only.
    """
    folder = loading.resolve(model, allow_pickle=allow_pickle)
    require_modality(folder, "image", model)
    return folder


def reads(model: str | Path, options: EncoderOptions) -> Callable[[], Collection[str]]:
    """Returns a function that finds out whether MODEL reads "text", "image" or both (`corpora.open_corpus`)."""
    return lambda: modalities_of(loading.resolve(str(model), allow_pickle=options.allow_pickle))


@dataclass(frozen=True)
class OpenModel:
    """A loaded model.

    Attributes:
        folder: of the model; kind: "text" or "image", what it reads.
        encode: what makes vectors.
        similarity: how the model compares them, by sentence-transformers' name.
        normalized: whether they have length 1 because they were asked to, or because only directions are compared.
    """

    folder: Path
    kind: str
    encode: TextBatches | ImageBatches
    similarity: str
    normalized: bool


def open_model(model: str | Path, kind: str, options: EncoderOptions, *, role: Role = "text") -> OpenModel:
    """Loads MODEL for a corpus.

    Args:
        model: MODEL.
        kind: "text" or "image", what it is to read.
        options: how. With a role other than "text" and `normalize` None, vectors get length 1 if the model compares
            directions.
        role: as `TextEncoder`.

    Raises:
        InputError: a prompt is asked for images.
        TernarizeError: as `text_folder`, `image_folder` and `loading.load_encoder`.
    """
    pictures = kind == "image"
    if pictures and options.prompt_name is not None:
        raise InputError("--prompt-name is for text, and these are images", hint="leave it out")
    folder = (image_folder if pictures else text_folder)(str(model), allow_pickle=options.allow_pickle)
    light = opened(folder, kind, options)
    loaded: Any = light or loading.load_encoder(
        folder,
        backend=options.backend,
        device=options.device,
        threads=options.threads,
        allow_pickle=options.allow_pickle,
    )
    similarity = (loaded.similarity if light else loaded.similarity_fn_name) or "cosine"
    normalized = (similarity not in _BY_LENGTH) if options.normalize is None else options.normalize
    normalize = options.normalize if role == "text" else normalized or options.normalize
    encode = _encoder(loaded, pictures, role, normalize, options)
    return OpenModel(folder, kind, encode, similarity, normalized)


def _encoder(
    loaded: Any, pictures: bool, role: Role, normalize: bool | None, options: EncoderOptions
) -> TextBatches | ImageBatches:
    if isinstance(loaded, Encoder):
        if pictures:
            return RuntimeImageEncoder(loaded, normalize=normalize, batch_size=options.batch_size)
        return RuntimeEncoder(
            loaded, role=role, prompt_name=options.prompt_name, normalize=normalize, batch_size=options.batch_size
        )
    from ternarize_cli.vectors.image_encoder import ImageEncoder
    from ternarize_cli.vectors.text_encoder import TextEncoder

    if pictures:
        return ImageEncoder(loaded, normalize=normalize, batch_size=options.batch_size)
    return TextEncoder(
        loaded, role=role, prompt_name=options.prompt_name, normalize=normalize, batch_size=options.batch_size
    )


def encoded(
    encode: TextBatches | ImageBatches, items: Iterable[tuple[str, Any]], *, linger: float | None = None
) -> Generator[tuple[list[str], np.ndarray], None, None]:
    """Yields ids and vectors (float32 `[ids, dim]`) in the order of `items`, a chunk at a time.

    Args:
        encode: what makes vectors of the contents.
        items: id, and text or image, of each; read in a thread, two chunks and an item ahead of what was yielded.
        linger: seconds that an item waits for others; None: until a chunk is full.

    Raises:
        TernarizeError: as `items` and `encode` do, after the vectors of all items before.
    """

    chunks = ReadAhead(items, **encode.chunking, linger=linger)
    with closing(encoded_chunks(encode, chunks)) as parts:
        for chunk, vectors in parts:
            yield [identity for identity, _ in chunk], vectors


def encoded_chunks(
    encode: TextBatches | ImageBatches, chunks: ReadAhead[Any], rows: Callable[[Any], Sequence[tuple[str, Any]]] = list
) -> Generator[tuple[Any, np.ndarray], None, None]:
    """Yields chunks and their vectors (float32 `[rows, dim]`); closes `chunks` when it ends or is closed.

    On a GPU, the passes of a chunk are started while the caller has the vectors of the chunk before.

    Args:
        encode: what makes vectors of the contents.
        chunks: chunks, read in a thread.
        rows: gives id, and text or image, of each row of a chunk; a chunk without rows is not encoded.
    """

    begin: Callable[[Any], Callable[[], Prepared]] = (
        encode.tokenised if isinstance(encode, TextBatches) else lambda images: partial(encode.prepare, images)
    )

    def tokenise(chunk: Any) -> tuple[Any, Callable[[], Prepared] | None]:
        contents = [content for _, content in rows(chunk)]
        return chunk, begin(contents) if contents else None

    def pad(made: tuple[Any, Callable[[], Prepared] | None]) -> tuple[Any, Prepared | None]:
        chunk, padded = made
        return chunk, padded() if padded else None

    def prepare(chunk: Any) -> tuple[Any, Prepared | None]:
        return pad(tokenise(chunk))

    def start(made: tuple[Any, Prepared | None]) -> tuple[Any, Prepared | None, Callable[[], np.ndarray]]:
        chunk, prepared = made
        return chunk, prepared, encode.started(prepared) if prepared else _no_vectors

    if encode.on_gpu:
        with closing(overlapped(chunks, tokenise, pad, start)) as parts:
            for chunk, prepared, wait in parts:
                yield chunk, encode.finished(prepared, wait) if prepared else wait()
        return
    with closing(overlapped(chunks, prepare)) as parts:
        for chunk, prepared in parts:
            yield chunk, encode.forward(prepared) if prepared else _no_vectors()


def _no_vectors() -> np.ndarray:
    return np.empty((0, 0), dtype=np.float32)


def encode_to_stream(
    encode: TextBatches | ImageBatches,
    items: Iterable[tuple[str, Any]],
    stream: IO[bytes],
    kind: str,
    *,
    linger: float | None = None,
    total: int | None = None,
    track: Track = silent,
    about: Mapping[str, str] = MappingProxyType({}),
    pace: Pace | None = None,
    in_thread: bool = False,
) -> None:
    """Writes ids and vectors in the order of `items`, a chunk at a time.

    Args:
        encode, items, linger: as `encoded` takes them.
        stream: where to.
        kind: a key of `vectors.WRITERS`.
        total: how many items there are, if that is known.
        track: told of each item that was written.
        about: what the file says about its vectors, if its format can.
        pace: is told of each chunk that was written.
        in_thread: write a chunk in a thread while the vectors of the next are awaited. Not for a pipe: Ctrl-C could not
            end a thread that waits for its reader.
    """
    writer = WRITERS[kind](stream, about)

    def write(chunk: tuple[list[str], np.ndarray]) -> list[str]:
        ids, vectors = chunk
        writer.write(ids, vectors)
        if pace is not None:
            pace.done(len(ids))
        return ids

    def written() -> Generator[str, None, None]:
        with closing(encoded(encode, items, linger=linger)) as chunks:
            for ids in one_behind(write, chunks) if in_thread else map(write, chunks):
                yield from ids

    with closing(written()) as done:
        for _ in track(done, "encoding", total):
            pass
    writer.close()


def encode_to_file(
    encode: TextBatches | ImageBatches,
    items: Iterable[tuple[str, Any]],
    output: Path,
    kind: str,
    *,
    force: bool = False,
    inputs: Sequence[Path] = (),
    **options: Any,
) -> None:
    """As `encode_to_stream`, into a file that appears when it is whole and replaces no input (`files.atomic_file`)."""
    with files.atomic_file(output, force=force, inputs=inputs) as partial, partial.open("wb") as stream:
        encode_to_stream(encode, items, stream, kind, in_thread=True, **options)
