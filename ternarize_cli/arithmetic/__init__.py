"""Ternary arithmetic on tensors: rules for scales and codes, quantised tables, and fused elementwise GPU kernels."""
