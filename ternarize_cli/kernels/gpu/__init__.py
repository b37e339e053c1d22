"""What the backends `triton`, `scaled_mm` and `bitblas` run on NVIDIA GPUs.

    encoder    whole passes: graphs, padding, blocks                  ▲
    products   the four products of a block, in int8 or e4m3          │ uses
    bitblas    the same by BitBLAS                                    │
    tuning     which kernel for which shape on this card              │
    fused      kernels between products: embed, norm, attention       │
    matmul     kernels of products, and the layouts of weights        │

Only the backends import them, when a model runs on a GPU: they need Triton.
"""

__all__: list[str] = []
