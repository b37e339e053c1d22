"""From the names of a model and a corpus to vectors in a file, a stream or a folder of shards: `ternarize encode`."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from ternarize_cli.data.corpora import Skipped, open_corpus, reopened, unique
from ternarize_cli.encoders.loading import device_for, pooling_note
from ternarize_cli.errors import DataError, InputError
from ternarize_cli.progress import Track, silent
from ternarize_cli.storage import digests, files
from ternarize_cli.vectors.encode import LINGER, encode_to_file, encode_to_stream, open_model, reads
from ternarize_cli.vectors.options import EncoderOptions, ShardOptions
from ternarize_cli.vectors.pace import Pace
from ternarize_cli.vectors.ray_engine import encode_with_ray, require_ray
from ternarize_cli.vectors.vector_folder import DTYPES, FORMATS, VectorRecord, metadata
from ternarize_cli.vectors.vector_shards import ShardsReport, encode_to_folder, record_of

__all__ = ["EncodingReport", "ShardingReport", "encode", "encode_shards"]


@dataclass(frozen=True)
class EncodingReport:
    """How the encoding of a corpus into a file or stream went.

    Attributes:
        counts: vectors, dimensions and, of texts, tokens and texts that were cut, by the names that --json has.
        summary: the counts in words.
        truncation: a sentence on texts that were cut; None if none was.
        skipped: what of the corpus was left out.
        repeated: a sentence on ids that occur more than once, with an example; None if there are none.
        seconds: from the loaded model to the last vector.
        pace: the start, and the rate after it.
        model_sha256: content hash of the model.
    """

    counts: dict[str, Any]
    summary: str
    truncation: str | None
    skipped: Skipped
    repeated: str | None
    seconds: float
    pace: Pace
    model_sha256: str


@dataclass(frozen=True)
class ShardingReport:
    """How the encoding of a corpus into shards went.

    Attributes:
        work: shards and rows that were encoded, and shards that were there already.
        record: of the vectors, as the folder keeps it.
        part: (i, n): this was the i-th of n jobs.
        truncation: a sentence on texts that were cut; None if none was.
        skipped: what of the corpus was left out.
        seconds: from the loaded model to the last shard.
        pace: the start, and the rate after it; without numbers where Ray's workers encoded.
    """

    work: ShardsReport
    record: VectorRecord
    part: tuple[int, int]
    truncation: str | None
    skipped: Skipped
    seconds: float
    pace: Pace


def encode(
    model: str,
    source: str,
    output: Path | IO[bytes],
    kind: str,
    options: EncoderOptions = EncoderOptions(),
    *,
    skip_bad: bool = False,
    force: bool = False,
    say: Callable[[str], None] = lambda text: None,
    track: Track = silent,
    began: float | None = None,
) -> EncodingReport:
    """Encodes a corpus into a file, or a stream of bytes, in its order.

    Args:
        model: MODEL.
        source: as `corpora.open_corpus`.
        output: a file to write, atomically, or a stream.
        kind: "npy", "jsonl" or "parquet".
        options: how the model is loaded and used.
        skip_bad: skip what of the corpus can't be read.
        force: replace an existing file.
        say: is told how the model's vectors come about where its folder does not say it.
        track: progress over texts or images.
        began: the time (`time.time`) from which the start is counted; None is now.

    Raises:
        DataError: the corpus can't be read, or a text has a field for its id that is null, NaN or empty.
        InputError: the file would replace the model, a file of its folder, or what is encoded.
        OutputError, OutputExistsError: the file can't be written, or exists and `force` is False.
        TernarizeError: as `encode.open_model`.
    """
    pace = Pace(began)
    corpus = open_corpus(source, skip_bad=skip_bad, reads=reads(model, options))
    opened = open_model(model, corpus.kind, options)
    if note := pooling_note(opened.folder):
        say(note)
    encoder, digest = opened.encode, digests.content_hash(opened.folder)
    about = metadata(
        model=model,
        model_sha256=digest,
        dtype="fp32",
        similarity=opened.similarity,
        normalized=options.normalize,
    )
    started = time.perf_counter()
    twice: list[DataError] = []
    again = reopened(source, skip_bad=skip_bad, reads=lambda: (corpus.kind,))
    linger = LINGER if corpus.kind == "text" and again is None else None  # a file's chunks are whole
    how: dict[str, Any] = {"linger": linger, "total": corpus.count, "track": track, "about": about, "pace": pace}
    items = unique(corpus.items, corpus.name, again, on_twice=twice.append)
    if isinstance(output, Path):
        encode_to_file(encoder, items, output, kind, force=force, inputs=files.existing(model, source), **how)
    else:
        encode_to_stream(encoder, items, output, kind, **how)
    seconds = time.perf_counter() - started
    repeated = str(twice[0]) if twice else None
    return EncodingReport(
        encoder.counts, encoder.summary, encoder.truncation, corpus.skipped, repeated, seconds, pace, digest
    )


def encode_shards(
    model: str,
    source: str,
    folder: Path,
    shards: ShardOptions = ShardOptions(),
    options: EncoderOptions = EncoderOptions(),
    *,
    skip_bad: bool = False,
    track: Track = silent,
    began: float | None = None,
) -> ShardingReport:
    """Encodes a corpus into numbered shards of a folder; those that are there already stay.

    Args:
        model: MODEL.
        source: as `corpora.open_corpus`.
        folder: made if it is missing.
        shards: which of them, how they are written, and who works.
        options: how the model is loaded and used.
        skip_bad: skip what of the corpus can't be read.
        track: progress over texts or images.
        began: the time (`time.time`) from which the start is counted; None is now.

    Raises:
        InputError: options that do not go together, a folder that is a file, or that holds vectors of something else.
        UnavailableError: Ray is asked for and not installed.
        DataError: the corpus can't be read, or is empty.
        OutputError: the folder can't be written.
        TernarizeError: as `encode.open_model`.
    """
    pace = Pace(began)
    part = shards.part
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, and shards need a folder", hint="name another with -o")
    if not folder.exists():
        files.check_output(folder, force=False)
    files.check_apart(folder, files.existing(model, source))
    _check(shards)
    corpus = open_corpus(source, skip_bad=skip_bad, documents=True, reads=reads(model, options))
    skipped = corpus.skipped
    opened = open_model(model, corpus.kind, options, role="document")
    record = record_of(model, opened, shards)
    started = time.perf_counter()
    if shards.engine == "ray":
        threads = options.threads or max(1, (os.cpu_count() or 1) // shards.workers)
        on_gpu = device_for(options.backend, options.device).startswith("cuda")
        work, skipped = encode_with_ray(
            source,
            folder,
            record,
            # Ray shows each worker the one GPU that it gave it, which is the first there
            encoder=replace(options, threads=threads, device="cuda" if on_gpu else options.device),
            workers=shards.workers,
            gpus=float(on_gpu),
            address=shards.ray_address,
            skip_bad=skip_bad,
            track=track,
        )
    else:
        again = reopened(source, skip_bad=skip_bad, documents=True, reads=lambda: (corpus.kind,))
        items = unique(corpus.items, corpus.name, again)
        work = encode_to_folder(
            opened.encode, items, folder, record, part=part, total=corpus.count, track=track, pace=pace
        )
    seconds = time.perf_counter() - started
    return ShardingReport(work, record, part, opened.encode.truncation, skipped, seconds, pace)


def _check(shards: ShardOptions) -> None:
    """Checks the options of shards against each other, and that Ray is installed if it is asked for."""
    if shards.format not in FORMATS:
        raise InputError(f"shards are {' or '.join(FORMATS)}, not {shards.format}", hint="--format parquet")
    if shards.dtype not in DTYPES:
        raise InputError(f"there is no --dtype {shards.dtype}", hint=f"one of {', '.join(DTYPES)}")
    if shards.engine not in ("local", "ray"):
        raise InputError(f"there is no --engine {shards.engine}", hint="local or ray")
    if shards.engine == "ray" and shards.part[1] > 1:
        raise InputError("Ray gives out the shards itself", hint="leave --shard out")
    if shards.engine != "ray" and (shards.workers, shards.ray_address) != (1, None):
        raise InputError("--workers and --ray-address are of Ray", hint="--engine ray")
    if shards.engine == "ray":
        require_ray()
