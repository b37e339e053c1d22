"""`convert`, `pack`, `inspect`: from a full-precision folder to a ternary checkpoint to a packed model."""
