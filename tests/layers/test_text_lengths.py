"""The lengths of texts are noted at a mask, for as long as they are those of the mask."""

import numpy as np
import torch

from ternarize_cli.layers.text_lengths import lengths_of, with_lengths


def test_a_mask_that_has_changed_has_no_lengths() -> None:
    lengths = np.array([3, 2])
    mask = with_lengths(torch.tensor([[1, 1, 1], [1, 1, 0]]), lengths)
    assert lengths_of(mask) is lengths
    assert lengths_of(mask[:, :2]) is None
    mask[0, 2] = 0
    assert lengths_of(mask) is None


def test_lengths_are_noted_at_tensors_of_inference_mode() -> None:
    lengths = np.array([1])
    with torch.inference_mode():
        assert lengths_of(with_lengths(torch.ones(1, 1), lengths)) is lengths
