"""The fused encoder that the backends `triton`, `scaled_mm` and `bitblas` run on NVIDIA GPUs.

    encoder    forward passes: CUDA graphs, padding, blocks           ▲
    int8       a block's four products with exact sums, 2-bit weights │ uses
    e4m3       a block's four products in 8-bit floating point        │
    bitblas    a block's four products in BitBLAS's kernels           │
    products   the interface of these three                           │
    tuning     measures the fastest kernel of a shape on this GPU     │
    attention  the attention kernel between two products              │
    fused      the other kernels between products: embed, norm, round │
    matmul     kernels of products, and the layouts of weights        │
    gelu       GELU inside these kernels                              │

Only the backends import them, when a model runs on a GPU: they need Triton.
"""

__all__: list[str] = []
