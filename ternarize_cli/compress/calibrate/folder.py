"""Calibration of a model folder: its encoder is loaded, and the linears of all its parts are calibrated together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from ternarize_cli.compress.calibrate.data import DEFAULT_TOKENS, Features, make_batches
from ternarize_cli.compress.calibrate.run import Calibrated, calibrate
from ternarize_cli.compress.calibrate.solve import CalibrationRecipe
from ternarize_cli.compress.tensor_policy import TensorPolicy
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.encoders.modalities import modality_of_sources
from ternarize_cli.encoders.parts import Part
from ternarize_cli.errors import InputError
from ternarize_cli.format.scheme import CalibrationData, Scheme
from ternarize_cli.progress import Track, silent

__all__ = ["Calibration", "calibrate_folder"]


@dataclass(frozen=True)
class Calibration:
    """What to calibrate on, and how.

    Attributes:
        sources: files, folders or hub datasets: all texts, or all images.
        samples: at most so many texts or images, over all sources; None: the defaults of `make_batches`.
        tokens: about so many tokens of text, over all sources.
        recipe: how codes and scales are found.
        device, threads: as `loading.load_encoder` takes them.
    """

    sources: tuple[str | Path, ...]
    samples: int | None = None
    tokens: int = DEFAULT_TOKENS
    recipe: CalibrationRecipe = field(default_factory=CalibrationRecipe)
    device: str | None = None
    threads: int | None = None

    def check(self, folder: Path, scheme: Scheme) -> str:
        """Refuses what can't work, before any work is done; tells "text" or "image", as `modality_of_sources`.

        Raises:
            InputError: a rule that fixes the scales, which calibration chooses.
            DataError, CheckpointError: as `modality_of_sources`.
        """
        if scheme.rule != "optimal":
            raise InputError(
                f"calibration chooses the scales itself, and the rule {scheme.rule} would fix them",
                hint="drop --rule and --beta, or --calibrate",
            )
        return modality_of_sources(folder, self.sources)


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
    """Calibrates the linears of a folder's parts that become ternary, as the part's policy says.

    Returns:
        What was found, by name with the part's prefix (linears that the data does not reach are absent), and what it
        was fitted to.

    Raises:
        InputError, DataError, CheckpointError: as `Calibration.check`, `make_batches`, `load_encoder` and `calibrate`.
    """
    kind = calibration.check(folder, scheme)
    encoder = load_encoder(
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
    tables: dict[nn.Module, int] = {}
    for part, policy in parts:
        model = encoder[part.index] if part.subfolder else encoder[0].auto_model
        linears |= {part.prefix + name: model.get_submodule(name) for name in policy.linears}
        tables |= {model.get_submodule(name): policy.table_bits(name) for name in policy.tables}
    found = calibrate(encoder, batches, linears, tables, scheme, calibration.recipe, track=track)
    return found, _data(kind, batches)


def _data(kind: str, batches: Sequence[Features]) -> CalibrationData:
    samples = sum(batch.info.size for batch in batches)
    if kind == "image":
        return CalibrationData(kind, samples)
    infos = [(batch.info, batch.tokens) for batch in batches]
    return CalibrationData(
        kind, samples, sum(info.size * width if info.mask is None else int(info.mask.sum()) for info, width in infos)
    )
