"""`ternarize convert`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ternarize_cli.cli.derived import derived
from ternarize_cli.cli.options import MANY, Device, Force, Json, ModelArgument, Quiet, Threads, output_folder
from ternarize_cli.cli.output import Output, megabytes
from ternarize_cli.compress.options import ConvertOptions

__all__ = ["register"]

_ENOUGH = 20_000


def _convert(
    model: ModelArgument,
    output: Annotated[Path | None, output_folder("./NAME-ternary")] = None,
    rule: Annotated[
        str, typer.Option(help="optimal: exact least squares; absmean: the paper's beta * mean|W|.")
    ] = "optimal",
    beta: Annotated[
        float | None, typer.Option(help="Threshold parameter of absmean; larger means more zeros; default 2.")
    ] = None,
    granularity: Annotated[str, typer.Option(help="What shares a scale: row, tensor, or group:N inputs.")] = "row",
    activations: Annotated[
        Literal[8, 16], typer.Option(help="Bits of activations: 8 (per token, dynamic) or 16 (untouched).")
    ] = 8,
    table_bits: Annotated[Literal[4, 8, 16, 32], typer.Option(help="Bits of embedding tables when packed.")] = 8,
    levels: Annotated[
        str, typer.Option(help="Grid of the weights: ternary, binary, int2 (four levels) or int4.")
    ] = "ternary",
    *,
    options: ConvertOptions,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE|DIR|DATASET", help="Fit codes and scales to these texts or images; repeatable."),
    ] = None,
    calibration_samples: Annotated[
        int | None,
        typer.Option(min=16, max=MANY, help="At most so many, over all sources; default 8192 texts or 256 images."),
    ] = None,
    calibration_tokens: Annotated[
        int | None,
        typer.Option(
            min=1000, max=MANY, help="About so many tokens of text, default 120000; time and memory grow with it."
        ),
    ] = None,
    device: Device = None,
    threads: Threads = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing; print the plan and exact bytes.")] = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Replace the linears of an encoder by ternary ones.

    MODEL becomes a ternary checkpoint in ./NAME-ternary. It trains (`ternarize distill`),
    evaluates as it is, and packs (`ternarize pack`).
    """
    from ternarize_cli.compress.calibrate import DEFAULT_TOKENS, Calibration
    from ternarize_cli.compress.convert import convert
    from ternarize_cli.encoders.loading import model_name, pooling_note, resolve
    from ternarize_cli.format.codecs import codec_for
    from ternarize_cli.format.scheme import Scheme

    out = Output(json_mode=json, quiet=quiet)
    kind, group_size = Scheme.parse_granularity(granularity)
    scheme = Scheme(rule, beta, kind, group_size, activations, table_bits, levels)
    calibration = None
    if calibrate:
        calibration = Calibration(
            tuple(calibrate), calibration_samples, calibration_tokens or DEFAULT_TOKENS, device=device, threads=threads
        )
    elif calibration_samples or calibration_tokens:
        out.warn("--calibration-samples and --calibration-tokens do nothing without --calibrate")
    source = resolve(model, allow_pickle=options.allow_pickle)
    target = output or Path(f"{model_name(model)}-ternary")
    if (note := pooling_note(source)) is not None:
        out.note(f"note: {note}")
    if dry_run:
        from ternarize_cli.cli.dry_run import print_plan
        from ternarize_cli.compress.dry_run import dry_run as plan

        print_plan(out, plan(source, scheme, options, calibration=calibration, track=out.track), scheme, model, target)
        return
    name = model_name(model)
    report = convert(
        source, target, scheme, options, calibration=calibration, force=force, track=out.track, source_name=name
    )
    before = sum(layer.bytes_before for layer in report.layers)
    after = sum(layer.bytes_after for layer in report.layers)
    way = "calibrated" if calibrate else f"rule {rule}"
    caption = f"error: ‖W − s·c‖ / ‖W‖; packed: codes ({codec_for(levels).name}) and scales"
    if calibrate:
        caption = f"missed: of the wanted outputs' standard deviation, on the calibration data; {caption}"
    out.table(
        f"{name}: {len(report.layers)} linears, {levels}, {way}, one scale per {granularity}",
        ["linear", "out × in", *(["missed"] if calibrate else []), "error", "zeros", "bytes", "packed"],
        [
            (
                x.name,
                f"{x.shape[0]} × {x.shape[1]}",
                *(["" if x.output_error is None else f"{x.output_error:.3f}"] if calibrate else []),
                f"{x.error:.3f}",
                f"{x.zeros:.1%}",
                x.bytes_before,
                x.bytes_after,
            )
            for x in report.layers
        ]
        + [("all linears", *([""] if calibrate else []), "", "", "", megabytes(before), megabytes(after))],
        caption=caption,
    )
    if calibrate and (missing := [x.name for x in report.layers if x.output_error is None]):
        out.warn(f"the calibration data does not reach {', '.join(missing)}: rounded by the rule {rule}")
    if calibration and (data := report.artifact.calibration) and (data.tokens or _ENOUGH) < _ENOUGH:
        limit = "--calibration-tokens allows" if calibration.tokens < _ENOUGH else "there were"
        out.warn(f"{limit} only {data.tokens:,} tokens of text to calibrate on; {_ENOUGH:,} or more keep more")
    for excluded, reason in report.plan.excluded.items():
        out.note(f"excluded {excluded}: {reason}")
    for other, what in report.plan.others.items():
        out.note(f"kept {other}: {what}")
    if report.plan.dropped:
        out.note(f"dropped, the encoder has no place for them: {', '.join(report.plan.dropped)}")
    for note in report.notes:
        out.note(f"note: {note}")
    if (kept := report.vocabulary) is not None:
        out.text(
            f"vocabulary: {len(kept.ids):,} of {kept.rows:,} tokens kept, the table's {megabytes(kept.bytes_before)} "
            f"are {megabytes(kept.bytes_after)}; the corpus is split as before"
        )
    out.text(f"wrote {target}")
    from ternarize_cli.encoders.modalities import modalities_of

    if "image" in modalities_of(source):
        out.hint(f"ternarize pack {target}, and eval the packed model with --against {model} --images PATH")
    elif calibrate:
        out.hint(f"ternarize pack {target}, and eval the packed model with --against {model}")
    else:
        out.hint(f"ternarize distill {target} --teacher {model} --data texts.txt, or at once: ternarize pack {target}")
    out.result(
        {
            "output": str(target),
            "layers": [vars(layer) for layer in report.layers],
            **report.plan.to_json(),
            "bytes_linears_before": before,
            "bytes_linears_packed": after,
            "vocabulary": kept.summary() if kept else None,
            "quantization_config": report.artifact.to_dict(),
        }
    )


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("convert")(derived(_convert))
