"""Ternary arithmetic on tensors: rules for scales and codes, rounded tables, and GPU kernels of elementwise chains."""
