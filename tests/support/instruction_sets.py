"""Facts about the instruction sets of the native runtime that tests need."""

# These compute attention in bfloat16, and GELU to 5e-5.
SHORT = frozenset({"amx", "vnnibf16"})
