"""Compares what candidates compute before they are timed: a fast wrong kernel or export must not look good.

    backends, onnx-int2      with `reference`, which runs the packed model
    other rivals             with the full-precision model in fp32 (`torch-fp32`)

A rival whose outputs are further off than its precision explains (`Rival.tolerance`), or that fails, is left out with a
sentence. Backends stay: their distance stands in the report.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ternarize_cli.bench.candidates import BACKEND, RIVAL, BenchCandidate, relative_l2
from ternarize_cli.bench.feeds import Feed
from ternarize_cli.bench.subject import Subject
from ternarize_cli.engines import baselines
from ternarize_cli.engines.baselines import Forward
from ternarize_cli.engines.inputs import Batch
from ternarize_cli.errors import TernarizeError
from ternarize_cli.progress import Track

__all__ = ["Compared", "Loaded", "compare_outputs", "load"]

_EXACT = "torch-fp32"
_UNRECORDED = 2


@dataclass
class Loaded:
    """The candidates that take part, and what their outputs are compared with.

    Attributes:
        candidates: the candidates that could be loaded and compute what they should, in order.
        forwards: for each by name, its forward pass.
        ran: for each by name, the backend that ran.
        reference: the forward pass of the packed model by `reference`.
        exact: that of the full-precision model in fp32; None if no rival needs it.
        notes: a sentence on each rival that was left out, and on how others are made.
    """

    candidates: list[BenchCandidate]
    forwards: dict[str, Forward]
    ran: dict[str, str]
    reference: Forward
    exact: Forward | None
    notes: list[str]

    def leave_out(self, name: str, why: str) -> None:
        """Takes a rival out of the run."""
        self.candidates = [c for c in self.candidates if c.name != name]
        self.forwards.pop(name, None)
        self.notes.append(f"left out: {name} {why}")


@dataclass(frozen=True)
class Compared:
    """What the batches of a point are, and how far the candidates' outputs are off.

    Attributes:
        distance: for each candidate by name, the relative L2 distance of its worst text or image.
        real, padded: for each batch, the number of tokens without and with padding.
    """

    distance: dict[str, float]
    real: list[int]
    padded: list[int]


def load(candidates: Sequence[BenchCandidate], subject: Subject, track: Track) -> Loaded:
    """Loads all candidates; a rival that can't be made of this model is left out with a note.

    Raises:
        UnavailableError: a backend can't run on this machine, or can't run this model.
    """
    device = candidates[0].device
    made = Loaded([], {}, {}, lambda *batch: batch[0], None, [])
    for candidate in track(candidates, "loading", len(candidates)):
        try:
            made.forwards[candidate.name], made.ran[candidate.name] = candidate.load()
        except TernarizeError as e:
            if candidate.kind != RIVAL:
                raise
            made.leave_out(candidate.name, f"can't be made of this model: {e}")
            continue
        made.candidates.append(candidate)
        made.notes += candidate.described()
    made.reference = (
        made.forwards.get("reference") or BenchCandidate("reference", BACKEND, subject.packed, device).load()[0]
    )
    if any(_needs_exact(candidate) for candidate in made.candidates):
        made.exact = made.forwards.get(_EXACT) or baselines.require_baseline(_EXACT, device).build(
            subject.dense, device
        )
    return made


def compare_outputs(feed: Feed, loaded: Loaded, *, recording: bool) -> Compared:
    """Runs every batch of a point once with each candidate, and leaves out rivals that fail or compute something else.

    Args:
        feed: the batches of the point.
        loaded: the candidates, from which rivals are taken.
        recording: backends are run before, since on a GPU the first pass of a shape is not recorded yet.
    """
    distance = {candidate.name: 0.0 for candidate in loaded.candidates}
    real, padded = [], []
    for batch in feed.batches:
        mask = None if feed.image else batch[1]
        reference = loaded.reference(*batch)
        exact = loaded.exact(*batch).clone() if loaded.exact else reference
        for candidate in list(loaded.candidates):
            if recording and candidate.kind == BACKEND:
                for _ in range(_UNRECORDED):
                    loaded.forwards[candidate.name](*batch)
            expected = exact if _needs_exact(candidate) else reference
            found = _distance(candidate, loaded, batch, expected, mask, feed.title)
            distance[candidate.name] = max(distance[candidate.name], found)
        padded.append(reference.shape[0] * reference.shape[1])
        real.append(padded[-1] if mask is None else int(mask.sum()))
    return Compared(distance, real, padded)


def _needs_exact(candidate: BenchCandidate) -> bool:
    return candidate.kind == RIVAL and not baselines.require_baseline(candidate.name, candidate.device).packed


def _distance(
    candidate: BenchCandidate, loaded: Loaded, batch: Batch, expected: Tensor, mask: Tensor | None, point: str
) -> float:
    """Computes a candidate's distance; leaves a rival out if it fails or is too far off."""
    if candidate.kind == BACKEND:
        return relative_l2(loaded.forwards[candidate.name](*batch), expected, mask)
    try:
        hidden = loaded.forwards[candidate.name](*batch)
    except TernarizeError as e:
        loaded.leave_out(candidate.name, f"fails at {point}: {e}")
        return torch.inf
    found = relative_l2(hidden, expected, mask) if hidden.shape == expected.shape else torch.inf
    if not found <= baselines.require_baseline(candidate.name, candidate.device).tolerance:
        loaded.leave_out(
            candidate.name, f"computes something else than the model at {point}: its outputs are off by {found:.0%}"
        )
    return found
