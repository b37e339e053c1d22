"""`ternarize convert`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ternarize_cli.cli.derived import derived
from ternarize_cli.cli.options import Force, Json, ModelArgument, Quiet, Revision, output_folder
from ternarize_cli.cli.output import Output, megabytes
from ternarize_cli.compress.options import DEFAULT_TOKENS, Calibration, ConvertOptions, SchemeOptions, of_tier
from ternarize_cli.errors import counted, quoted

if TYPE_CHECKING:
    from ternarize_cli.compress.convert import ConversionReport, LayerReport

__all__ = ["register"]

_ENOUGH = 20_000


def _convert(
    model: ModelArgument,
    output: Annotated[Path | None, output_folder("./NAME-ternary")] = None,
    *,
    form: SchemeOptions,
    options: ConvertOptions,
    calibration: Calibration,
    revision: Revision = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing; print the plan and exact bytes.")] = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Replace the linears of an encoder by ternary ones.

    MODEL becomes a ternary checkpoint in ./NAME-ternary. It trains (`ternarize distill`),
    evaluates as it is, and packs (`ternarize pack`).
    """
    from ternarize_cli.compress.session import check_keeps_scores, convert
    from ternarize_cli.encoders.hub import pinned
    from ternarize_cli.encoders.loading import model_name, pooling_note, resolve

    out = Output(json_mode=json, quiet=quiet)
    model = pinned(model, revision)
    form, options = of_tier(form, options)
    scheme = form.scheme(options.bits)
    wanted = calibration if calibration.sources else None
    if wanted is None and (calibration.samples, calibration.tokens) != (None, DEFAULT_TOKENS):
        out.warn("--calibration-samples and --calibration-tokens do nothing without --calibrate")
    whole = not dry_run or bool(options.trim) or options.bits is not None
    source = resolve(model, allow_pickle=options.allow_pickle, headers_only=not whole)
    check_keeps_scores(source, scheme, wanted)
    target = output or Path(f"{model_name(model)}-ternary")
    if (note := pooling_note(source)) is not None:
        out.note(f"note: {note}")
    if dry_run:
        from ternarize_cli.cli.dry_run import print_plan
        from ternarize_cli.compress.dry_run import dry_run as plan

        print_plan(out, plan(source, scheme, options, calibration=wanted, track=out.track), scheme, model, target)
        return
    report = convert(model, target, scheme, calibration=wanted, options=options, force=force, track=out.track)
    _show(out, report, form, options, wanted, model_name(model))
    out.text(f"wrote {target}")
    from ternarize_cli.encoders.modalities import modalities_of

    made, teacher = quoted(target), quoted(model)
    if "image" in modalities_of(source):
        out.hint(f"ternarize pack {made}, and eval the packed model with --against {teacher} --images PATH")
    elif wanted:
        out.hint(f"ternarize pack {made}, and eval the packed model with --against {teacher}")
    else:
        out.hint(f"ternarize distill {made} --teacher {teacher} --data texts.txt, or at once: ternarize pack {made}")
    out.result({"output": str(target), **_payload(report)})


def _show(
    out: Output,
    report: "ConversionReport",
    form: SchemeOptions,
    options: ConvertOptions,
    calibration: Calibration | None,
    name: str,
) -> None:
    """Prints what became of each linear, warnings about the calibration, and what stays as it is."""
    from ternarize_cli.format.codecs import codec_for

    before = sum(layer.bytes_before for layer in report.layers)
    after = sum(layer.bytes_after for layer in report.layers)
    way = "calibrated" if calibration else f"rule {form.rule}"
    mixed, levels = options.bits is not None, report.artifact.levels
    codecs = " and ".join(sorted({codec_for(layer.levels).name for layer in report.layers}))
    caption = f"error: ‖W − s·c‖ / ‖W‖; packed: codes ({codecs}) and scales"
    if mixed:
        caption = f"need: how far vectors move if this and what runs with it are ternary alone; {caption}"
    if calibration:
        caption = f"missed: of the wanted outputs' standard deviation, on the calibration data; {caption}"
    columns: dict[str, Callable[[LayerReport], object]] = {
        "linear": lambda x: x.name,
        "out × in": lambda x: f"{x.shape[0]} × {x.shape[1]}",
        **({"levels": lambda x: x.levels, "need": lambda x: f"{x.need or 0:.4f}"} if mixed else {}),
        **({"missed": lambda x: "" if x.output_error is None else f"{x.output_error:.3f}"} if calibration else {}),
        "error": lambda x: f"{x.error:.3f}",
        "zeros": lambda x: f"{x.zeros:.1%}",
        "bytes": lambda x: x.bytes_before,
        "packed": lambda x: x.bytes_after,
    }
    sums = {"linear": "all linears", "bytes": megabytes(before), "packed": megabytes(after)}
    out.table(
        f"{name}: {counted(len(report.layers), 'linear')}, {levels}, {way}, one scale per {form.granularity}",
        list(columns),
        [*([cell(x) for cell in columns.values()] for x in report.layers), [sums.get(title, "") for title in columns]],
        caption=caption,
    )
    if mixed:
        count = sum(x.levels != "ternary" for x in report.layers)
        of = f"{counted(count, 'linear')} of {len(report.layers)}"
        out.text(f"{of} are int4: {report.bits:.3f} bits a weight, of {options.bits:g} at most")
        if not count:
            out.warn(f"no linear fits into {options.bits:g} bits a weight as int4, so all are ternary; try more --bits")
    if calibration and (missing := [x.name for x in report.layers if x.output_error is None]):
        out.warn(f"the calibration data does not reach {', '.join(missing)}: rounded by the rule {form.rule}")
    if calibration and (data := report.artifact.calibration) and (data.tokens or _ENOUGH) < _ENOUGH:
        limit = "--calibration-tokens allows" if (data.tokens or 0) >= calibration.tokens * 0.9 else "there were"
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


def _payload(report: "ConversionReport") -> dict[str, Any]:
    """Makes the part of the JSON object that describes the conversion."""
    return {
        "layers": [vars(layer) for layer in report.layers],
        **report.plan.to_json(),
        "bytes_linears_before": sum(layer.bytes_before for layer in report.layers),
        "bits": report.bits,
        "bytes_linears_packed": sum(layer.bytes_after for layer in report.layers),
        "vocabulary": report.vocabulary.summary() if report.vocabulary else None,
        "quantization_config": report.artifact.to_dict(),
    }


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("convert")(derived(_convert))
