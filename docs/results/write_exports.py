"""Writes the tables of docs/results/exports.md from bench/exports.json (measure_exports.py), and bench/exports-*.json
(check_exports.py); the text between the tables stays.

    python docs/results/write_exports.py
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE / "exports.md"
NEAR = 0.003
"""How far the correlation of an export may be from that of the packed model's values, as a part of it."""
QUIET = 30
"""The most that other processes may take of one core, in percent, if times are to stand in the table."""


def table(head: list[str], rows: list[list[str]]) -> str:
    """Makes a table of Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def short(value: float, digits: int = 4) -> str:
    """Writes a number without the zero before its point, cut so that no .9999 becomes 1."""
    return "1" if value >= 1 else f"{int(value * 10**digits) / 10**digits:.{digits}f}".removeprefix("0")


def speed(report: dict[str, Any]) -> str:
    """Makes the table of bytes, cosines and milliseconds, with the machine above it."""
    machine, rows = report["machine"], report["rows"]
    quiet = report["others_percent"] <= QUIET
    shapes = list(rows["native"]["milliseconds"])
    times = "" if quiet else ", so that times say nothing and are left out"
    versions = ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    lines = [
        [
            name,
            f"{row['bytes'] / 1e6:.1f}",
            *(f"{row['milliseconds'][shape]:.1f}" if quiet else "" for shape in shapes),
            short(row["cosine"]),
            short(row["unrounded"]),
        ]
        for name, row in rows.items()
    ]
    head = ["", "MB", *(f"{shape.replace('x', '×')}, ms" for shape in shapes), "cosine", "unrounded"]
    return f"""{machine["cpu"]} ({", ".join(machine["isa"])}), {report["threads"]} threads, other processes on
{report["others_percent"]:.0f}% of one core{times}; {versions}.

{table(head, lines)}"""


def nearness(reports: dict[str, dict[str, Any]]) -> str:
    """Makes the table of cosines to both references."""
    rows = []
    for name, report in reports.items():
        rows.append([name, "packed model", "", _cosines(report["rounding"]), ""])
        rows += [
            [name, kind, _cosines(v["int8"]), _cosines(v["float"]), v["passes"] or "**no**"]
            for kind, v in report.items()
            if isinstance(v, dict) and "passes" in v
        ]
    return table(["model", "", "to the packed model", "to its values, unrounded", "passes by"], rows)


def _cosines(found: dict[str, float]) -> str:
    return f"{short(found['mean'], 5)} ({short(found['lowest'])})"


def scores(reports: dict[str, dict[str, Any]]) -> str:
    """Makes the table of Spearman's correlations; what is further than NEAR from the unrounded values is bold."""
    columns = [(name, file, found) for name, report in reports.items() for file, found in report["spearman"].items()]
    kinds = dict.fromkeys(kind for _, _, found in columns for kind in found if kind != "pairs")
    rows = []
    for kind in kinds:
        row = [{"native": "packed model", "float": "its values, unrounded"}.get(kind, kind)]
        for _, _, found in columns:
            value = short(found[kind]) if kind in found else ""
            far = value and abs(found[kind] / found["float"] - 1) > NEAR
            row.append(f"**{value}**" if far else value)
        rows.append(row)
    return table(["", *(f"{name}, {file}" for name, file, _ in columns)], rows)


def versions(reports: dict[str, dict[str, Any]]) -> str:
    """Lists the versions of packages by the runtimes that they are of; those of the formats are the report's own."""
    lines: dict[str, None] = {}
    for report in reports.values():
        found = {"onnx, openvino": report["versions"]}
        found |= {kind: v["versions"] for kind, v in report.items() if isinstance(v, dict) and "versions" in v}
        for kind, packages in found.items():
            if kind != "versions":
                lines[f"- {kind}: {', '.join(f'{name} {value}' for name, value in packages.items())}"] = None
    return "\n".join(lines)


def text() -> str:
    """Makes the page: puts each table between the marks with its name."""
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted((HERE / "bench").glob("exports*.json"))}
    measured = found.pop("exports")
    reports = {name.removeprefix("exports-"): report for name, report in found.items()}
    page = PAGE.read_text("utf-8")
    tables = {"speed": speed(measured), "nearness": nearness(reports), "scores": scores(reports)}
    for name, made in (tables | {"versions": versions(reports)}).items():
        head, mark, rest = page.partition(f"<!-- {name} -->\n")
        _, end, tail = rest.partition("<!-- end -->")
        if not end:
            raise SystemExit(f"{PAGE} has no place for {name}")
        page = f"{head}{mark}{made}\n{end}{tail}"
    return page


if __name__ == "__main__":
    PAGE.write_text(text(), "utf-8")
