"""`ternarize convert`."""

from pathlib import Path
from typing import Annotated

import typer

from ternarize_cli.cli.options import (
    MANY,
    AllowPickle,
    Device,
    Force,
    Json,
    ModelArgument,
    OutputFolder,
    Quiet,
    Seed,
    Threads,
)
from ternarize_cli.cli.output import Output, megabytes

__all__ = ["register"]

_ENOUGH = 20_000


def _convert(
    model: ModelArgument,
    output: OutputFolder = None,
    rule: Annotated[
        str, typer.Option(help="optimal: exact least squares; absmean: the paper's beta * mean|W|.")
    ] = "optimal",
    beta: Annotated[
        float | None, typer.Option(help="Threshold parameter of absmean; larger means more zeros; default 2.")
    ] = None,
    granularity: Annotated[str, typer.Option(help="What shares a scale: row, tensor, or group:N inputs.")] = "row",
    activations: Annotated[
        int, typer.Option(min=1, max=32, help="Bits of activations: 8 (per token, dynamic) or 16 (untouched).")
    ] = 8,
    table_bits: Annotated[
        int, typer.Option(min=1, max=32, help="Width of embedding tables when packed: 4, 8, 16 or 32.")
    ] = 8,
    levels: Annotated[
        str, typer.Option(help="Grid of the weights: ternary, binary, int2 (four levels) or int4.")
    ] = "ternary",
    skip: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Leave modules of this name as they are; repeatable.")
    ] = None,
    keep_dense: Annotated[
        bool, typer.Option("--keep-dense", help="Leave the Dense modules of a sentence-transformers model as they are.")
    ] = False,
    trim_vocabulary: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Keep only the tokens that these texts use; repeatable, folders too."),
    ] = None,
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing; print the plan, exact bytes and an estimate of the time.")
    ] = False,
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
    from ternarize_cli.compress.calibrate import DEFAULT_TOKENS, Calibration
    from ternarize_cli.compress.convert import convert as run
    from ternarize_cli.encoders.loading import model_name, pooling_note, resolve
    from ternarize_cli.format.codecs import codec_for
    from ternarize_cli.format.scheme import Scheme

    out = Output(json_mode=json, quiet=quiet)
    kind, group_size = Scheme.parse_granularity(granularity)
    scheme = Scheme(rule, 2.0 if beta is None else beta, kind, group_size, activations, table_bits, levels)
    if beta is not None and rule != "absmean":
        out.warn(f"--beta is the threshold of --rule absmean; the rule {rule} does not use it")
    calibration = None
    if calibrate:
        calibration = Calibration(
            tuple(calibrate), calibration_samples, calibration_tokens or DEFAULT_TOKENS, device=device, threads=threads
        )
    elif calibration_samples or calibration_tokens:
        out.warn("--calibration-samples and --calibration-tokens do nothing without --calibrate")
    source = resolve(model, allow_pickle=allow_pickle)
    target = output or Path(f"{model_name(model)}-ternary")
    if (note := pooling_note(source)) is not None:
        out.note(f"note: {note}")
    if dry_run:
        from ternarize_cli.cli.dry_run import print_plan
        from ternarize_cli.compress.dry_run import dry_run as plan

        planned = plan(
            source,
            scheme,
            skip=skip or (),
            keep_dense=keep_dense,
            trim=trim_vocabulary or (),
            calibration=calibration,
            allow_pickle=allow_pickle,
            track=out.track,
        )
        print_plan(out, planned, scheme, model, target, calibrating=calibration is not None)
        return
    report = run(
        source,
        target,
        scheme,
        skip=skip or (),
        keep_dense=keep_dense,
        trim=trim_vocabulary or (),
        calibration=calibration,
        force=force,
        allow_pickle=allow_pickle,
        seed=seed,
        track=out.track,
        source_name=model_name(model),
    )
    before = sum(layer.bytes_before for layer in report.layers)
    after = sum(layer.bytes_after for layer in report.layers)
    way = "calibrated" if calibrate else f"rule {rule}"
    caption = f"error: ‖W − s·c‖ / ‖W‖; packed: codes ({codec_for(levels).name}) and scales"
    if calibrate:
        caption = f"missed: of the wanted outputs' standard deviation, on the calibration data; {caption}"
    out.table(
        f"{model_name(model)}: {len(report.layers)} linears, {levels}, {way}, one scale per {granularity}",
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
    for name, reason in report.kept.items():
        out.note(f"kept {name}: {reason}")
    for name, what in report.others.items():
        out.note(f"kept {name}: {what}")
    if report.dropped:
        out.note(f"dropped, the encoder has no place for them: {', '.join(report.dropped)}")
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
            "kept": report.kept,
            "others": report.others,
            "dropped": list(report.dropped),
            "bytes_linears_before": before,
            "bytes_linears_packed": after,
            "vocabulary": kept.summary() if kept else None,
            "quantization_config": report.artifact.to_dict(),
        }
    )


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("convert")(_convert)
