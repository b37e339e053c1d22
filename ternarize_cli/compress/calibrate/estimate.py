"""How long a calibration will take here: its arithmetic is counted, and this machine's speed is measured, now.

Per token, a linear of `[out, in]` costs one product in the teacher, one in the student, one for the covariance with
what should come out, and `in²` for that of its input. Solving costs some 28·out·in² (error feedback, refits and descent
of the default recipe) and goes column by column, which for small matrices costs more than the arithmetic.
"""

import time
from collections.abc import Iterable
from pathlib import Path

import torch

from ternarize_cli.compress.calibrate.data import DEFAULT_IMAGES
from ternarize_cli.compress.calibrate.folder import Calibration
from ternarize_cli.compress.calibrate.solve import solve
from ternarize_cli.encoders import checkpoint
from ternarize_cli.format.scheme import Scheme
from ternarize_cli.storage.bounds import read_object

__all__ = ["seconds"]

_AROUND = 1.3  # attention, norms and activations beside the linears
_PROBE = 128


def seconds(
    folder: Path, kind: str, calibration: Calibration, shapes: Iterable[tuple[int, tuple[int, int]]]
) -> float | None:
    """Estimates `calibrate_folder`.

    Args:
        folder: the model; calibration: on what; kind: what `Calibration.check` says of it.
        shapes: count and (out, in) of the linears.

    Returns:
        Seconds; None for images if the config does not tell into how many patches one goes.
    """
    tokens = calibration.tokens
    if kind == "image":
        patches = _patches(folder)
        if patches is None:
            return None
        tokens = patches * (calibration.samples or DEFAULT_IMAGES)
    products = columns = 0.0
    for count, (rows, width) in shapes:
        products += count * tokens * (4 * rows * width * _AROUND + 2 * rows * width + 2 * width * width)
        products += count * 28 * rows * width * width
        columns += count * width
    return products / _rate() + columns * _column(calibration)


def _patches(folder: Path) -> int | None:
    """Into how many an image goes: the processor says how large it is, the model how large they are."""
    config = checkpoint.read_config(folder)
    config = config.get("vision_config") or config
    processor = folder / "preprocessor_config.json"
    sizes = read_object(processor) if processor.is_file() else {}
    edge = _edge(sizes.get("crop_size")) or _edge(sizes.get("size")) or config.get("image_size")
    patch = config.get("patch_size")
    return (edge // patch) ** 2 + 1 if isinstance(edge, int) and isinstance(patch, int) else None


def _edge(size: object) -> object:
    return size.get("height") or size.get("shortest_edge") if isinstance(size, dict) else size


def _rate() -> float:
    """Floating-point operations per second of a product of activations and a weight."""
    x, w = torch.randn(4096, 512), torch.randn(512, 512)
    spent = []
    for _ in range(4):
        start = time.perf_counter()
        x @ w
        spent.append(time.perf_counter() - start)
    return 2 * 4096 * 512 * 512 / sorted(spent)[1]


def _column(calibration: Calibration) -> float:
    """Seconds that solving spends on a column of a matrix whose arithmetic is nothing."""
    weight, identity = torch.randn(8, _PROBE), torch.eye(_PROBE, dtype=torch.float64)
    start = time.perf_counter()
    solve(weight, identity, weight.double(), Scheme(), calibration.recipe)
    return (time.perf_counter() - start) / _PROBE
