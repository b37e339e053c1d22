"""What takes part in a comparison: backends on the packed model, rivals on the full-precision one.

Both become a `Forward`, the transformer's pass from token ids or pixels to the last hidden state. Tokenising and
pooling are the same for all and left out.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ternarize_cli import kernels
from ternarize_cli.encoders import checkpoint
from ternarize_cli.engines import baselines, exports
from ternarize_cli.engines.baselines import Forward

__all__ = ["BACKEND", "RIVAL", "Candidate", "relative_l2"]

BACKEND, RIVAL = "backend", "rival"


@dataclass(frozen=True)
class Candidate:
    """A backend or a rival, with the folder it loads.

    Attributes:
        name: of the backend or rival, as the user named it.
        kind: `BACKEND` or `RIVAL`.
        folder: the packed model for a backend, the full-precision one for a rival.
        device: torch device.
    """

    name: str
    kind: str
    folder: Path
    device: str

    def prepare(self) -> Path:
        """Imports what `load` needs and makes what it reads, where that is not there yet; returns the path it reads.

        Raises:
            TernarizeError: a rival can't be made of the model.
        """
        checkpoint.skeleton(self.folder)  # imports the model's class
        return baselines.require(self.name, self.device).prepare(self.folder) if self.kind == RIVAL else self.folder

    def load(self, path: Path | None = None) -> tuple[Forward, str]:
        """The forward pass, and the name of what really runs ("onednn" where "auto" was asked for).

        Args:
            path: what `prepare` returned; None prepares first.

        Raises:
            UnavailableError: the backend can't run here or can't run this model.
        """
        path = path or self.prepare()
        if self.kind == RIVAL:
            return baselines.require(self.name, self.device).load(path, self.device), self.name
        model = exports.transformer(path).to(self.device)
        ran = kernels.use_backend(model, self.name)
        return baselines.forward_of(model), ran


def relative_l2(hidden: Tensor, reference: Tensor, mask: Tensor | None = None) -> float:
    """‖y − r‖ / ‖r‖ of the worst text or image of the batch; y and r: [batch, tokens, width].

    Args:
        hidden: y.
        reference: r.
        mask: [batch, tokens], 0 where a token is padding and does not count; None: all count.
    """
    seen = 1.0 if mask is None else mask[..., None]
    y, r = ((x.float() * seen).flatten(1) for x in (hidden, reference))
    return float(((y - r).norm(dim=1) / r.norm(dim=1)).max())
