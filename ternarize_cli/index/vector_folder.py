"""A folder of vectors in numbered shards, written by any number of processes, and read by `index build`.

    vectors.json      what all shards are of: `VectorRecord`
    000012.parquet    rows of a shard: `id` (string) and `vector` (a list of `dim` numbers), or
    000012.npy        the vectors alone, with
    000012.ids        a JSON array of the ids
    000012.json       the record (`shards`), with digests of its rows and of all before; the last says that it is

A shard whose record fits what there is to encode is left alone, so the same command goes on where it was killed, does
again what was damaged, and does what has changed in the corpus.

Numbers are float32, float16, or int8: round(127 · v / max|v|) of vectors of length 1, whose length is not kept since it
is known; reading gives vectors of length 1 again.
"""

import dataclasses
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from ternarize_cli import models
from ternarize_cli.errors import DataError, InputError, OutputError
from ternarize_cli.files import content_hash
from ternarize_cli.index.encode import encoded, image_folder, open_input, text_folder
from ternarize_cli.index.encoders import ImageEncoder, TextEncoder
from ternarize_cli.index.presets import compares_directions
from ternarize_cli.index.shards import ShardFiles
from ternarize_cli.progress import Track, silent

__all__ = [
    "DTYPES",
    "FORMATS",
    "RECORD",
    "Shard",
    "ShardsReport",
    "VectorFolder",
    "VectorRecord",
    "cut",
    "encode_shard",
    "encode_to_folder",
    "open_encoder",
    "open_shards",
]

RECORD = "vectors.json"
DTYPES = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}
FORMATS = ("parquet", "npy")
_VERSION = 1
_SIZES = {"text": 8192, "image": 1024}


@dataclass(frozen=True)
class VectorRecord:
    """What the shards of a folder have in common.

    Attributes:
        model, model_path, model_sha256: as in `format.IndexInfo`.
        kind: "text" or "image".
        dim, normalized, similarity: of the vectors, and how the model compares them.
        document_prompt, query_prompt: names of the model's prompts.
        dtype, format: keys of `DTYPES` and `FORMATS`; shard_size: rows of all shards but the last.
    """

    model: str
    model_path: str
    model_sha256: str
    kind: str
    dim: int
    normalized: bool
    similarity: str
    document_prompt: str | None
    query_prompt: str | None
    dtype: str
    format: str
    shard_size: int
    format_version: int = _VERSION


@dataclass(frozen=True)
class ShardsReport:
    """What a process did: shards and rows that it encoded, and shards of its share that were there already."""

    shards: int
    rows: int
    reused: int


def encode_to_folder(
    encode: TextEncoder | ImageEncoder,
    items: Iterable[tuple[str, Any]],
    folder: Path,
    record: VectorRecord,
    *,
    part: tuple[int, int] = (1, 1),
    track: Track = silent,
) -> ShardsReport:
    """Encodes the shards that are not there yet.

    Args:
        encode: what makes vectors of the contents.
        items: id, and text or image, of each; all of them, whatever `part` is.
        folder: made if it is missing.
        record: of the vectors; must be the one that is there.
        part: (i, n): only every n-th shard, beginning with the i-th; the first is 1.
        track: told of each item that is read, those of others included; a shard is encoded when it has been read.

    Raises:
        InputError: the folder holds vectors of something else.
        OutputError: it can't be written.
        TernarizeError: as `items` and `encode` do; shards that are finished stay.
    """
    files = open_shards(folder, record)
    shards = rows = reused = 0
    end = 0
    for shard in cut(track(items, "reading"), record.shard_size):
        end = shard.number + 1
        if shard.number % part[1] != part[0] - 1:
            continue
        if encode_shard(encode, files, record, shard):
            shards, rows = shards + 1, rows + len(shard.rows)
        else:
            reused += 1
    files.remove_from(end, part)
    return ShardsReport(shards, rows, reused)


def open_shards(folder: Path, record: VectorRecord) -> ShardFiles:
    """The shards of a folder, which is made if it is missing.

    Raises:
        InputError, OutputError: as `encode_to_folder`.
    """
    try:
        files = ShardFiles(folder)
        _agree(folder, record)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"can't write to {folder}: no permission", hint="name a writable place with -o")
    except OSError as e:
        raise OutputError(f"can't write to {folder}: {e.strerror}", hint="name a writable place with -o") from e
    return files


@dataclass(frozen=True)
class Shard:
    """A shard's rows, before they are encoded.

    Attributes:
        number: the first is 0.
        rows: id and content of each.
        digest: of the rows; chain: of these and all rows before, which tells shards of one corpus from another's.
        last: whether no other follows.
    """

    number: int
    rows: list[tuple[str, Any]]
    digest: str
    chain: str
    last: bool


def encode_shard(encode: TextEncoder | ImageEncoder, files: ShardFiles, record: VectorRecord, shard: Shard) -> bool:
    """Encodes a shard and writes it; False if its vectors were there already.

    Raises:
        OutputError: it can't be written.
    """
    try:
        there = files.record(shard.number)
        if there is not None and there.get("of") == shard.digest:
            if (there.get("last"), there.get("chain")) != (shard.last, shard.chain):  # others have changed
                files.amend(shard.number, {**there, "last": shard.last, "chain": shard.chain})
            return False
        parts = []
        with closing(encoded(encode, shard.rows)) as chunks:
            for _, vectors in chunks:
                parts.append(vectors)
        _put(files, shard, np.concatenate(parts), record)
    except OSError as e:
        raise OutputError(
            f"can't write shard {shard.number} to {files.folder}: {e.strerror or e}",
            hint="make room, or another place with -o; the same command goes on from here",
        ) from e
    return True


def open_encoder(
    model: str,
    source: str,
    *,
    format: str = "parquet",
    dtype: str = "fp32",
    shard_size: int | None = None,
    batch_size: int | None = None,
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    normalize: bool | None = None,
    prompt_name: str | None = None,
    allow_pickle: bool = False,
) -> tuple[Iterable[tuple[str, Any]], TextEncoder | ImageEncoder, VectorRecord]:
    """What there is to encode, what encodes it as documents, and the record of the vectors.

    Args:
        model: MODEL; source: as `encode.open_input`.
        format, dtype, shard_size: of the shards; None: 8,192 texts or 1,024 images.
        normalize: None: length 1 if the model compares directions.
        batch_size, prompt_name: as `TextEncoder`.
        backend, device, threads, allow_pickle: as `models.load_encoder`.

    Raises:
        InputError: int8 is asked for vectors that are not of length 1, or a prompt for images.
        TernarizeError: as `encode.open_input` and `models.load_encoder`.
    """
    items, pictures = open_input(source)
    folder = (image_folder if pictures else text_folder)(model, allow_pickle=allow_pickle)
    loaded = models.load_encoder(folder, backend=backend, device=device, threads=threads, allow_pickle=allow_pickle)
    similarity = loaded.similarity_fn_name or "cosine"
    normalized = compares_directions(similarity) if normalize is None else normalize
    if dtype == "int8" and not normalized:
        raise InputError("int8 keeps directions only, and these vectors are not of length 1", hint="--dtype fp16")
    encode: TextEncoder | ImageEncoder
    query_prompt = None
    if pictures:
        if prompt_name is not None:
            raise InputError(f"--prompt-name is for text, and {source} holds images", hint="leave it out")
        encode = ImageEncoder(loaded, normalize=normalized, batch_size=batch_size)
    else:
        encode = TextEncoder(
            loaded, role="document", prompt_name=prompt_name, normalize=normalized, batch_size=batch_size
        )
        query_prompt = TextEncoder(loaded, role="query").prompt_name
    record = VectorRecord(
        model=model,
        model_path=str(folder.resolve()),
        model_sha256=content_hash(folder),
        kind="image" if pictures else "text",
        dim=encode.dim if isinstance(encode, TextEncoder) else loaded.get_embedding_dimension() or 0,
        normalized=normalized,
        similarity=similarity,
        document_prompt=getattr(encode, "prompt_name", None),
        query_prompt=query_prompt,
        dtype=dtype,
        format=format,
        shard_size=shard_size or _SIZES["image" if pictures else "text"],
    )
    return items, encode, record


def cut(items: Iterable[tuple[str, Any]], size: int) -> Iterator[Shard]:
    """The shards of a corpus, one after the other; an item is read ahead to know the last."""
    stream, number, chain = iter(items), 0, ""
    following = list(islice(stream, 1))
    while following:
        rows = following + list(islice(stream, size - 1))
        following = list(islice(stream, 1))
        digest = _digest(rows)
        chain = _chained(chain, digest)
        yield Shard(number, rows, digest, chain, not following)
        number += 1


def _chained(before: str, digest: str) -> str:
    """`Shard.chain` of a shard with `digest`, after one whose chain is `before`."""
    return hashlib.sha256((before + digest).encode()).hexdigest()


def _digest(rows: list[tuple[str, Any]]) -> str:
    digest = hashlib.sha256()
    for identity, content in rows:
        data = [content.encode()] if isinstance(content, str) else [repr(content.size).encode(), content.tobytes()]
        for field in (identity.encode(), *data):
            digest.update(len(field).to_bytes(8, "little") + field)
    return digest.hexdigest()


def _agree(folder: Path, record: VectorRecord) -> None:
    """Writes the record, or compares it with the one that is there."""
    path = folder / RECORD
    if not path.exists():
        # another job may be writing the record just now
        if any(p.name != RECORD and not p.name.endswith(".partial") for p in folder.iterdir()) and not path.exists():
            raise InputError(f"{folder} holds other files, and no vectors of ternarize", hint="name another with -o")
        partial = folder / f"{RECORD}.{uuid.uuid4().hex}.partial"
        partial.write_text(json.dumps(dataclasses.asdict(record), indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
    there = _read_record(folder)
    differs = [
        f"{field.name} is {getattr(there, field.name)!r} there and {getattr(record, field.name)!r} now"
        for field in dataclasses.fields(record)
        if field.name not in ("model", "model_path") and getattr(there, field.name) != getattr(record, field.name)
    ]
    if differs:
        raise InputError(
            f"{folder} holds vectors that were made otherwise: {'; '.join(differs)}",
            hint="name another folder with -o, or remove this one",
        )


def _read_record(folder: Path) -> VectorRecord:
    path = folder / RECORD
    if not path.is_file():
        raise DataError(f"{folder} holds no vectors of ternarize", hint="pass the folder that `encode --shards` wrote")
    try:
        record = VectorRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as e:
        raise DataError(
            f"{path} is damaged, or of another version: {e}", hint="remove the folder and encode again"
        ) from e
    if record.format_version != _VERSION or record.dtype not in DTYPES or record.format not in FORMATS:
        raise DataError(f"{path} is of another version of ternarize", hint="remove the folder and encode again")
    return record


def _put(files: ShardFiles, shard: Shard, vectors: np.ndarray, record: VectorRecord) -> None:
    ids = [identity for identity, _ in shard.rows]
    numbers = _as(vectors, record.dtype)

    def parquet(stream: IO[bytes]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        column = pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), numbers.shape[1])
        pq.write_table(pa.table({"id": pa.array(ids, pa.string()), "vector": column}), stream)

    contents = (
        {".parquet": parquet}
        if record.format == "parquet"
        else {
            ".npy": lambda stream: np.save(stream, numbers),
            ".ids": lambda stream: stream.write(json.dumps(ids, ensure_ascii=False).encode()),
        }
    )
    files.put(shard.number, contents, rows=len(ids), of=shard.digest, chain=shard.chain, last=shard.last)


def _as(vectors: np.ndarray, dtype: str) -> np.ndarray:
    if dtype != "int8":
        return vectors.astype(DTYPES[dtype])
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    return np.rint(127 * vectors / np.maximum(largest, np.finfo(np.float32).tiny)).astype(np.int8)


class VectorFolder:
    """A finished folder of vectors, as `index build` reads it.

    Attributes:
        record: what the shards are of.
        shards: how many there are; count: of vectors.

    Raises:
        DataError: a shard is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.record = _read_record(folder)
        self._files = ShardFiles(folder)
        again = "run the same `ternarize encode` again: it does what is missing"
        self.shards = self.count = 0
        chain = ""
        while True:
            found = self._files.record(self.shards)
            if found is None:
                path = self._files.path(self.shards, f".{self.record.format}")
                raise DataError(f"{path} is {'damaged' if path.exists() else 'missing'}", hint=again)
            chain = _chained(chain, found["of"])
            if found["chain"] != chain:
                raise DataError(
                    f"{self._files.path(self.shards, '.json')} is of another version of the corpus than those before",
                    hint="run `ternarize encode` again, all jobs of it, on the corpus as it is now",
                )
            self.shards, self.count = self.shards + 1, self.count + found["rows"]
            if found["last"]:
                break
            if found["rows"] != self.record.shard_size:
                wrong = self._files.path(self.shards - 1, ".json")
                raise DataError(f"{wrong} has {found['rows']} rows, not {self.record.shard_size}", hint=again)

    def ids(self) -> Iterator[str]:
        """The ids of all vectors, in order."""
        for shard in range(self.shards):
            if self.record.format == "npy":
                yield from json.loads(self._files.path(shard, ".ids").read_text(encoding="utf-8"))
            else:
                import pyarrow.parquet as pq

                yield from pq.read_table(self._files.path(shard, ".parquet"), columns=["id"])["id"].to_pylist()

    def load(self, shard: int) -> np.ndarray:
        """A shard's vectors, float32 `[rows, dim]`."""
        if self.record.format == "npy":
            numbers = np.load(self._files.path(shard, ".npy"))
        else:
            import pyarrow.parquet as pq

            column = pq.read_table(self._files.path(shard, ".parquet"), columns=["vector"])["vector"].combine_chunks()
            numbers = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.record.dim)
        vectors = numbers.astype(np.float32)
        if self.record.dtype == "int8":
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return vectors

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Some vectors, by their numbers in rising order: float32 `[len(rows), dim]`."""
        shards = rows // self.record.shard_size
        return np.concatenate([self.load(i)[rows[shards == i] - i * self.record.shard_size] for i in np.unique(shards)])
