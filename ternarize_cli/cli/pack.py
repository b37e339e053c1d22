"""Defines `ternarize pack`, which turns a ternary checkpoint into a packed model."""

from pathlib import Path
from typing import Annotated

import typer

from ternarize_cli.cli.derived import derived
from ternarize_cli.cli.options import Force, Json, NoCheck, Quiet, output_folder
from ternarize_cli.cli.output import Output, megabytes
from ternarize_cli.compress.options import ImportOptions
from ternarize_cli.errors import quoted

__all__ = ["register"]


def _pack(
    student: Annotated[
        str, typer.Argument(metavar="STUDENT", help="A ternary checkpoint, or a model with few bits by others.")
    ],
    output: Annotated[Path | None, output_folder("./NAME-packed")] = None,
    codec: Annotated[
        str | None,
        typer.Option(help="Packing of codes. Ternary: 2bit (default) or base3 (1.6 bits); other levels have one each."),
    ] = None,
    no_check: NoCheck = False,
    *,
    options: ImportOptions,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Freeze a ternary checkpoint into a model of 2-bit codes.

    STUDENT becomes ./NAME-packed; with `--codec base3` its codes have 1.6 bits. A model that others
    have quantised (bitnet of transformers, compressed-tensors, torchao) becomes a packed model with
    the same values.
    """
    from ternarize_cli.compress.session import pack
    from ternarize_cli.encoders.loading import model_name
    from ternarize_cli.encoders.modalities import modalities_of
    from ternarize_cli.format.codecs import codec_for
    from ternarize_cli.model_folder.model_kind import kind_of

    out = Output(json_mode=json, quiet=quiet)
    name = model_name(student)
    target = output or Path(f"{name.removesuffix('-ternary').removesuffix('-distilled')}-packed")
    imported = None if options == ImportOptions() else options
    report = pack(student, target, codec=codec, check=not no_check, force=force, imported=imported, track=out.track)
    layout = codec_for(report.artifact.scheme.levels, report.artifact.codec)
    others = "; int4 ones 4 bits" if report.artifact.module_levels else ""
    out.table(
        f"{name}: packed",
        ["part", "bytes", "share"],
        [
            (part, megabytes(count), f"{count / report.bytes_packed:.0%}")
            for part, count in (
                (f"linears, codes ({layout.name}, {layout.bits:g} bits{others}) and scales", report.bytes_linears),
                (f"embedding tables, {report.artifact.scheme.table_bits}-bit", report.bytes_tables),
                ("everything else", report.bytes_other),
                ("weights on disk", report.bytes_packed),
            )
        ],
        caption=f"the checkpoint's weights: {megabytes(report.bytes_source)}; zero codes: {report.zeros:.1%}",
    )
    out.text(f"wrote {target}")
    encode = f"echo some text | ternarize encode {quoted(target)}"
    if "text" not in modalities_of(target):
        encode = f"ternarize encode {quoted(target)} PICTURES"
    out.hint(
        {
            "encoder": f"ternarize bench {quoted(target)}, or: {encode}",
            "cross-encoder": f"ternarize eval {quoted(target)} --pairs FILE",
            "sparse": f"sentence_transformers.SparseEncoder({str(target)!r}).encode(texts)",
        }[kind_of(target)]
    )
    values = {k: v for k, v in vars(report).items() if k != "artifact"}
    out.result({"output": str(target), **values, "quantization_config": report.artifact.to_dict()})


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("pack")(derived(_pack))
