"""Scores of tasks, as `eval` keeps them."""

from typing import Any

import numpy as np

from ternarize_cli.evaluation.samples import Samples, Score

__all__ = ["make_score"]


def make_score(seed: int = 0, **changes: Any) -> Score:
    """Makes a score of 50 samples; `changes` replaces fields."""
    rng = np.random.default_rng(seed)
    samples = Samples("spearman", rng.normal(size=50), rng.integers(0, 6, size=50).astype(float))
    values = {"task": "pairs", "metric": "cosine_spearman", "size": 50, "value": 1 / 3, "samples": samples}
    return Score(**(values | changes))
