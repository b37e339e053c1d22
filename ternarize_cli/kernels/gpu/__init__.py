"""What the backends `triton`, `scaled_mm` and `bitblas` run on NVIDIA GPUs.

    encoder    whole passes: graphs, padding, blocks                  ▲
    int8       the four products of a block: exact sums, 2-bit        │ uses
    e4m3       … in 8-bit floating point                              │
    bitblas    … by BitBLAS                                           │
    products   what an encoder asks of these                          │
    tuning     which kernel for which shape on this card              │
    attention  a kernel between products                              │
    fused      the others: embed, norm, round                         │
    matmul     kernels of products, and the layouts of weights        │
    gelu       in products, and where they are rounded                │

Only the backends import them, when a model runs on a GPU: they need Triton.
"""

__all__: list[str] = []
