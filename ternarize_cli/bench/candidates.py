"""What takes part in a comparison: backends on the packed model, rivals on the full-precision one.

Both become a `Forward`, the transformer's pass from token ids to the last hidden state. Tokenising and pooling are
the same for all and left out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ternarize_cli import models
from ternarize_cli.bench import baselines
from ternarize_cli.bench.baselines import Forward
from ternarize_cli.bench.measure import Point
from ternarize_cli.layers import PackedLinear

__all__ = ["BACKEND", "RIVAL", "Candidate", "random_batch", "relative_l2"]

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

    def load(self) -> tuple[Forward, str]:
        """The forward pass, and the name of what really runs ("onednn" where "auto" was asked for).

        Raises:
            UnavailableError: the backend can't run here or can't run this model.
        """
        if self.kind == RIVAL:
            return baselines.require(self.name).build(self.folder, self.device), self.name
        encoder = models.load_encoder(self.folder, backend=self.name, device=self.device)
        ran = sorted({module.backend for module in encoder.modules() if isinstance(module, PackedLinear)})
        return baselines.forward_of(encoder[0].auto_model), "+".join(ran)


def random_batch(config: dict[str, Any], point: Point, seed: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Random token ids of the vocabulary, without the padding token, and a mask of ones.

    Returns:
        ids and mask, both int64 [batch, tokens].
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(config["vocab_size"] - 1, (point.batch, point.tokens), generator=generator)
    ids += ids >= (config.get("pad_token_id") or 0)
    return ids.to(device), torch.ones_like(ids, device=device)


def relative_l2(hidden: Tensor, reference: Tensor) -> float:
    """‖y − r‖ / ‖r‖ of the worst sentence of the batch; y and r: [batch, tokens, width]."""
    y, r = hidden.float().flatten(1), reference.float().flatten(1)
    return float(((y - r).norm(dim=1) / r.norm(dim=1)).max())
