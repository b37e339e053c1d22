"""`ternarize convert`."""

from pathlib import Path
from typing import Annotated

import typer

from ternarize_cli.cli.options import AllowPickle, Force, Json, ModelArgument, OutputFolder, Quiet, Seed
from ternarize_cli.cli.output import Output, megabytes

__all__ = ["register"]


def convert(
    model: ModelArgument,
    output: OutputFolder = None,
    rule: Annotated[
        str, typer.Option(help="optimal: exact least squares; absmean: the paper's beta * mean|W|.")
    ] = "optimal",
    beta: Annotated[float, typer.Option(help="Threshold parameter of absmean; larger means more zeros.")] = 2.0,
    granularity: Annotated[str, typer.Option(help="What shares a scale: row, tensor, or group:N inputs.")] = "row",
    activations: Annotated[
        int, typer.Option(help="Bits of activations: 8 (per token, dynamic) or 16 (untouched).")
    ] = 8,
    table_bits: Annotated[int, typer.Option(help="Width of embedding tables when packed: 8, 16 or 32.")] = 8,
    skip: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Leave modules of this name as they are; repeatable.")
    ] = None,
    force: Force = False,
    allow_pickle: AllowPickle = False,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Replace the linears of an encoder by ternary ones.

    MODEL becomes a ternary checkpoint in ./NAME-ternary. It trains (`ternarize distill`),
    evaluates as it is, and packs (`ternarize pack`).
    """
    from ternarize_cli.convert import convert as run
    from ternarize_cli.models import model_name, pooling_note, resolve
    from ternarize_cli.scheme import Scheme

    out = Output(json_mode=json, quiet=quiet)
    kind, group_size = Scheme.parse_granularity(granularity)
    scheme = Scheme(rule, beta, kind, group_size, activations, table_bits)
    source = resolve(model, allow_pickle=allow_pickle)
    target = output or Path(f"{model_name(model)}-ternary")
    if (note := pooling_note(source)) is not None:
        out.note(f"note: {note}")
    report = run(
        source,
        target,
        scheme,
        skip=skip or (),
        force=force,
        allow_pickle=allow_pickle,
        seed=seed,
        track=out.track,
        source_name=model_name(model),
    )
    before = sum(layer.bytes_before for layer in report.layers)
    after = sum(layer.bytes_after for layer in report.layers)
    out.table(
        f"{model_name(model)}: {len(report.layers)} linears, rule {rule}, one scale per {granularity}",
        ["linear", "out × in", "error", "zeros", "bytes", "packed"],
        [
            (x.name, f"{x.shape[0]} × {x.shape[1]}", f"{x.error:.3f}", f"{x.zeros:.1%}", x.bytes_before, x.bytes_after)
            for x in report.layers
        ]
        + [("all linears", "", "", "", megabytes(before), megabytes(after))],
        caption="error: ‖W − s·c‖ / ‖W‖; packed: codes and scales at 2 bits",
    )
    for name, reason in report.kept.items():
        out.note(f"kept {name}: {reason}")
    if report.dropped:
        out.note(f"dropped, the encoder has no place for them: {', '.join(report.dropped)}")
    out.text(f"wrote {target}")
    out.hint(f"ternarize distill {target} --teacher {model} --data texts.txt, or at once: ternarize pack {target}")
    out.result(
        {
            "output": str(target),
            "layers": [vars(layer) for layer in report.layers],
            "kept": report.kept,
            "dropped": list(report.dropped),
            "bytes_linears_before": before,
            "bytes_linears_packed": after,
            "quantization_config": report.artifact.to_dict(),
        }
    )


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("convert")(convert)
