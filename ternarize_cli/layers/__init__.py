"""The modules that take the place of `nn.Linear` and `nn.Embedding`.

    stage    linear          embedding             weights
    latent   TernaryLinear   SimulatedEmbedding    dense parameters; ternarised on the fly, trainable
    packed   PackedLinear    PackedEmbedding       buffers in the packed format; run by a kernel backend

In eval mode a latent layer computes what its packed twin computes: the codes from the float32 scale, multiplied by the
float16-rounded scale of the packed file, int8 activations, the same order of operations. In training mode it uses the
straight-through estimator: dense float arithmetic on the same values, gradients to the latent weight, the scale, and
the input as if nothing had been rounded.
"""

from ternarize_cli.layers.checks import check_scale
from ternarize_cli.layers.latent import SimulatedEmbedding, TernaryLinear
from ternarize_cli.layers.packed import Packed, PackedEmbedding, PackedLinear

__all__ = ["Packed", "PackedEmbedding", "PackedLinear", "SimulatedEmbedding", "TernaryLinear", "check_scale"]
