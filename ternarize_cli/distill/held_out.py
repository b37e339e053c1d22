"""Measures on held-out data how near the student is to its teacher."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from ternarize_cli.distill.batch_sampler import Piece
from ternarize_cli.distill.losses import Outputs
from ternarize_cli.distill.student_teacher import Pair
from ternarize_cli.distill.training_corpus import TrainingCorpus
from ternarize_cli.errors import TernarizeError

__all__ = ["HeldOut"]

_BATCH = 32


class HeldOut:
    """Held-out texts or images. Each process computes a part of the embeddings, and all processes get all of them."""

    def __init__(self, pair: Pair, corpus: TrainingCorpus, on: Any, group: Any = None) -> None:
        """Computes the teacher's embeddings of the held-out data, of texts with its first prompt.

        Args:
            pair: student and teacher.
            corpus: the held-out data.
            on: the accelerator.
            group: the process group that connects the CPUs of all processes.

        Raises:
            TernarizeError: the teacher gives embeddings that are not finite.
        """
        self._pair, self._corpus, self._on, self._group = pair, corpus, on, group
        self._taught = self._vectors(pair.teacher_outputs)
        if not self._taught.isfinite().all():
            raise TernarizeError(
                "the teacher gives embeddings that are not finite", hint="check it: ternarize encode TEACHER texts.txt"
            )

    def look(self) -> tuple[float, float]:
        """Measures the student in eval mode, as packed: mean cosine to the teacher, and agreement of similarities.

        Of a cross-encoder, Pearson's and Spearman's correlation of its logits with the teacher's, means over labels.
        """
        modes = {module: module.training for module in self._pair.student.modules()}
        self._pair.student.eval()
        learnt = self._vectors(self._pair.student_outputs)
        for module, mode in modes.items():
            module.training = mode
        if self._pair.scores:
            return _correlations(learnt, self._taught)
        return float((learnt * self._taught).sum(dim=-1).mean()), _agreement(learnt, self._taught)

    @torch.no_grad()
    def _vectors(self, outputs: Callable[[dict[str, Any]], Outputs]) -> Tensor:
        """Computes embeddings of length 1, `[n, dim]`, or logits, in one order for any number of processes."""
        made = [torch.empty(0, self._pair.width)]
        lengths = self._corpus.lengths.clip(max=self._corpus.limit)
        rows = self._corpus.lengths.argsort(kind="stable").tolist()
        rows = rows[self._on.process_index :: self._on.num_processes]
        for start in range(0, len(rows), _BATCH):
            pieces = [Piece((row,), 0, int(lengths[row]), 0) for row in rows[start : start + _BATCH]]
            features = self._pair.put(self._corpus.features(pieces))
            made.append(outputs(features).pooled.float().cpu())
        mine = torch.cat(made)
        parts: list[Any] = [mine]
        if self._on.num_processes > 1:
            parts = [None] * self._on.num_processes
            torch.distributed.all_gather_object(parts, mine, group=self._group)
        whole = torch.cat(parts)
        return (whole if self._pair.scores else F.normalize(whole, dim=-1)).to(self._on.device)


def _correlations(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Computes Pearson's and Spearman's correlation of the columns of `a` and `b`, `[n, labels]`: means over labels.

    A column of equal values has the correlation 0 with any other; fewer than two rows have the correlation 1.
    """
    if len(a) < 2:
        return 1.0, 1.0
    columns = list(zip(a.cpu().numpy().T, b.cpu().numpy().T, strict=True))
    found = [
        (float(np.corrcoef(x, y)[0, 1]), float(spearmanr(x, y).statistic)) if np.ptp(x) and np.ptp(y) else (0.0, 0.0)
        for x, y in columns
    ]
    return float(np.mean([p for p, _ in found])), float(np.mean([s for _, s in found]))


def _agreement(a: Tensor, b: Tensor) -> float:
    """Computes Spearman's correlation between the similarities of all pairs in `a` and in `b`, `[n, dim]` each.

    It is 0 if all similarities in one of them are equal, and 1 for fewer than two pairs.
    """
    if len(a) < 3:
        return 1.0
    rows, columns = torch.triu_indices(len(a), len(a), offset=1)
    first, second = ((x @ x.T).cpu()[rows, columns].numpy() for x in (a, b))
    return float(spearmanr(first, second).statistic) if np.ptp(first) and np.ptp(second) else 0.0
