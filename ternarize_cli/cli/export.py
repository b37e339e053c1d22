"""Defines `ternarize export`, which writes a packed model in a form that runs without ternarize."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ternarize_cli.cli.derived import derived
from ternarize_cli.cli.options import Force, Json, ModelArgument, Quiet, Revision, output_folder
from ternarize_cli.cli.output import Output, megabytes
from ternarize_cli.export.options import ExportOptions

__all__ = ["register"]


def _export(
    model: ModelArgument,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="wheel|c|onnx|openvino|gguf|dense|compressed-tensors",
            help="wheel: a package for pip; c: a folder for programs in C; onnx, openvino: one for that runtime; "
            "gguf: one for llama.cpp; dense, compressed-tensors: checkpoints for transformers.",
        ),
    ],
    output: Annotated[Path | None, output_folder("./NAME-FORMAT")] = None,
    *,
    options: ExportOptions,
    revision: Revision = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a packed model in a form that runs without ternarize.

    A wheel holds the model and all that runs it but NumPy and tokenizers: `pip install` it,
    then `from NAME import encode`. The format c is a header, a library and the weights. The
    format onnx opens in onnxruntime, sentence-transformers and transformers.js, openvino in
    OpenVINO and sentence-transformers, gguf in llama.cpp; dense, a checkpoint in floating point,
    and compressed-tensors, one with integers of 2 bits, in transformers. They are compared there
    with the packed model, and export.json says how near they are.
    """
    from ternarize_cli.encoders.hub import pinned
    from ternarize_cli.encoders.loading import model_name
    from ternarize_cli.export.session import export

    out = Output(json_mode=json, quiet=quiet)
    model = pinned(model, revision)
    target = output or Path(f"{model_name(model)}-{to}")
    made = export(model, target, to=to, options=options, force=force, say=out.note)
    for path, size in made.files.items():
        out.text(f"wrote {path} ({megabytes(size)})")
    if found := made.facts.get("check"):
        out.text(_described(found))
    out.hint(made.hint)
    files = [{"path": str(path), "bytes": size} for path, size in made.files.items()]
    out.result({"output": str(target), "format": to, "files": files, **made.facts})
    made.check_gates()


def _described(check: Mapping[str, Any]) -> str:
    """Says in a line or two what the check of an export has found."""
    if "unchecked" in check:
        return f"not compared with the packed model: {check['unchecked']}"
    lines = [
        f"{check['runtime']}: mean cosine to the packed model {check['mean_cosine']:.4f}, lowest "
        f"{check['lowest_cosine']:.4f} ({check['count']} {check['inputs']})"
    ]
    if check.get("tokens_differ"):
        lines.append(f"warning: it makes other tokens of {check['tokens_differ']} of these texts")
    for shape, times in check["milliseconds"].items():
        lines.append(f"{shape}: " + ", ".join(f"{name} {value:.1f} ms" for name, value in times.items()))
    return "\n".join(lines)


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("export")(derived(_export))
