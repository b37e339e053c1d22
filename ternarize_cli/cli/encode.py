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
        typer.Option("--output", "-o", metavar="FILE", help="Where to write; default: stdout, as JSONL."),
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", metavar="npy|jsonl|parquet", help="Default: by the suffix of FILE.")
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
    is answered as it comes.
    """
    import sys
    import time

    from ternarize_cli import files, models
    from ternarize_cli.errors import InputError

    out = Output(json_mode=json, quiet=quiet)
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
