"""The matrices of a packed model, with which those of its exports are compared."""

from collections import Counter
from typing import Any

import torch

from ternarize_cli.layers import PackedEmbedding, PackedLinear


def packed_matrices(model: Any) -> Counter[bytes]:
    """The float32 matrices of a packed model, without the pooler that no vector needs: codes times scales."""
    found: Counter[bytes] = Counter()
    for name, module in model.named_modules():
        if "pooler" in name:
            continue
        if isinstance(module, PackedLinear):
            codes, scales = module.codes().numpy(), module.weight_scale.float().numpy()
            matrix = codes * scales.repeat(codes.shape[1] // scales.shape[1], axis=1)
        elif isinstance(module, PackedEmbedding):
            matrix = module(torch.arange(module.num_embeddings)).numpy()
        else:
            continue
        found[(matrix + 0.0).tobytes()] += 1
    return found
