"""What the backends `triton` and `scaled_mm` run on NVIDIA GPUs.

    encoder    whole passes: graphs, padding, blocks                  ▲
    products   the four products of a block, in int8 or e4m3          │ uses
    tuning     which kernel for which shape on this card              │
    fused      kernels between products: embed, norm, attention       │
    matmul     kernels of products, and the layouts of weights        │

Only `kernels.triton` and `kernels.scaled_mm` import them, when a model runs on a GPU: they need Triton.
"""

__all__: list[str] = []
