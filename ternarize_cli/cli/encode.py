"""`ternarize encode`: texts or images in, vectors out."""

from pathlib import Path
from typing import Annotated

import typer

from ternarize_cli.cli.options import AllowPickle, Backend, Device, Force, Json, ModelArgument, Quiet, Threads
from ternarize_cli.cli.output import Output

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
        int | None, typer.Option("--shard-size", min=1, help="Rows of a shard; default: 8,192 texts, 1,024 images.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", metavar="fp32|fp16|int8", help="Numbers in shards.")] = "fp32",
    engine: Annotated[
        str, typer.Option("--engine", metavar="local|ray", help="Who encodes shards: this process, or Ray's workers.")
    ] = "local",
    workers: Annotated[int, typer.Option("--workers", min=1, help="Ray: how many workers.")] = 1,
    ray_address: Annotated[
        str | None,
        typer.Option("--ray-address", metavar="ADDRESS", help="Ray: a running cluster; default: one on this machine."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            min=1,
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

    from ternarize_cli import files, models
    from ternarize_cli.errors import InputError

    out = Output(json_mode=json, quiet=quiet)
    if shards or shard is not None:
        if force:
            raise InputError("there is nothing to force: shards that have changed are done again", hint="no --force")
        _encode_shards(
            model,
            source,
            output,
            format=format or "parquet",
            part=_part(shard),
            shard_size=shard_size,
            dtype=dtype,
            batch_size=batch_size,
            backend=backend,
            device=device,
            threads=threads,
            normalize=normalize,
            prompt_name=prompt_name,
            allow_pickle=allow_pickle,
            engine=engine,
            workers=workers,
            ray_address=ray_address,
            out=out,
        )
        return
    if shard_size is not None or dtype != "fp32" or (engine, workers, ray_address) != ("local", 1, None):
        raise InputError("--shard-size, --dtype, --engine and --workers are of shards", hint="--shards -o DIR")
    if output is not None:
        files.check_output(output, force=force, folder=False)
    elif json:
        raise InputError("--json would mix the summary with the vectors on stdout", hint="-o FILE for the vectors")

    from ternarize_cli.index.encode import (
        LINGER,
        encode_to_file,
        encode_to_stream,
        image_folder,
        open_input,
        text_folder,
    )
    from ternarize_cli.index.encoders import ImageEncoder, TextEncoder
    from ternarize_cli.index.vectors import file_format

    kind = file_format(output, format)
    if output is None and kind != "jsonl" and (kind == "parquet" or sys.stdout.isatty()):
        raise InputError(f"{kind} can't go to this stdout", hint="-o FILE")
    items, pictures = open_input(source)
    if pictures and prompt_name is not None:
        raise InputError(f"--prompt-name is for text, and {source} holds images", hint="leave it out")
    folder = (
        image_folder(model, allow_pickle=allow_pickle) if pictures else text_folder(model, allow_pickle=allow_pickle)
    )
    if note := models.pooling_note(folder):
        out.note(note)
    loaded = models.load_encoder(folder, backend=backend, device=device, threads=threads, allow_pickle=allow_pickle)
    encoder: ImageEncoder | TextEncoder
    if pictures:
        encoder = ImageEncoder(loaded, normalize=normalize, batch_size=batch_size)
    else:
        encoder = TextEncoder(loaded, prompt_name=prompt_name, normalize=normalize, batch_size=batch_size)
    started = time.perf_counter()
    linger = None if pictures else LINGER
    if output is None:
        encode_to_stream(encoder, items, sys.stdout.buffer, kind, linger=linger, track=out.track)
    else:
        encode_to_file(encoder, items, output, kind, force=force, linger=linger, track=out.track)
    seconds = time.perf_counter() - started
    if encoder.truncation:
        out.warn(encoder.truncation)
    out.note(f"{encoder.summary} in {seconds:.1f} s" + (f" → {output}" if output else ""))
    out.result(
        {
            "output": str(output),
            "format": kind,
            **encoder.counts,
            "seconds": round(seconds, 3),
            "model": model,
            "model_sha256": files.content_hash(folder),
        }
    )


def _part(shard: str | None) -> tuple[int, int]:
    """(i, n) of "i/n"."""
    import re

    from ternarize_cli.errors import InputError

    if shard is None:
        return 1, 1
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--shard {shard}: I/N with I from 1 to N", hint="--shard 1/8 is the first of eight jobs")
    return int(found[1]), int(found[2])


def _encode_shards(
    model: str,
    source: str,
    output: Path | None,
    *,
    format: str,
    part: tuple[int, int],
    shard_size: int | None,
    dtype: str,
    batch_size: int | None,
    backend: str,
    device: str | None,
    threads: int | None,
    normalize: bool | None,
    prompt_name: str | None,
    allow_pickle: bool,
    engine: str,
    workers: int,
    ray_address: str | None,
    out: Output,
) -> None:
    import dataclasses
    import os
    import time
    from typing import Any

    from ternarize_cli import files
    from ternarize_cli.errors import InputError
    from ternarize_cli.index.ray_engine import encode_with_ray, require_ray
    from ternarize_cli.index.vector_folder import DTYPES, FORMATS, encode_to_folder, open_encoder

    if output is None:
        raise InputError("shards need a folder", hint="-o DIR")
    if format not in FORMATS:
        raise InputError(f"shards are {' or '.join(FORMATS)}, not {format}", hint="--format parquet")
    if dtype not in DTYPES:
        raise InputError(f"there is no --dtype {dtype}", hint=f"one of {', '.join(DTYPES)}")
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file, and shards need a folder", hint="name another with -o")
    if not output.exists():
        files.check_output(output, force=False)
    if engine not in ("local", "ray"):
        raise InputError(f"there is no --engine {engine}", hint="local or ray")
    if engine == "ray" and part[1] > 1:
        raise InputError("Ray gives out the shards itself", hint="leave --shard out")
    if engine != "ray" and (workers, ray_address) != (1, None):
        raise InputError("--workers and --ray-address are of Ray", hint="--engine ray")
    if engine == "ray":
        require_ray()
    options: dict[str, Any] = {
        "format": format,
        "dtype": dtype,
        "shard_size": shard_size,
        "batch_size": batch_size,
        "backend": backend,
        "device": device,
        "normalize": normalize,
        "prompt_name": prompt_name,
        "allow_pickle": allow_pickle,
    }
    items, encoder, record = open_encoder(model, source, threads=threads, **options)
    started = time.perf_counter()
    if engine == "ray":
        report = encode_with_ray(
            record.model_path,
            source,
            output,
            record,
            options=options,
            workers=workers,
            threads=threads or max(1, (os.cpu_count() or 1) // workers),
            gpus=float((device or "").startswith("cuda")),
            address=ray_address,
            track=out.track,
        )
    else:
        report = encode_to_folder(encoder, items, output, record, part=part, track=out.track)
    seconds = time.perf_counter() - started
    if encoder.truncation:
        out.warn(encoder.truncation)
    of = f" of job {part[0]}/{part[1]}" if part[1] > 1 else ""
    there = f"; {report.reused} were there already" if report.reused else ""
    out.note(
        f"{report.shards} shards{of}, {report.rows:,} vectors in {seconds:.1f} s "
        f"({report.rows / max(seconds, 1e-9):,.0f}/s) → {output}{there}"
    )
    out.hint(f"ternarize index build {output} -o INDEX")
    out.result(
        {
            "output": str(output),
            **dataclasses.asdict(report),
            "seconds": round(seconds, 3),
            **dataclasses.asdict(record),
        }
    )
