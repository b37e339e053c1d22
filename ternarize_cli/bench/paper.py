"""Makes the paper's table: latency and storage on a GPU as shares of fp32's, and the speed-up over the best rival.

The paper's "37%" of latency may mean t / t_fp32 = 0.37 or 1 - t / t_fp32 = 0.37, so the table has both. fp32 is the
slowest way to run an encoder on a GPU with tensor cores; the last column is the speed-up over the fastest rival.
"""

from collections.abc import Sequence

from ternarize_cli.bench.candidates import BACKEND
from ternarize_cli.bench.cells import Table, points, title_of
from ternarize_cli.bench.model_bytes import Storage
from ternarize_cli.bench.rows import BenchRow
from ternarize_cli.measuring import gpu

__all__ = ["paper_tables"]

_FP32 = "torch-fp32"
_CAPTION = (
    "latency: the median over fp32's, t / t_fp32; less latency: 1 - t / t_fp32 (the paper's 37% can be read as either)"
    ". storage: bytes on disk over fp32's. speed-up: the fastest rival's time over it, of all rivals of this run."
)


def paper_tables(rows: Sequence[BenchRow], forms: Sequence[Storage], device: str) -> list[Table]:
    """Makes the table of a run with fp32 on a GPU; gives no table for other runs, and for encoded texts."""
    sizes = {form.name: form.bytes for form in forms}
    lines = []
    for title, group in points(rows).items():
        exact = group.get(_FP32)
        if exact is None or exact.encoded or not gpu.is_gpu(device):
            continue
        for i, row in enumerate(group.values()):
            share = row.median_ms / exact.median_ms
            size = sizes.get("packed" if row.kind == BACKEND else row.name)
            storage = "" if size is None else f"{size / sizes[_FP32]:.1%}"
            speed_up = "" if row.ratio is None else f"{row.ratio:.2f}x"
            lines.append(["" if i else title, title_of(row), f"{share:.1%}", f"{1 - share:.1%}", storage, speed_up])
    what = "batch x image" if rows[0].image else "batch x tokens"
    columns = [what, "", "latency", "less latency", "storage", "speed-up"]
    return [Table("shares of torch-fp32, as in the paper", columns, lines, _CAPTION)] if lines else []
