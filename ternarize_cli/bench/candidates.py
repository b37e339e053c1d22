"""The candidates of a comparison: backends on the packed model, and rivals on the full-precision model.

Both become a `Forward`, the transformer's pass from token ids or pixels to the last hidden state. Tokenising and
pooling do not differ between candidates, and are left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from ternarize_cli import kernels
from ternarize_cli.encoders import checkpoint
from ternarize_cli.engines import baselines, exports
from ternarize_cli.engines.baselines import Forward

__all__ = ["BACKEND", "RIVAL", "BenchCandidate", "relative_l2"]

BACKEND, RIVAL = "backend", "rival"


@dataclass(frozen=True)
class BenchCandidate:
    """A backend or a rival, with the folder it loads.

    Attributes:
        name: name of the backend or rival, as the user typed it.
        kind: `BACKEND` or `RIVAL`.
        folder: the folder of the packed model for a backend, or of the full-precision model for a rival.
        device: name of a torch device.
    """

    name: str
    kind: str
    folder: Path
    device: str

    def prepare(self) -> Callable[[], Forward]:
        """Returns a function that loads the forward pass in a process that runs nothing else.

        All that is done once comes first: the libraries are imported, and the files are made unless they exist.

        Raises:
            TernarizeError: the rival can't be made from the model.
        """
        checkpoint.skeleton(self.folder)  # imports the model's class
        if self.kind != RIVAL:
            return lambda: self.load()[0]
        rival = baselines.require_baseline(self.name, self.device)
        return partial(rival.alone or rival.load, rival.prepare(self.folder, alone=True), self.device)

    def described(self) -> list[str]:
        """Says in a sentence how the rival is run, if there is something to say; its files exist."""
        if self.kind != RIVAL:
            return []
        rival = baselines.require_baseline(self.name, self.device)
        return [rival.describe(rival.prepare(self.folder))] if rival.describe else []

    def load(self) -> tuple[Forward, str]:
        """Loads the forward pass; also returns the name of the backend that runs ("onednn" for "auto", for example).

        Raises:
            UnavailableError: the backend can't run on this machine, or can't run this model.
            TernarizeError: the rival can't be made from the model.
        """
        if self.kind == RIVAL:
            return baselines.require_baseline(self.name, self.device).build(self.folder, self.device), self.name
        model = exports.transformer(self.folder).to(self.device)
        ran = kernels.use_backend(model, self.name)
        return baselines.forward_of(model), ran


def relative_l2(hidden: Tensor, reference: Tensor, mask: Tensor | None = None) -> float:
    """Computes the largest relative distance ‖y − r‖ / ‖r‖ of a text or image in the batch.

    Args:
        hidden: y, [batch, tokens, width].
        reference: r, [batch, tokens, width].
        mask: [batch, tokens], 0 where a token is padding and does not count; None means that all tokens count.
    """
    seen = 1.0 if mask is None else mask[..., None]
    y, r = ((x.float() * seen).flatten(1) for x in (hidden, reference))
    return float(((y - r).norm(dim=1) / r.norm(dim=1)).max())
