"""Packed linears of random codes."""

import torch

from ternarize_cli.arithmetic import packing
from ternarize_cli.format.scheme import LEVELS, Scheme
from ternarize_cli.layers import PackedLinear


def random_layer(outputs: int, inputs: int, scheme: Scheme, *, bias: bool = True, seed: int = 0) -> PackedLinear:
    generator = torch.Generator().manual_seed(seed)
    layer = PackedLinear(inputs, outputs, bias, scheme)
    grid = torch.tensor(LEVELS[scheme.levels])
    layer.weight = packing.pack(layer.codec, grid[torch.randint(len(grid), (outputs, inputs), generator=generator)])
    layer.weight_scale = torch.rand(layer.weight_scale.shape, generator=generator).half()
    if bias:
        layer.bias = torch.randn(outputs, generator=generator)
    return layer
