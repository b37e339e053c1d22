"""Calibration of a model folder: its encoder is loaded, and the linears of all its parts are calibrated together."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from ternarize_cli.compress.calibrate.data import Features, make_batches
from ternarize_cli.compress.calibrate.run import Calibrated, calibrate
from ternarize_cli.compress.options import Calibration
from ternarize_cli.compress.tensor_policy import TensorPolicy
from ternarize_cli.encoders.heads import load_with_head
from ternarize_cli.encoders.parts import Part
from ternarize_cli.format.scheme import CalibrationData, Scheme
from ternarize_cli.progress import Track, silent

__all__ = ["Calibration", "calibrate_folder"]


def calibrate_folder(
    folder: Path,
    parts: Sequence[tuple[Part, TensorPolicy]],
    scheme: Scheme,
    calibration: Calibration,
    *,
    allow_pickle: bool = False,
    seed: int = 0,
    track: Track = silent,
) -> tuple[dict[str, Calibrated], CalibrationData]:
    """Calibrates the linears of a model folder that become ternary.

    Args:
        parts: the parts of the model, each with the policy that says which linears become ternary.

    Returns:
        What was found, by name with the part's prefix (linears that the data does not reach are absent), and a
        description of the calibration data.

    Raises:
        InputError: the scheme's rule fixes the scales, or the device does not exist.
        DataError: a source can't be read, holds hardly anything, or makes activations that are not finite.
        CheckpointError: the model is damaged, or the data does not go one way through it, or reaches no linear.
    """
    kind = calibration.check(folder, scheme)
    encoder = load_with_head(
        folder, device=calibration.device, threads=calibration.threads, allow_pickle=allow_pickle
    ).float()
    batches = make_batches(
        encoder,
        folder,
        calibration.sources,
        samples=calibration.samples,
        tokens=calibration.tokens,
        seed=seed,
    )
    linears: dict[str, nn.Module] = {}
    levels: dict[str, str] = {}
    tables: dict[nn.Module, int] = {}
    for part, policy in parts:
        model = part.module_of(encoder)
        linears |= {part.prefix + name: model.get_submodule(name) for name in policy.linears}
        levels |= {part.prefix + name: grid for name, grid in policy.module_levels.items()}
        tables |= {model.get_submodule(name): policy.table_bits(name) for name in policy.tables}
    found = calibrate(encoder, batches, linears, tables, scheme, calibration.recipe, levels=levels, track=track)
    return found, _data(kind, batches)


def _data(kind: str, batches: Sequence[Features]) -> CalibrationData:
    samples = sum(batch.info.size for batch in batches)
    if kind == "image":
        return CalibrationData(kind, samples)
    infos = [(batch.info, batch.tokens) for batch in batches]
    return CalibrationData(
        kind, samples, sum(info.size * width if info.mask is None else int(info.mask.sum()) for info, width in infos)
    )
