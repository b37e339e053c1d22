"""Defines `ternarize inspect`, which shows what a model is made of."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ternarize_cli.cli.options import MANY, AllowPickle, Device, Force, Json, ModelArgument, Quiet, Revision, Threads
from ternarize_cli.cli.output import Output, megabytes
from ternarize_cli.errors import counted

if TYPE_CHECKING:
    from ternarize_cli.compress.inspection import Inspection, TensorInfo

__all__ = ["register"]

_LINES = 20


def _inspect(
    model: ModelArgument,
    histogram: Annotated[
        bool, typer.Option("--histogram", help="Draw codes, scales and weights as bars in the terminal.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw a figure: .png, .svg or .pdf (extra `plot`).")
    ] = None,
    beta: Annotated[
        str | None,
        typer.Option(
            "--beta", metavar="B,B,…", help="Try absmean at these betas, and optimal, on a full-precision MODEL."
        ),
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(help="With --beta: what shares a scale: row (default), tensor, or group:N inputs."),
    ] = None,
    sts: Annotated[
        Path | None,
        typer.Option(
            "--sts",
            metavar="FILE",
            help="With --beta: a CSV file of sentence 1, sentence 2, score; adds cosine and Spearman.",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="PATH", help="With --beta: images (a folder, IDX, Parquet); adds the cosine."),
    ] = None,
    image_limit: Annotated[
        int, typer.Option("--image-limit", min=1, max=MANY, help="With --images: use only the first so many images.")
    ] = 256,
    revision: Revision = None,
    force: Force = False,
    allow_pickle: AllowPickle = False,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what a model is, and what is in it.

    Shows stage, scheme and source of a model, and every linear and embedding with its bytes,
    zeros, scales and error. --beta shows instead what each beta of the paper's rule would
    make of a full-precision model; no model is written.
    """
    from ternarize_cli.encoders.hub import pinned
    from ternarize_cli.errors import InputError

    out = Output(json_mode=json, quiet=quiet)
    model = pinned(model, revision)
    if beta is None:
        given = {"--granularity": granularity, "--sts": sts, "--images": images}
        for name, value in given.items():
            if value is not None:
                raise InputError(f"{name} goes with --beta", hint=f"--beta 0.5,1,1.5,2,2.5,3,4 {name} {value}")
        _show(out, model, histogram, plot, force, allow_pickle)
        return
    if histogram:
        raise InputError(
            "--histogram shows the model itself, and --beta what it would become", hint="--beta … --plot FILE"
        )
    if sts is not None and images is not None:
        raise InputError("--sts and --images exclude each other: a model reads texts or images", hint="give one only")
    from ternarize_cli.cli.beta_sweep import run_sweep

    run_sweep(
        out,
        model,
        beta,
        granularity or "row",
        sts,
        images,
        image_limit,
        plot,
        force=force,
        allow_pickle=allow_pickle,
        device=device,
        threads=threads,
    )


def _show(out: Output, model: str, histogram: bool, plot: Path | None, force: bool, allow_pickle: bool) -> None:
    from ternarize_cli.compress.inspect import inspect as run
    from ternarize_cli.compress.inspection_figures import plot_inspection
    from ternarize_cli.encoders.loading import model_name, resolve
    from ternarize_cli.measuring.figures import check_plot

    if plot is not None:
        check_plot(plot, force=force)
    folder = resolve(model, allow_pickle=allow_pickle, headers_only=not histogram and plot is None)
    found = run(folder, allow_pickle=allow_pickle)
    facts: list[tuple[str, object]] = [
        ("stage", found.stage),
        ("architecture", found.architecture),
        ("parameters", f"{found.parameters:,}"),
        ("weights on disk", megabytes(found.bytes)),
        *([] if found.bits is None else [("bits a weight of the linears", f"{found.bits:.3f}")]),
        ("content hash", found.sha256 or "unknown: headers alone were read"),
    ]
    if found.artifact is not None:
        left_out = {"quant_method", "stage", "block", "listing", "module_levels"}
        if found.artifact.scheme.rule != "absmean":
            left_out.add("beta")  # which no other rule reads
        facts += [(k, v) for k, v in found.artifact.to_dict().items() if k not in left_out and v not in (None, [])]
        if (data := found.artifact.calibration) is not None:
            tokens = "" if data.tokens is None else f", {data.tokens:,} tokens"
            facts = [(k, v) for k, v in facts if k != "calibration"]
            facts.append(("calibrated on", f"{data.samples:,} {data.kind}s{tokens}"))
    name = _name(folder, found)
    out.table(name, ["", "value"], facts)
    _modules(out, found)
    if histogram:
        _histograms(out, found)
    if plot is not None:
        plot_inspection(found, model_name(model), plot, force=force)
        out.note(f"wrote {plot}")
    values = {k: v for k, v in vars(found).items() if k not in ("artifact", "modules", "magnitudes", "scales")}
    values["quantization_config"] = found.artifact.to_dict() if found.artifact else None
    values["codes"] = found.codes
    values["bits"] = found.bits
    values["histograms"] = {
        "magnitudes": vars(found.magnitudes) if found.magnitudes else None,
        "scales": vars(found.scales) if found.scales else None,
    }
    out.result({"model": name, **values, "modules": [vars(m) for m in found.modules]})


def _name(folder: Path, found: "Inspection") -> str:
    """Returns the name of the model in the output: its folder, or what a merged adapter was made of."""
    if found.artifact is not None:  # what is merged is at full precision
        return str(folder)
    from ternarize_cli.encoders.adapters import source_of

    return source_of(folder) or str(folder)


def _modules(out: Output, found: "Inspection") -> None:
    """Prints a table of linears, and one of all other modules; with fewer columns if the terminal is narrow."""
    import shutil
    import sys

    narrow = sys.stdout.isatty() and shutil.get_terminal_size().columns < 110
    full = found.stage == "full precision"
    linears = [m for m in found.modules if m.is_linear and (full or m.codes is not None)]
    others = [m for m in found.modules if m not in linears]
    columns = {"linear": _module, "out × in": _shape, "bytes": _bytes}
    if full:
        columns |= {"mean |w|": lambda m: _short(m.mean_abs), "max |w|": lambda m: _short(m.max_abs)}
    else:
        if found.artifact is not None and found.artifact.module_levels:
            columns["levels"] = lambda m: m.levels or ""
        columns["zeros"] = lambda m: f"{m.zeros:.1%}"
        if not narrow:
            columns["scale min"] = lambda m: _short(m.scale_min)
        columns["scale mean"] = lambda m: _short(m.scale_mean)
        if not narrow:
            columns["scale max"] = lambda m: _short(m.scale_max)
    if found.stage == "latent":
        columns["error"] = lambda m: f"{m.error:.3f}"
    if narrow:
        del columns["bytes"]
    caption = ""
    if found.stage == "latent":
        caption = "error: ‖W − s·c‖ / ‖W‖, against the checkpoint's own latent weights"
        if found.artifact is not None and found.artifact.calibration is not None:
            caption += ", which calibration has changed"
    kind = found.artifact.levels if found.artifact else "full-precision"
    rows = [[cell(m) for cell in columns.values()] for m in linears]
    out.table(counted(len(linears), f"{kind} linear"), list(columns), rows, caption=caption)
    if others:
        rows = [[m.name, m.kind, _shape(m), _bytes(m)] for m in others]
        stay = any(m.is_linear for m in others)
        title = f"{len(others)} embeddings" + (" and linears that stay as they are" if stay else "")
        out.table(title, ["module", "kind", "shape", "bytes"], rows)


def _module(m: "TensorInfo") -> str:
    return m.name


def _shape(m: "TensorInfo") -> str:
    return f"{m.shape[0]} × {m.shape[1]}"


def _bytes(m: "TensorInfo") -> str:
    return f"{m.bytes:,}"


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if value >= 0.001 or value == 0 else f"{value:.1e}"


def _histograms(out: Output, found: "Inspection") -> None:
    import shutil

    from ternarize_cli.compress.inspection_figures import histogram_bars
    from ternarize_cli.measuring.figures import bars

    width = min(shutil.get_terminal_size().columns, 100)
    if found.codes is not None:
        _figure(out, "codes, all linears", bars([(f"{c:+d}" if c else "0", n) for c, n in found.codes.items()], width))
    if found.scales is not None:
        title = f"scales, all linears ({sum(found.scales.counts):,}); bins widen with the scale"
        _figure(out, title, histogram_bars(found.scales.merged(_LINES), width))
    if found.magnitudes is not None:
        count = f"{sum(found.magnitudes.counts):,} weights"
        if found.artifact is None:
            title = f"|w| / mean |w| of its matrix, all linears ({count})"
            marks = [(b / 2, f"threshold of absmean at beta {b}") for b in (1, 2, 3)]
        else:
            title = f"|w| / scale, all linears ({count})"
            marks = [(t, f"threshold {t:g}") for t in found.thresholds]
        drawn = histogram_bars(found.magnitudes.merged(_LINES), width, marks=marks, open_end=True)
        _figure(out, title, drawn)


def _figure(out: Output, title: str, lines: list[str]) -> None:
    out.text(title)
    for line in lines:
        out.text(line)
    out.text("")


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("inspect")(_inspect)
