"""Defines the modules that replace `nn.Linear` and `nn.Embedding`.

    stage    linear          embedding             weights
    latent   TernaryLinear   SimulatedEmbedding    dense parameters; ternarised on the fly, trainable
    packed   PackedLinear    PackedEmbedding       buffers in the packed format; run by a kernel backend

In eval mode a latent layer computes exactly what the packed layer made from it computes: codes from the float32 scale,
multiplied by the float16 scale of the packed file, int8 activations, in one order of operations. In training mode it
uses the straight-through estimator: dense float arithmetic on these values, and gradients to the latent weight, the
scale and the input as if nothing were rounded.

The decoder of a masked language model is a linear whose weight is the word table. At both stages a `TableDecoder` takes
its place, which multiplies with the rows that the table gives.
"""

from ternarize_cli.layers.checks import check_scale
from ternarize_cli.layers.latent import SimulatedEmbedding, TernaryLinear
from ternarize_cli.layers.packed import Packed, PackedEmbedding, PackedLinear
from ternarize_cli.layers.table_decoder import TableDecoder

ROW_FACTOR_HOOK = "row_factor_hook"
"""The name of the forward hook that multiplies the rows of a table whose class does so (Gemma's word table)."""

__all__ = [
    "ROW_FACTOR_HOOK",
    "Packed",
    "PackedEmbedding",
    "PackedLinear",
    "SimulatedEmbedding",
    "TableDecoder",
    "TernaryLinear",
    "check_scale",
]
