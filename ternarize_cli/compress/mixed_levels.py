"""The dial between ternary and int4: chooses the linears that become int4 under a budget of bits.

The need of a linear is measured: it alone is rounded, the rest of the model stays as it is, and the model's vectors of
a few texts (or images) are compared with those that it gives unrounded. What a linear gains is the squared error that
ternary weights leave less the one that int4 leaves. Linears are then taken by their gain for each byte that they cost,
the largest first, as long as they fit the budget. Linears that kernels run as one product (queries, keys and values, or
a gate and what it multiplies) are rounded and chosen together.

Bits are those of a packed model with the codec `2bit`: codes and scales of all converted linears over their weights.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ternarize_cli.arithmetic import ternary
from ternarize_cli.compress.options import Calibration, ConvertOptions
from ternarize_cli.compress.result_check import vectors_of
from ternarize_cli.compress.source_model import SourcePart
from ternarize_cli.data.images import read_images
from ternarize_cli.data.pairs import pairs_of
from ternarize_cli.data.text_sources import texts_of
from ternarize_cli.data.texts import STDIN, drawn
from ternarize_cli.encoders import blocks
from ternarize_cli.encoders.anatomy import encoder_in, names_in_encoder
from ternarize_cli.encoders.heads import load_with_head
from ternarize_cli.encoders.loading import can_encode
from ternarize_cli.encoders.modalities import modality_of_sources
from ternarize_cli.errors import InputError
from ternarize_cli.format.scheme import Scheme
from ternarize_cli.model_folder.model_kind import kind_of
from ternarize_cli.progress import Track

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Levels", "with_levels"]

_OTHER = "int4"
_SAMPLES, _CHARACTERS = 24, 240
"""How many texts or images are compared, and how many characters of a text are read."""
_TINY = 1e-3
"""Bytes by which a budget is exceeded where its bits were rounded."""
_TEXTS = (
    "The river rose over its banks after three days of rain, and the lower bridge was closed.",
    "How do I change the password of my account?",
    "A small company in the north builds wooden boats by hand.",
    "Install the package, then restart the service and look at its log.",
    "Vitamin C is found in oranges, peppers and cabbage.",
    "the quick start guide for new users",
    "She sold the old house in spring and moved to the coast with her sister.",
    "Interest rates were left unchanged by the central bank on Thursday.",
    "What is the difference between a virus and a bacterium?",
    "The second half began with an early goal for the visitors.",
    "Returns a list of the files in a folder, sorted by name.",
    "Light takes about eight minutes to travel from the sun to the earth.",
    "I would not buy this kettle again: the lid broke within a week.",
    "In 1848 revolutions spread across much of Europe.",
    "Simmer the onions in butter until they are soft, then add the stock.",
    "error: connection refused by the remote host on port 8080",
)
"""What a model of texts is measured on without a calibration."""


class Levels(NamedTuple):
    """What was chosen for the linears of a model.

    Attributes:
        parts: the parts of the model, with the grids of their linears.
        needs: for each linear the root mean square distance of the model's vectors from those of the unrounded one, in
            lengths of a vector, when this linear and those that run with it are ternary alone; empty without a budget.
    """

    parts: list[SourcePart]
    needs: Mapping[str, float]


@dataclass(frozen=True)
class _Group:
    """Linears that are chosen together.

    Attributes:
        members: the index of the part of each linear, and its name in the part.
        extra: bytes that they take more as int4.
    """

    members: tuple[tuple[int, str], ...]
    extra: int


def with_levels(
    folder: Path,
    parts: list[SourcePart],
    scheme: Scheme,
    options: ConvertOptions,
    calibration: Calibration | None,
    track: Track,
) -> Levels:
    """Chooses the linears that become int4, so that all take `options.bits` bits a weight in the mean, or a bit less.

    Without a budget (`options.bits` is None) the parts stay as they are.

    Args:
        folder: the full-precision model.
        parts: its parts.
        scheme: the scheme of all other linears, which are ternary.
        options: the budget, the seed, and whether pickled weights may be read.
        calibration: whose texts or images the linears are measured on; None: a few sentences, or images of noise.
        track: reports progress over linears.

    Raises:
        InputError: the budget is less than ternary linears take or more than int4 ones take, the scheme is not
            ternary by the rule "optimal", or the model has neither tokenizer nor image processor.
        CheckpointError, DataError: the model or the data of the calibration can't be read.
    """
    if options.bits is None:
        return Levels(parts, {})
    if scheme.levels != "ternary":
        raise InputError(
            f"bits mixes {_OTHER} linears with ternary ones, and levels is {scheme.levels}", hint="--levels mixed"
        )
    schemes = scheme, replace(scheme, levels=_OTHER)
    least, most, count = _bytes(parts, {}), _bytes(parts, _all_other(parts)), _weights(parts)
    low, high = (8 * sum(sizes.values()) / count for sizes in (least, most))
    if not low <= options.bits <= high:
        raise InputError(
            f"--bits {options.bits:g} is out of range: this model's linears take {math.ceil(low * 1000) / 1000} bits a "
            f"weight if all are ternary, and {math.floor(high * 1000) / 1000} if all are {_OTHER}",
            hint=f"--bits {(low + high) / 2:.2g}",
        )
    if not can_encode(folder):
        raise InputError(
            f"{folder} has neither tokenizer nor image processor, so what its linears need can't be measured",
            hint=f"--levels ternary, or --levels {_OTHER}",
        )
    groups = [_Group(members, sum(most[member] - least[member] for member in members)) for members in _joined(parts)]
    errors = _errors(folder, parts, groups, schemes, options, calibration, track)
    chosen = _chosen(groups, errors, options.bits * count / 8 - sum(least.values()))
    levels = [{name: _OTHER for name in one.policy.linears if (i, name) in chosen} for i, one in enumerate(parts)]
    return Levels(
        [
            replace(one, policy=replace(one.policy, module_levels=found))
            for one, found in zip(parts, levels, strict=True)
        ],
        {
            parts[i].part.prefix + name: error[0] ** 0.5
            for group, error in zip(groups, errors, strict=True)
            for i, name in group.members
        },
    )


def _all_other(parts: Sequence[SourcePart]) -> dict[int, dict[str, str]]:
    return {i: dict.fromkeys(one.policy.linears, _OTHER) for i, one in enumerate(parts)}


def _bytes(parts: Sequence[SourcePart], levels: Mapping[int, Mapping[str, str]]) -> dict[tuple[int, str], int]:
    """Returns the bytes of each linear's codes and scales, given the grids of those that are not ternary."""
    made = (replace(one, policy=replace(one.policy, module_levels=levels.get(i, {}))) for i, one in enumerate(parts))
    return {
        (i, d.module): d.bytes_packed
        for i, one in enumerate(made)
        for d in one.decisions.values()
        if d.fate == "ternary"
    }


def _weights(parts: Sequence[SourcePart]) -> int:
    shapes = (d.matrix for one in parts for d in one.decisions.values() if d.fate == "ternary")
    return sum(rows * columns for rows, columns in shapes)


def _joined(parts: Sequence[SourcePart]) -> list[tuple[tuple[int, str], ...]]:
    """Lists all linears, those that kernels run as one product together, in the model's order."""
    found: dict[tuple[object, ...], list[tuple[int, str]]] = {}
    for i, one in enumerate(parts):
        own = names_in_encoder(one.model)
        together = {
            f"{stack}.{block.layers}.{layer}.{name}".lstrip("."): (i, stack, layer, names)
            for stack, block in ({} if one.part.subfolder else blocks.blocks_of(encoder_in(one.model))).items()
            for layer in range(len(block))
            for names in (block.qkv, block.up)
            for name in names
        }
        for name in one.policy.linears:
            found.setdefault(together.get(own.get(name, ""), (i, name)), []).append((i, name))
    return [tuple(members) for members in found.values()]


def _chosen(groups: Sequence[_Group], errors: Sequence[tuple[float, float]], room: float) -> set[tuple[int, str]]:
    """Takes groups by their gain for a byte, as far as `room` bytes go; a group without gain is not taken."""
    gains = [(as_ternary - other) / group.extra for group, (as_ternary, other) in zip(groups, errors, strict=True)]
    chosen: set[tuple[int, str]] = set()
    for i in sorted(range(len(groups)), key=lambda i: -gains[i]):
        if gains[i] > 0 and groups[i].extra <= room + _TINY:
            room -= groups[i].extra
            chosen.update(groups[i].members)
    return chosen


def _errors(
    folder: Path,
    parts: Sequence[SourcePart],
    groups: Sequence[_Group],
    schemes: tuple[Scheme, Scheme],
    options: ConvertOptions,
    calibration: Calibration | None,
    track: Track,
) -> list[tuple[float, float]]:
    """Measures for each group the mean squared distance of the model's vectors, as ternary and as int4."""
    device, threads = (None, None) if calibration is None else (calibration.device, calibration.threads)
    encoder = load_with_head(folder, device=device, threads=threads, allow_pickle=options.allow_pickle).float()
    samples = _samples(folder, calibration, options.seed)
    models = [one.part.module_of(encoder) for one in parts]
    wanted = vectors_of(encoder, folder, *samples)
    found = []
    for group in track(groups, "measuring the need of linears", len(groups)):
        linears = [models[i].get_submodule(name) for i, name in group.members]
        both = []
        for scheme in schemes:
            with _rounded(linears, scheme):
                both.append(_distance(vectors_of(encoder, folder, *samples), wanted))
        found.append((both[0], both[1]))
    return found


@contextmanager
def _rounded(linears: Sequence[nn.Module], scheme: Scheme) -> "Iterator[None]":
    """Rounds the weights of linears for a while."""
    kept: dict[Tensor, Tensor] = {}  # linears may share a weight
    try:
        for module in linears:
            assert isinstance(module, nn.Linear | Conv1D)
            if module.weight in kept:
                continue
            weight = kept[module.weight] = module.weight.data
            matrix = weight.T if isinstance(module, Conv1D) else weight
            scale = ternary.scale_of(matrix, scheme).half().float()
            dense = ternary.dequantize(ternary.codes_of(matrix, scale, scheme.levels), scale)
            module.weight.data = dense.T if isinstance(module, Conv1D) else dense
        yield
    finally:
        for parameter, weight in kept.items():
            parameter.data = weight


def _distance(given: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> float:
    """The mean squared distance between vectors, in lengths of those that are wanted."""
    of_kinds = []
    for kind, vectors in wanted.items():
        squares = np.square(vectors, dtype=np.float64).sum(axis=1)
        missed = np.square(given[kind] - vectors, dtype=np.float64).sum(axis=1)
        of_kinds.append(float((missed / np.where(squares > 0, squares, 1)).mean()))
    return sum(of_kinds) / len(of_kinds)


def _samples(folder: Path, calibration: Calibration | None, seed: int) -> tuple[Sequence[str], Sequence[Any] | None]:
    """Draws texts and images from the sources of a calibration, as many from each; without one they are our own.

    Returns:
        The texts, and the images; None for images of noise.
    """
    if calibration is None:
        return _TEXTS, None
    share = -(-_SAMPLES // len(calibration.sources))
    if modality_of_sources(folder, calibration.sources) == "image":
        return _TEXTS, [
            image for source in calibration.sources for image in read_images(source, limit=share, seed=seed)
        ]
    texts: list[str] = []
    for source in (source for source in calibration.sources if str(source) != STDIN):  # which is read once
        if kind_of(folder) == "cross-encoder":
            pairs = islice(pairs_of(source, _SAMPLES, seed), share)
            texts += [text for pair in pairs for text in pair]
        else:
            texts += drawn(filter(None, texts_of(source, share, seed)), share, seed, str(source))
    return [text[:_CHARACTERS] for text in texts] or _TEXTS, None
