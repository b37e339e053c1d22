"""Numbers as text: few are written in Python and many by pyarrow, with the same digits."""

import numpy as np
import pyarrow as pa

from ternarize_cli.vectors import vector_files


def test_few_numbers_are_written_as_many_are() -> None:
    random = np.random.default_rng(0)
    bits = random.integers(0, 1 << 32, 40_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    near = np.float32([0, -0.0, 1e-6, 9.9999e-7, 1e-5, 1, 10, 123456789, 1e9, 1e10, 1e15, 1e21, 3e38, 1e-45])
    numbers = np.concatenate([bits[np.isfinite(bits)], random.standard_normal(20_000).astype(np.float32), near])
    expected = pa.array(numbers).cast(pa.string()).to_pylist()
    found = [text for some in np.array_split(numbers, 40) for text in vector_files._shortest(some)]
    assert found == expected
