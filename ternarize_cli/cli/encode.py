"""`ternarize encode`: texts in, vectors out."""

from pathlib import Path
from typing import Annotated

import typer

from ternarize_cli.cli.options import Backend, Device, Force, Json, ModelArgument, Quiet, Threads

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("encode")(encode)


def encode(
    model: ModelArgument,
    source: Annotated[
        str, typer.Argument(metavar="[INPUT|-]", help="One text per line, or JSONL with `text`; - is stdin.")
    ] = "-",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to write; default: stdout, as JSONL."),
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", metavar="npy|jsonl|parquet", help="Default: by the suffix of FILE.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Texts per forward pass.")] = 32,
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
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Encode texts with any model.

    Vectors go to a .npy, .jsonl or .parquet file, or as JSONL to stdout. Texts are
    read and written in chunks of 1,024, in order, so a stream of any length works.
    """
    import sys
    import time

    from ternarize_cli import files, models
    from ternarize_cli.cli.output import Output
    from ternarize_cli.errors import InputError

    out = Output(json_mode=json, quiet=quiet)
    if output is not None:
        files.check_output(output, force=force, folder=False)
    elif json:
        raise InputError("--json would mix the summary with the vectors on stdout", hint="-o FILE for the vectors")

    from ternarize_cli.index.encode import TextEncoder, encode_to_file, encode_to_stream, load_text_encoder, text_folder
    from ternarize_cli.index.vectors import file_format
    from ternarize_cli.texts import read_texts

    kind = file_format(output, format)
    if output is None and kind != "jsonl" and (kind == "parquet" or sys.stdout.isatty()):
        raise InputError(f"{kind} can't go to this stdout", hint="-o FILE")
    texts = read_texts(source)
    folder = text_folder(model)
    if note := models.pooling_note(folder):
        out.note(note)
    encoder = TextEncoder(
        load_text_encoder(folder, backend=backend, device=device, threads=threads),
        prompt_name=prompt_name,
        normalize=normalize,
        batch_size=batch_size,
    )
    started = time.perf_counter()
    documents = out.track(texts, "encoding")
    if output is None:
        encode_to_stream(encoder, documents, sys.stdout.buffer, kind)
    else:
        encode_to_file(encoder, documents, output, kind, force=force)
    seconds = time.perf_counter() - started
    if encoder.truncation:
        out.warn(encoder.truncation)
    out.note(f"{encoder.texts} texts, {encoder.tokens} tokens in {seconds:.1f} s" + (f" → {output}" if output else ""))
    out.result(
        {
            "output": str(output),
            "format": kind,
            "count": encoder.texts,
            "dim": encoder.dim,
            "tokens": encoder.tokens,
            "truncated": encoder.truncated,
            "seconds": round(seconds, 3),
            "model": model,
            "model_sha256": files.content_hash(folder),
        }
    )
