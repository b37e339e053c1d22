"""What `ternarize convert --dry-run` prints."""

from pathlib import Path
from typing import TYPE_CHECKING

from ternarize_cli.cli.output import Output, megabytes
from ternarize_cli.errors import counted

if TYPE_CHECKING:
    from ternarize_cli.compress.dry_run import DryRun, Group
    from ternarize_cli.format.scheme import Scheme

__all__ = ["print_plan"]


def print_plan(out: Output, dry: "DryRun", scheme: "Scheme", model: str, target: Path) -> None:
    """Prints the plan, or gives it as the JSON result; `target` is where `convert` would write."""
    from ternarize_cli.encoders.loading import model_name
    from ternarize_cli.format.codecs import codec_for

    linears = [(g.name, g.count, *_sizes(g)) for g in dry.linears]
    count = sum(g.count for g in dry.linears)
    sums = [megabytes(sum(getattr(g, field) for g in dry.linears)) for field in ("bytes_before", "bytes_packed")]
    grain = f"group of {scheme.group_size}" if scheme.granularity == "group" else scheme.granularity
    other = len(dry.module_levels)
    become = f"{counted(count - other, 'linear')} would become {scheme.levels}"
    if other:
        become += f" and {other} int4, {dry.bits:.3f} bits a weight"
    out.table(
        f"{model_name(model)}: {become}, rule {scheme.rule}, one scale per {grain}",
        ["linears", "count", "out × in", "now", "packed"],
        [*linears, ("all linears", count, "", *sums)],
        caption=f"packed: codes ({dry.codec}{', int4 ones 4bit' if dry.module_levels else ''}) and scales",
    )
    if dry.module_levels:
        out.text(f"int4: {', '.join(dry.module_levels)}\n")
    if dry.tables:
        title = f"{counted(len(dry.tables), 'embedding table')}, {scheme.table_bits} bits when packed"
        title += " (the tokens'; others 8)" if scheme.table_bits == 4 else ""
        out.table(title, ["table", "rows × dim", "now", "packed"], [(g.name, *_sizes(g)) for g in dry.tables])
    stay = [*_by_reason(dry.plan.excluded), *dry.plan.others.items()]
    if stay:
        out.table("what stays", ["module or tensor", "why"], stay)
    if dry.plan.dropped:
        out.text(f"dropped, the encoder has no place for them: {', '.join(dry.plan.dropped)}\n")
    sizes: list[list[object]] = []
    for name, by_bits in dry.bytes_packed.items():
        cells = [f"{megabytes(n)} (−{1 - n / dry.bytes_source:.1%})" for n in by_bits.values()]
        sizes.append([f"{name}, {codec_for(scheme.levels, name).bits:g} bits", *cells])
    out.table(
        "packed weights files, by codec and width of the tables",
        ["codec", *(f"{bits}-bit" for bits in next(iter(dry.bytes_packed.values())))],
        sizes,
        caption=f"(−%): saved of the source's {megabytes(dry.bytes_source)}",
    )
    packed = dry.bytes_packed[dry.codec][scheme.table_bits]
    out.text(f"now                 {dry.bytes_source:>15,} bytes")
    out.text(f"ternary checkpoint  {dry.bytes_checkpoint:>15,} bytes, what convert would write to {target}")
    out.text(f"packed              {packed:>15,} bytes, {dry.codec} and {scheme.table_bits}-bit tables as asked for")
    largest = max((g.bytes_packed for g in dry.tables), default=0)
    if largest > packed / 2:
        narrower = "--table-bits 4, or " if scheme.table_bits > 4 else ""
        out.hint(
            f"one table is {largest / packed:.0%} of the packed file: {narrower}--trim-vocabulary FILE for only the "
            "tokens that your texts use"
        )
    out.note("dry run: nothing was written")
    out.result(
        {
            "output": str(target),
            "linears": [vars(g) for g in dry.linears],
            "tables": [vars(g) for g in dry.tables],
            **dry.plan.to_json(),
            **{
                name: getattr(dry, name)
                for name in ("bytes_source", "bytes_checkpoint", "codec", "bytes_packed", "module_levels", "bits")
            },
            "table_bits": scheme.table_bits,
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
