"""Writes vector folders (`vector_folder`): a corpus is cut into shards, and those that are not there yet are encoded.

A shard is there if its record has the digest of the rows that it would hold now. Digests are chained, so that the
shards of two versions of a corpus are told apart; the last shard's record says that no other follows.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from ternarize_cli.data.prefetch import ReadAhead, in_chunks
from ternarize_cli.errors import DataError, InputError, OutputError
from ternarize_cli.progress import Track, silent
from ternarize_cli.storage.checksummed import with_checksum
from ternarize_cli.storage.digests import content_hash
from ternarize_cli.storage.whole_files import put_file
from ternarize_cli.vectors.encode import OpenModel, encoded, encoded_chunks
from ternarize_cli.vectors.finished_work import RECORDS, ShardFiles
from ternarize_cli.vectors.image_batches import ImageBatches
from ternarize_cli.vectors.options import ShardOptions
from ternarize_cli.vectors.pace import Pace
from ternarize_cli.vectors.text_batches import TextBatches
from ternarize_cli.vectors.vector_folder import DTYPES, RECORD, VectorRecord, chained, metadata, read_record

__all__ = [
    "PendingShard",
    "ShardOptions",
    "ShardsReport",
    "cut",
    "encode_shard",
    "encode_to_folder",
    "open_shards",
    "record_of",
]

_SIZES = {"text": 8192, "image": 1024}


@dataclass(frozen=True)
class ShardsReport:
    """What a process did: shards and rows that it encoded, and shards of its share that were there already."""

    shards: int
    rows: int
    reused: int


def record_of(model: str, opened: OpenModel, options: ShardOptions) -> VectorRecord:
    """The record of the vectors that an open model will make.

    Raises:
        InputError: int8 is asked for vectors that are not of length 1.
    """
    if options.dtype == "int8" and not opened.normalized:
        raise InputError("int8 keeps directions only, and these vectors are not of length 1", hint="--dtype fp16")
    encode = opened.encode
    text = encode if isinstance(encode, TextBatches) else None
    return VectorRecord(
        model=model,
        model_path=str(opened.folder.resolve()),
        model_sha256=content_hash(opened.folder),
        kind=opened.kind,
        normalized=opened.normalized,
        document_prompt=text.prompt_name if text else None,
        query_prompt=text.for_role("query").prompt_name if text else None,
        dim=encode.dim,
        similarity=opened.similarity,
        dtype=options.dtype,
        format=options.format,
        shard_size=options.size or _SIZES[opened.kind],
    ).sealed()


def encode_to_folder(
    encode: TextBatches | ImageBatches,
    items: Iterable[tuple[str, Any]],
    folder: Path,
    record: VectorRecord,
    *,
    part: tuple[int, int] = (1, 1),
    total: int | None = None,
    track: Track = silent,
    pace: Pace | None = None,
) -> ShardsReport:
    """Encodes the shards that are not there yet.

    Args:
        encode: what makes vectors of the contents.
        items: id, and text or image, of each; all of them, whatever `part` is.
        folder: made if it is missing, and if there is anything to encode.
        record: of the vectors; must be the one that is there.
        part: (i, n): only every n-th shard, beginning with the i-th; the first is 1.
        total: how many items there are, if that is known.
        track: told of each item that is encoded, or passed over because it is there or another job's.
        pace: is told of each chunk that is encoded.

    Raises:
        DataError: there is nothing to encode.
        InputError: the folder holds vectors of something else.
        OutputError: it can't be written.
        TernarizeError: as `items` and `encode` do; shards that are finished stay.
    """
    coming = cut(items, record.shard_size)
    first = next(coming, None)
    if first is None:
        raise DataError("there is nothing to encode")
    files = open_shards(folder, record)
    report = ShardsReport(0, 0, 0)
    end = 0

    def parts() -> Iterator[_Part]:
        nonlocal end
        for shard in chain([first], coming):
            end = shard.number + 1
            if shard.number % part[1] != part[0] - 1:
                yield _Part(shard)
            elif _is_there(files, shard):
                yield _Part(shard, is_there=True)
            else:
                yield from _cut_to_chunks(encode, shard)

    def done() -> Generator[object, None, None]:
        nonlocal report
        with closing(encoded_chunks(encode, ReadAhead(parts(), 1), lambda held: held[0].rows)) as chunks:
            made: list[np.ndarray] = []
            for (one,), vectors in chunks:
                if not one.rows:
                    report = replace(report, reused=report.reused + one.is_there)
                    yield from one.shard.rows
                    continue
                made.append(vectors)
                yield from one.rows
                if one.is_last:
                    _put(files, one.shard, np.concatenate(made), record)
                    report = replace(report, shards=report.shards + 1, rows=report.rows + len(one.shard.rows))
                    made = []
                if pace is not None:
                    pace.done(len(one.rows))

    with closing(done()) as passing:
        for _ in track(passing, "encoding", total):
            pass
    files.remove_from(end, part)
    return report


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
        files.sweep()
    except OSError as e:
        raise OutputError(f"can't write to {folder}: {e.strerror}", hint="name a writable place with -o") from e
    return files


@dataclass(frozen=True)
class PendingShard:
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


@dataclass(frozen=True)
class _Part:
    """A chunk of a shard's rows, or a shard that is not encoded: it is there already, or another job's.

    Attributes:
        shard: the shard.
        rows: of the chunk; empty if the shard is not encoded.
        is_last: whether these are the shard's last rows.
        is_there: whether the shard was encoded before.
    """

    shard: PendingShard
    rows: Sequence[tuple[str, Any]] = ()
    is_last: bool = False
    is_there: bool = False


def _cut_to_chunks(encode: TextBatches | ImageBatches, shard: PendingShard) -> Iterator[_Part]:
    """Cuts a shard into chunks, in which no rows of another are: so its vectors do not depend on where a job began."""
    left = len(shard.rows)
    for rows in in_chunks(shard.rows, **encode.chunking):
        left -= len(rows)
        yield _Part(shard, rows, is_last=not left)


def encode_shard(
    encode: TextBatches | ImageBatches, files: ShardFiles, record: VectorRecord, shard: PendingShard
) -> bool:
    """Encodes a shard and writes it; False if its vectors were there already.

    Raises:
        OutputError: it can't be written.
    """
    if _is_there(files, shard):
        return False
    with closing(encoded(encode, shard.rows)) as chunks:
        made = [vectors for _, vectors in chunks]
    _put(files, shard, np.concatenate(made), record)
    return True


def _is_there(files: ShardFiles, shard: PendingShard) -> bool:
    """Returns whether a shard was written before; if so, its record says where it now is in the corpus.

    Raises:
        OutputError: the record can't be written.
    """
    there = files.record(shard.number)
    if there is None or there.get("of") != shard.digest:
        return False
    if (there.get("last"), there.get("chain")) != (shard.last, shard.chain):  # others have changed
        with _writing(files, shard):
            files.amend(shard.number, {**there, "last": shard.last, "chain": shard.chain})
    return True


@contextmanager
def _writing(files: ShardFiles, shard: PendingShard) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise OutputError(
            f"can't write shard {shard.number} to {files.folder}: {e.strerror or e}",
            hint="make room, or another place with -o; the same command goes on from here",
        ) from e


def cut(items: Iterable[tuple[str, Any]], size: int) -> Iterator[PendingShard]:
    """The shards of a corpus, one after the other; an item is read ahead to know the last."""
    stream, number, so_far = iter(items), 0, ""
    following = list(islice(stream, 1))
    while following:
        rows = following + list(islice(stream, size - 1))
        following = list(islice(stream, 1))
        digest = _digest(rows)
        so_far = chained(so_far, digest)
        yield PendingShard(number, rows, digest, so_far, not following)
        number += 1


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
    if (folder / "vectors.json").exists():  # of an older version
        read_record(folder)
    if not path.exists():
        # another job may be writing the record just now
        if any(p.name != RECORDS and not p.name.endswith(".partial") for p in folder.iterdir()) and not path.exists():
            raise InputError(f"{folder} holds other files, and no vectors of ternarize", hint="name another with -o")
        path.parent.mkdir(exist_ok=True)
        text = with_checksum(dataclasses.asdict(record), indent=2).encode()
        put_file(path, lambda stream: stream.write(text))
    there = read_record(folder)
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


def _put(files: ShardFiles, shard: PendingShard, vectors: np.ndarray, record: VectorRecord) -> None:
    ids = [identity for identity, _ in shard.rows]
    numbers = _as(vectors, record.dtype)

    def parquet(stream: IO[bytes]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = ("model", "model_sha256", "dtype", "similarity", "normalized")
        about = metadata(**{name: getattr(record, name) for name in names})
        column = pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), numbers.shape[1])
        table = pa.table({"id": pa.array(ids, pa.string()), "vector": column})
        pq.write_table(table.replace_schema_metadata(about), stream)

    contents = (
        {".parquet": parquet}
        if record.format == "parquet"
        else {
            ".npy": lambda stream: np.save(stream, numbers),
            ".ids": lambda stream: stream.write(json.dumps(ids, ensure_ascii=False).encode()),
        }
    )
    with _writing(files, shard):
        files.put(shard.number, contents, rows=len(ids), of=shard.digest, chain=shard.chain, last=shard.last)


def _as(vectors: np.ndarray, dtype: str) -> np.ndarray:
    if dtype != "int8":
        return vectors.astype(DTYPES[dtype])
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    codes: np.ndarray = np.rint(127 * vectors / np.maximum(largest, np.finfo(np.float32).tiny)).astype(np.int8)
    return codes
