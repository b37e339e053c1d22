"""Makes the tables of a benchmark's report: titles, columns, rows and captions, ready to print."""

from collections.abc import Mapping
from typing import Any

from ternarize_cli.bench.candidates import BACKEND, RIVAL
from ternarize_cli.bench.cells import Table, megabytes, points, three_digits, timing, title_of
from ternarize_cli.bench.feeds import point_title
from ternarize_cli.bench.paper import paper_tables
from ternarize_cli.bench.rows import BenchRow
from ternarize_cli.bench.run import BenchReport
from ternarize_cli.errors import counted

__all__ = ["latency_table", "machine_line", "process_table", "size_table", "tables"]

_WIDEST = 5
_NAMED = ("ternarize", "torch", "transformers", "onnxruntime", "openvino", "python")


def tables(report: BenchReport) -> list[Table]:
    """Makes all tables of a report: latency, bytes, and if measured, fp32 on a GPU, memory and start-up."""
    found = [latency_table(report), *paper_tables(report.rows, report.storage, report.device), size_table(report)]
    return found + ([process_table(report)] if report.memory else [])


def latency_table(report: BenchReport) -> Table:
    """Makes the table of median and spread of each candidate at each point.

    Up to five candidates on a grid have a column each, and each point is a line that ends with the speed-up of the best
    backend over the best rival. With more candidates, and for batches of texts, each candidate has a line.
    """
    if report.rows[0].encoded:
        return _encoding_table(report)
    title = f"{report.model} on {report.device}: milliseconds per forward pass, median (10th to 90th percentile)"
    names = list(dict.fromkeys(row.name for row in report.rows))
    compared = any(row.kind == RIVAL for row in report.rows)
    padded = any(row.lengths for row in report.rows)
    if len(names) > _WIDEST or padded or any(row.joules is not None for row in report.rows):
        return _long_table(report, title, compared=compared, padded=padded)
    titles = [title_of(next(row for row in report.rows if row.name == name)) for name in names]
    per_second = _rate(report)
    columns = [_points(report), *titles, per_second, *(["speed-up"] if compared else [])]
    lines = []
    for point, rows in points(report.rows).items():
        best = min((row for row in rows.values() if row.kind == BACKEND), key=lambda row: row.median_ms)
        times = [timing(vars(rows[name])) + _behind(rows[name]) if name in rows else "" for name in names]
        lines.append([point, *times, _speed(best), *([_speed_up(best)] if compared else [])])
    caption = f"{per_second}: the fastest backend's."
    caption += " speed-up: the fastest rival's time over it." if compared else ""
    caption += _tokens_of_images(report) + _clocks(report, "after |") + _beside(report)
    return Table(title, columns, lines, caption)


def _long_table(report: BenchReport, title: str, *, compared: bool, padded: bool) -> Table:
    per_second = _rate(report)
    timed = any(row.device_ms is not None for row in report.rows)
    columns = [_points(report), "", "median", "spread", *(["on the GPU"] if timed else []), per_second]
    columns += ["with padding"] if padded else []
    metered = any(row.joules is not None for row in report.rows)
    columns += ["joules"] if metered else []
    columns += ["speed-up"] if compared else []
    lines = []
    for point, rows in points(report.rows).items():
        for i, row in enumerate(rows.values()):
            median, _, spread = timing(vars(row)).partition(" ")
            on_gpu = ["" if row.device_ms is None else three_digits(row.device_ms)] if timed else []
            line = ["" if i else point, title_of(row), median, spread, *on_gpu, _speed(row)]
            line += [f"{row.padded_tokens_per_s:,.0f}"] if padded else []
            line += ["" if row.joules is None else f"{row.joules:.3g}"] if metered else []
            lines.append(line + ([_speed_up(row)] if compared else []))
        lines.append([""] * len(columns))
    caption = "with padding: all positions of the batches counted." if padded else ""
    caption += " speed-up: the fastest rival's time over it." if compared else ""
    caption += " joules: of a pass, all of the GPU's board." if metered else ""
    caption += _paddings(report) + _tokens_of_images(report) + _clocks(report, "on the GPU") + _beside(report)
    return Table(title, columns, lines[:-1], caption.strip())


def _behind(row: BenchRow) -> str:
    """Formats the time on the GPU, which follows the host's time in a cell."""
    return "" if row.device_ms is None else f" | {three_digits(row.device_ms)}"


def _clocks(report: BenchReport, where: str) -> str:
    """A sentence that explains the two times on a GPU, with a blank in front."""
    if all(row.device_ms is None for row in report.rows):
        return ""
    return (
        f" median: what the host waits for, from the call to the synchronised result; {where}: the median between two "
        "CUDA events around the same calls, without the wait for the host."
    )


def _encoding_table(report: BenchReport) -> Table:
    columns = ["batch", "", "texts/s", "tokens/s", "seconds", "spread", "speed-up", "cosine"]
    lines = []
    for rows in points(report.rows).values():
        for i, row in enumerate(rows.values()):
            times = (three_digits(value / 1000) for value in (row.median_ms, row.p10_ms, row.p90_ms))
            median, low, high = times
            rates = (f"{value:,.0f}" for value in (row.inputs_per_s, row.tokens_per_s))
            batch = "" if i else str(row.batch)
            lines.append([batch, title_of(row), *rates, median, f"({low}-{high})", _speed_up(row), f"{row.cosine:.4f}"])
        lines.append([""] * len(columns))
    first = report.rows[0]
    caption = (
        f"{first.tokens} tokens a text on average, in batches by length ({_padding(first):.0%} padding). "
        "seconds: median (10th to 90th percentile) for all texts. speed-up: the fastest rival's time over it. "
        f"cosine: to the full-precision model's vectors, the mean.{_beside(report)}"
    )
    title = f"{report.model} on {report.device}: {first.encoded}, from strings to vectors"
    return Table(title, columns, lines[:-1], caption)


def _beside(report: BenchReport) -> str:
    """A sentence about the neighbours, with a blank in front; empty if there were none."""
    if not report.neighbours:
        return ""
    if report.neighbours == 1:
        return " One neighbour: a process that is busy beside all candidates."
    return f" {counted(report.neighbours, 'neighbour')}: processes that are busy beside all candidates."


def _padding(row: BenchRow) -> float:
    """The share of a row's positions that is padding."""
    return 1 - row.tokens_per_s / row.padded_tokens_per_s


def _points(report: BenchReport) -> str:
    return "batch x image" if report.rows[0].image else "batch x tokens"


def _rate(report: BenchReport) -> str:
    return "images/s" if report.rows[0].image else "tokens/s"


def _speed(row: BenchRow) -> str:
    return three_digits(row.inputs_per_s) if row.image else f"{row.tokens_per_s:,.0f}"


def _speed_up(row: BenchRow) -> str:
    return "" if row.ratio is None else f"{row.ratio:.2f}x"


def _tokens_of_images(report: BenchReport) -> str:
    """A sentence about the tokens of an image, with a blank in front; empty if texts were measured."""
    first = report.rows[0]
    return f" An image of {first.image} pixels is {first.tokens} tokens." if first.image else ""


def _paddings(report: BenchReport) -> str:
    """A sentence about padding for each padded point, each with a blank in front."""
    first = [next(iter(rows.values())) for rows in points(report.rows).values()]
    return "".join(
        f" {point_title(vars(row))}: padded to {row.tokens} tokens on average, {_padding(row):.0%} of them padding."
        for row in first
        if row.lengths
    )


def size_table(report: BenchReport) -> Table:
    """Makes the table of sizes, a line per candidate: bytes on disk, bytes of the linears, distance to `reference`."""
    forms = {form.name: form for form in report.storage}
    lines = []
    for name, kind in dict.fromkeys((row.name, row.kind) for row in report.rows):
        form = forms.get("packed" if kind == BACKEND else name)
        sizes = [megabytes(form.bytes) if form else "", ""]
        if form and form.linear_bytes is not None:
            sizes[1] = megabytes(form.linear_bytes)
        distances = [row.relative_l2 for row in report.rows if row.name == name and row.relative_l2 is not None]
        lines.append([name, *sizes, f"{max(distances):.1e}" if distances else ""])
    computed = [
        form.name for form in report.storage if form.computed and form.name in {row.name for row in report.rows}
    ]
    caption = f"on disk computed, not a file: {', '.join(computed)}. " if computed else ""
    caption += "relative L2: distance from the output of reference."
    return Table("megabytes (10^6 bytes) on disk", ["", "on disk", "its linears", "relative L2"], lines, caption)


def process_table(report: BenchReport) -> Table:
    """Makes the table of processes, a line per candidate: start-up time and memory of a process of its own."""
    columns = ["", "load", "first pass", "loaded", "peak", "peak, all of the process"]
    on_gpu = any(entry.device_bytes is not None for entry in report.memory)
    columns += ["GPU: weights", "GPU: in use", "GPU: peak", "GPU: reserved"] if on_gpu else []
    lines = [
        [
            entry.name,
            _duration(entry.load_ms),
            _duration(entry.cold_start_ms),
            *(megabytes(count) for count in (entry.loaded_bytes, entry.model_bytes, entry.peak_bytes)),
            *(["" if count is None else megabytes(count) for count in entry.on_device] if on_gpu else []),
        ]
        for entry in report.memory
    ]
    caption = (
        "one process each, at the largest batch x tokens. load: after the imports, with files in the system's cache. "
        "loaded, peak: megabytes of memory beyond the imports, after loading and at the highest; mapped weights count "
        "once they are read."
    )
    if on_gpu:
        caption += (
            " First pass: on a GPU at batch 1. GPU, megabytes of its memory: weights, in the model's tensors and what "
            "its backend made of them; in use, what torch holds beyond what it held before loading, after a pass at "
            "batch 1; peak, at the largest point; reserved, what torch has taken from the driver by then."
        )
    return Table("start and memory", columns, lines, caption)


def machine_line(machine: dict[str, Any]) -> str:
    """Describes the machine of a report in one line."""
    versions, cores = machine["versions"], counted(machine["usable_cores"], "core")
    parts = [
        f"{machine['cpu']}, {cores} ({' '.join(machine['isa']) or machine['torch_isa']})",
        *(_gpu(gpu) for gpu in machine["gpus"]),
        f"{machine['memory_bytes'] / 1e9:.0f} GB",
        machine["os"],
        f"{counted(machine['threads'], 'thread')}",
        ", ".join(f"{name} {versions[name]}" for name in _NAMED if versions.get(name)),
    ]
    return "; ".join(parts)


def _gpu(gpu: Mapping[str, Any]) -> str:
    parts = [gpu["capability"]]
    if gpu.get("power_limit_w"):
        parts.append(f"{gpu['power_limit_w']:.0f} W")
    if gpu.get("max_sm_mhz"):
        parts.append(f"up to {gpu['max_sm_mhz']} MHz")
    parts += [f"{name} {gpu[key]}" for name, key in (("driver", "driver"), ("CUDA", "cuda")) if gpu.get(key)]
    return f"{gpu['name']} ({', '.join(parts)})"


def _duration(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.1f} s" if milliseconds >= 1000 else f"{three_digits(milliseconds)} ms"
