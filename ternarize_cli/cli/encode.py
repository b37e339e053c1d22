"""`ternarize encode`: texts or images in, vectors out."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ternarize_cli.cli.options import (
    MANY,
    MAX_BATCH,
    AllowPickle,
    Backend,
    Device,
    Force,
    Json,
    ModelArgument,
    Quiet,
    Threads,
)
from ternarize_cli.cli.output import Output, counted, duration

if TYPE_CHECKING:
    from ternarize_cli.vectors.encode import EncoderOptions
    from ternarize_cli.vectors.vector_shards import ShardOptions

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("encode")(encode)


def encode(
    model: ModelArgument,
    source: Annotated[
        str,
        typer.Argument(
            metavar="[INPUT|-]",
            help="One text per line, or JSONL with `text`; - is stdin. For a model that reads images: a folder of "
            "them, or an IDX or Parquet file.",
        ),
    ] = "-",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE|DIR", help="Where to write; default: stdout, as JSONL."),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="npy|jsonl|parquet", help="Default: by the suffix of FILE; of shards: parquet."
        ),
    ] = None,
    shards: Annotated[
        bool,
        typer.Option("--shards", help="Write numbered shards into a folder; the same command again goes on there."),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Only every N-th shard from the I-th, for N jobs; the first is 1."),
    ] = None,
    shard_size: Annotated[
        int | None,
        typer.Option("--shard-size", min=1, max=MANY, help="Rows of a shard; default: 8,192 texts, 1,024 images."),
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", metavar="fp32|fp16|int8", help="Numbers in shards.")] = "fp32",
    engine: Annotated[
        str, typer.Option("--engine", metavar="local|ray", help="Who encodes shards: this process, or Ray's workers.")
    ] = "local",
    workers: Annotated[int, typer.Option("--workers", min=1, max=10_000, help="Ray: how many workers.")] = 1,
    ray_address: Annotated[
        str | None,
        typer.Option("--ray-address", metavar="ADDRESS", help="Ray: a running cluster; default: one on this machine."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            min=1,
            max=MAX_BATCH,
            help="Texts or images per forward pass; default: texts of like length that make 8,192 tokens, 32 images.",
        ),
    ] = None,
    backend: Backend = "auto",
    device: Device = None,
    threads: Threads = None,
    prompt_name: Annotated[
        str | None, typer.Option("--prompt-name", help="A prompt that the model keeps, e.g. query.")
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize", help="Vectors of length 1, or as pooled; default: as the model does."
        ),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip lines and images that can't be read, and count them.")
    ] = False,
    force: Force = False,
    allow_pickle: AllowPickle = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Encode texts or images with any model.

    Vectors go to a .npy, .jsonl or .parquet file, or as JSONL to stdout. Everything is
    read and written in chunks, in order, so a stream of any length works, and a slow one
    is answered as it comes. With --shards they go to a folder of numbered shards, as
    documents to search (`index build DIR`), from any number of jobs.
    """
    import sys
    import time

    from ternarize_cli.data.corpora import open_corpus
    from ternarize_cli.encoders import loading
    from ternarize_cli.errors import InputError
    from ternarize_cli.storage import files
    from ternarize_cli.vectors.encode import LINGER, EncoderOptions, encode_to_file, encode_to_stream, open_model
    from ternarize_cli.vectors.vector_files import file_format
    from ternarize_cli.vectors.vector_shards import ShardOptions

    out = Output(json_mode=json, quiet=quiet)
    options = EncoderOptions(batch_size, backend, device, threads, prompt_name, normalize, allow_pickle)
    if shards or shard is not None:
        if force:
            raise InputError("there is nothing to force: shards that have changed are done again", hint="no --force")
        job = _Job(
            _part(shard),
            ShardOptions(None, shard_size, dtype, format=format or "parquet"),
            engine,
            workers,
            ray_address,
        )
        _encode_shards(model, source, output, job, options, skip_bad=skip_bad, out=out)
        return
    if shard_size is not None or dtype != "fp32" or (engine, workers, ray_address) != ("local", 1, None):
        raise InputError("--shard-size, --dtype, --engine and --workers are of shards", hint="--shards -o DIR")
    if output is not None:
        files.check_output(output, force=force, folder=False)
    elif json:
        raise InputError("--json would mix the summary with the vectors on stdout", hint="-o FILE for the vectors")

    kind = file_format(output, format)
    if output is None and kind != "jsonl" and (kind == "parquet" or sys.stdout.isatty()):
        raise InputError(f"{kind} can't go to this stdout", hint="-o FILE")
    corpus = open_corpus(source, skip_bad=skip_bad)
    opened = open_model(model, corpus.kind, options)
    if note := loading.pooling_note(opened.folder):
        out.note(note)
    encoder, items = opened.encode, corpus.items
    started = time.perf_counter()
    linger = None if corpus.kind == "image" else LINGER
    how: dict[str, Any] = {"linger": linger, "total": corpus.count, "track": out.track}
    if output is None:
        encode_to_stream(encoder, items, sys.stdout.buffer, kind, **how)
    else:
        encode_to_file(encoder, items, output, kind, force=force, **how)
    seconds = time.perf_counter() - started
    if corpus.skipped.summary:
        out.warn(corpus.skipped.summary)
    if encoder.truncation:
        out.warn(encoder.truncation)
    out.note(f"{encoder.summary} in {seconds:.1f} s" + (f" → {output}" if output else ""))
    out.result(
        {
            "output": str(output),
            "format": kind,
            **encoder.counts,
            "skipped": corpus.skipped.count,
            "seconds": round(seconds, 3),
            "model": model,
            "model_sha256": files.content_hash(opened.folder),
        }
    )


def _part(shard: str | None) -> tuple[int, int]:
    """(i, n) of "i/n"."""
    import re

    from ternarize_cli.errors import InputError

    if shard is None:
        return 1, 1
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", shard)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--shard {shard}: I/N with I from 1 to N", hint="--shard 1/8 is the first of eight jobs")
    return int(found[1]), int(found[2])


@dataclass(frozen=True)
class _Job:
    """Which shards to write, how, and who does it."""

    part: tuple[int, int]
    shards: "ShardOptions"
    engine: str
    workers: int
    ray_address: str | None

    def check(self) -> None:
        """Refuses what does not go together."""
        from ternarize_cli.errors import InputError
        from ternarize_cli.vectors.ray_engine import require_ray
        from ternarize_cli.vectors.vector_folder import DTYPES, FORMATS

        if self.shards.format not in FORMATS:
            raise InputError(f"shards are {' or '.join(FORMATS)}, not {self.shards.format}", hint="--format parquet")
        if self.shards.dtype not in DTYPES:
            raise InputError(f"there is no --dtype {self.shards.dtype}", hint=f"one of {', '.join(DTYPES)}")
        if self.engine not in ("local", "ray"):
            raise InputError(f"there is no --engine {self.engine}", hint="local or ray")
        if self.engine == "ray" and self.part[1] > 1:
            raise InputError("Ray gives out the shards itself", hint="leave --shard out")
        if self.engine != "ray" and (self.workers, self.ray_address) != (1, None):
            raise InputError("--workers and --ray-address are of Ray", hint="--engine ray")
        if self.engine == "ray":
            require_ray()


def _encode_shards(
    model: str,
    source: str,
    output: Path | None,
    job: _Job,
    options: "EncoderOptions",
    *,
    skip_bad: bool,
    out: Output,
) -> None:
    import dataclasses
    import os
    import time

    from ternarize_cli.data.corpora import open_corpus, unique
    from ternarize_cli.data.texts import STDIN
    from ternarize_cli.errors import InputError
    from ternarize_cli.storage import files
    from ternarize_cli.vectors.encode import open_model
    from ternarize_cli.vectors.ray_engine import encode_with_ray
    from ternarize_cli.vectors.vector_shards import encode_to_folder, record_of

    if output is None:
        raise InputError("shards need a folder", hint="-o DIR")
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file, and shards need a folder", hint="name another with -o")
    if not output.exists():
        files.check_output(output, force=False)
    files.check_apart(output, [Path(path) for path in (model, source) if path != STDIN and Path(path).exists()])
    job.check()
    ray = job.engine == "ray"
    corpus = open_corpus(source, skip_bad=skip_bad, documents=True)
    skipped = corpus.skipped
    opened = open_model(model, corpus.kind, options, role="document")
    record = record_of(model, opened, job.shards)
    started = time.perf_counter()
    if ray:
        threads = options.threads or max(1, (os.cpu_count() or 1) // job.workers)
        report, skipped = encode_with_ray(
            source,
            output,
            record,
            encoder=dataclasses.replace(options, threads=threads),
            workers=job.workers,
            gpus=float((options.device or "").startswith("cuda")),
            address=job.ray_address,
            skip_bad=skip_bad,
            track=out.track,
        )
    else:
        again = None if source == STDIN else lambda: open_corpus(source, skip_bad=skip_bad, documents=True).items
        items = unique(corpus.items, corpus.name, again)
        report = encode_to_folder(
            opened.encode, items, output, record, part=job.part, total=corpus.count, track=out.track
        )
    seconds = time.perf_counter() - started
    if skipped.summary:
        out.warn(skipped.summary)
    if opened.encode.truncation:
        out.warn(opened.encode.truncation)
    of = f" of job {job.part[0]}/{job.part[1]}" if job.part[1] > 1 else ""
    there = f"; {report.reused} were there already" if report.reused else ""
    out.note(
        f"{counted(report.shards, 'shard')}{of}, {counted(report.rows, 'vector')} in {duration(seconds)} "
        f"({report.rows / max(seconds, 1e-9):,.0f}/s) → {output}{there}"
    )
    out.hint(f"ternarize index build {output} -o INDEX")
    out.result(
        {
            "output": str(output),
            **dataclasses.asdict(report),
            "skipped": skipped.count,
            "empty": skipped.empty,
            "seconds": round(seconds, 3),
            **dataclasses.asdict(record),
        }
    )
