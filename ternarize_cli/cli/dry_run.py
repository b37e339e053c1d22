"""What `ternarize convert --dry-run` prints."""

from pathlib import Path
from typing import TYPE_CHECKING

from ternarize_cli.cli.output import Output, megabytes

if TYPE_CHECKING:
    from ternarize_cli.compress.dry_run import DryRun, Group
    from ternarize_cli.format.scheme import Scheme

__all__ = ["print_plan"]


def print_plan(out: Output, planned: "DryRun", scheme: "Scheme", model: str, target: Path) -> None:
    """Prints the plan, or gives it as the JSON result; `target` is where `convert` would write."""
    from ternarize_cli.encoders.loading import model_name
    from ternarize_cli.format.codecs import codec_for

    linears = [(g.name, g.count, *_sizes(g)) for g in planned.linears]
    count = sum(g.count for g in planned.linears)
    sums = [
        megabytes(sum(values))
        for values in zip(*((g.bytes_before, g.bytes_packed) for g in planned.linears), strict=True)
    ]
    grain = f"group of {scheme.group_size}" if scheme.granularity == "group" else scheme.granularity
    out.table(
        f"{model_name(model)}: {count} linears would become {scheme.levels}, rule {scheme.rule}, one scale per {grain}",
        ["linears", "count", "out × in", "now", "packed"],
        [*linears, ("all linears", count, "", *sums)],
        caption=f"packed: codes ({planned.codec}) and scales",
    )
    if planned.tables:
        widths = f"{scheme.table_bits} bits when packed" + (
            " (the tokens'; others 8)" if scheme.table_bits == 4 else ""
        )
        rows = [(g.name, *_sizes(g)) for g in planned.tables]
        out.table(f"{len(rows)} embedding tables, {widths}", ["table", "rows × dim", "now", "packed"], rows)
    stay = [*_by_reason(planned.plan.excluded), *planned.plan.others.items()]
    if stay:
        out.table("what stays", ["module or tensor", "why"], stay)
    if planned.plan.dropped:
        out.text(f"dropped, the encoder has no place for them: {', '.join(planned.plan.dropped)}\n")
    sizes: list[list[object]] = []
    for name, by_bits in planned.bytes_packed.items():
        cells = [f"{megabytes(n)} (−{1 - n / planned.bytes_source:.1%})" for n in by_bits.values()]
        sizes.append([f"{name}, {codec_for(scheme.levels, name).bits:g} bits", *cells])
    out.table(
        "packed weights files, by codec and width of the tables",
        ["codec", *(f"{bits}-bit" for bits in next(iter(planned.bytes_packed.values())))],
        sizes,
        caption=f"(−%): saved of the source's {megabytes(planned.bytes_source)}",
    )
    packed = planned.bytes_packed[planned.codec][scheme.table_bits]
    out.text(f"now                 {planned.bytes_source:>15,} bytes")
    out.text(f"ternary checkpoint  {planned.bytes_checkpoint:>15,} bytes, what convert would write to {target}")
    out.text(
        f"packed              {packed:>15,} bytes, {planned.codec} and {scheme.table_bits}-bit tables as asked for"
    )
    largest = max((g.bytes_packed for g in planned.tables), default=0)
    if largest > packed / 2:
        out.hint(
            f"one table is {largest / packed:.0%} of the packed file: --table-bits 4, or --trim-vocabulary FILE "
            "for only the tokens that your texts use"
        )
    out.note("dry run: nothing was written")
    out.result(
        {
            "output": str(target),
            "linears": [vars(g) for g in planned.linears],
            "tables": [vars(g) for g in planned.tables],
            **planned.plan.to_json(),
            "bytes_source": planned.bytes_source,
            "bytes_checkpoint": planned.bytes_checkpoint,
            "codec": planned.codec,
            "table_bits": scheme.table_bits,
            "bytes_packed": planned.bytes_packed,
        }
    )


def _sizes(group: "Group") -> tuple[str, str, str]:
    return f"{group.shape[0]} × {group.shape[1]}", megabytes(group.bytes_before), megabytes(group.bytes_packed)


def _by_reason(excluded: dict[str, str]) -> list[tuple[str, str]]:
    """The excluded modules for each reason, the first three of them by name."""
    names: dict[str, list[str]] = {}
    for name, reason in excluded.items():
        names.setdefault(reason, []).append(name)
    return [
        (", ".join(some[:3]) + (f" and {len(some) - 3} more" if len(some) > 3 else ""), reason)
        for reason, some in names.items()
    ]
