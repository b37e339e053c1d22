"""Runs `ternarize inspect --beta`: compares ternary weights at several betas."""

from pathlib import Path
from typing import TYPE_CHECKING

from ternarize_cli.cli.output import Output
from ternarize_cli.errors import counted

if TYPE_CHECKING:
    from ternarize_cli.evaluation.beta_sweep import Sweep, SweepRow

__all__ = ["run_sweep"]


def run_sweep(
    out: Output,
    model: str,
    beta: str,
    granularity: str,
    sts: Path | None,
    images: Path | None,
    image_limit: int,
    plot: Path | None,
    *,
    force: bool,
    allow_pickle: bool,
    device: str | None,
    threads: int | None,
) -> None:
    """Checks and reads the files, measures each beta, and prints tables or JSON.

    Args:
        out: prints the results.
        model, beta, granularity, sts, images, image_limit, plot, force, allow_pickle, device, threads: the values of
            the options of these names of `ternarize inspect`.

    Raises:
        TernarizeError: a value is invalid, or a file can't be read or written.
    """
    from ternarize_cli.encoders.loading import model_name, pooling_note, resolve
    from ternarize_cli.evaluation.beta_sweep import parse_betas, sweep
    from ternarize_cli.evaluation.beta_sweep_figure import plot_sweep
    from ternarize_cli.measuring.figures import check_plot

    betas = parse_betas(beta)
    if plot is not None:
        check_plot(plot, force=force)
    pairs = pictures = None
    if sts is not None:
        from ternarize_cli.evaluation.reading import read_pairs

        pairs = read_pairs(sts, sts.stem)
    if images is not None:
        from ternarize_cli.data.images import read_images

        pictures = read_images(images, limit=image_limit)
    folder = resolve(model, allow_pickle=allow_pickle)
    if (pairs or pictures) and (note := pooling_note(folder)) is not None:
        out.note(f"note: {note}")
    found = sweep(
        folder,
        betas,
        granularity=granularity,
        pairs=pairs,
        images=pictures,
        allow_pickle=allow_pickle,
        device=device,
        threads=threads,
        track=out.track,
    )
    _print_sweep(out, found, model_name(model), pairs.size if pairs else 0)
    if plot is not None:
        plot_sweep(found, model_name(model), plot, force=force)
        out.note(f"wrote {plot}")
    best = {m: row.beta for m in found.measures if (row := found.best(m)) is not None}
    out.result(
        {
            "model": str(folder),
            "granularity": granularity,
            "linears": found.linears,
            "encoded": found.encoded,
            "teacher_sts": found.teacher_sts,
            "rows": [{"rule": "absmean", **vars(row)} for row in found.absmean]
            + [{"rule": "optimal", **vars(found.optimal)}],
            "best_beta": best,
        }
    )


def _print_sweep(out: Output, found: "Sweep", name: str, pairs: int) -> None:
    headings = {"error": "error", "zeros": "zeros", "cosine": "cosine", "sts": "STS"}
    best = {m: found.best(m) for m in found.measures}

    def cells(row: "SweepRow") -> list[str]:
        return [
            ("undefined" if value is None else f"{value:.1%}" if m == "zeros" else f"{value:.4f}")
            + (" *" if row is best[m] else "  ")
            for m in found.measures
            for value in [getattr(row, m)]
        ]

    rows = [["absmean", f"{row.beta:g}", *cells(row)] for row in found.absmean]
    rows.append(["optimal", "", *cells(found.optimal)])
    explained = ["* best beta", "error: ‖W − s·c‖ / ‖W‖ over all linears"]
    if "cosine" in found.measures:
        values = ("0", "", "1", _number(found.teacher_sts))
        rows.append(["original", "", *[f"{v}  " for v in values][: len(found.measures)]])
        what = "sentences" if pairs else "images"
        explained.append(f"cosine: to the original's vectors, mean over {found.encoded:,} {what}")
        if pairs:
            explained.append(f"STS: Spearman on {counted(pairs, 'pair')}")
        explained.append("vectors: of the packed model, without calibration and training, int8 activations and tables")
    columns = ["rule", "beta", *(headings[m] + "  " for m in found.measures)]
    out.table(f"{name}: {counted(found.linears, 'linear')}, one scale per {found.granularity}", columns, rows)
    for line in explained:
        out.text(line)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
