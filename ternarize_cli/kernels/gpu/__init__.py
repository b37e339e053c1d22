"""The fused encoder that the backends `triton`, `scaled_mm` and `bitblas` run on NVIDIA GPUs.

    forward     replaces a model's `forward`                             ▲
    encoder     forward passes: CUDA graphs, padding, embedding          │ uses
    token_rows  lays the real tokens of a batch side by side             │
    pass_sizes  rounds the sizes of such a pass                          │
    blocks      blocks, as their description says                        │
    int8        a block's four products with exact sums, 2-bit weights   │
    e4m3        a block's four products in 8-bit floating point          │
    bitblas     a block's four products in BitBLAS's kernels             │
    products    the interface of these three                             │
    attention   the attention kernel between two products                │
    heads       norms and turns queries and keys before it               │
    embedding, norm, rounding   the other kernels between products       │
    patches     cuts images into patches                                 │
    positions   rotary positions, and biases of scores                   │
    matmul      kernels of products, and the layouts of weights          │
    activation  activations inside these kernels                         │
    tuning      measures the fastest kernel of a shape on this GPU       │

Only the backends import them, when a model runs on a GPU: they need Triton, all but `pass_sizes`.
"""

__all__: list[str] = []
