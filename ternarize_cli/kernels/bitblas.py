"""BitBLAS: int2 weights on NVIDIA GPUs."""
