"""The types of GGUF hold codes exactly: what the package gguf reads of them is the packed layer's matrix."""

import numpy as np
import pytest

from ternarize_cli.engines.onnx_codes import PackedLayer
from ternarize_cli.export.gguf_blocks import dense, lay_out, stack

gguf = pytest.importorskip("gguf")


def layer(
    rows: int, columns: int, groups: int = 1, low: int = -1, high: int = 1, *, table: bool = False
) -> PackedLayer:
    """A layer of random codes, its scales of many sizes: 0, subnormal, the largest, and others."""
    rng = np.random.default_rng(0)
    codes = rng.integers(low, high, (rows, columns), np.int8, endpoint=True)
    scales = rng.lognormal(-3, 2, (rows, groups)).astype(np.float16)
    scales[:3, 0] = 0, 6e-8, 65504 / max(high, -low)
    return PackedLayer("a", codes, scales, table)


@pytest.mark.parametrize(
    ("made", "bits", "kind"),
    [
        (layer(5, 512), 2, "TQ2_0"),
        (layer(5, 512, low=1), 2, "TQ2_0"),  # one code alone
        (layer(5, 512, 2), 2, "TQ2_0"),
        (layer(5, 512), 4, "Q4_0"),
        (layer(5, 512, 8), 4, "Q4_0"),
        (layer(5, 32), 2, "Q4_0"),
        (layer(5, 96, 3), 2, "Q4_0"),
        (layer(5, 256, low=-3, high=3), 2, "Q4_0"),
        (layer(5, 256, low=-8, high=7), 2, "Q4_0"),
        (layer(5, 256, low=-127, high=127, table=True), 2, "Q8_0"),
        (layer(5, 64, 2, low=-8, high=7, table=True), 2, "Q4_0"),
        (layer(5, 48), 2, "F16"),
        (layer(5, 64, 4), 2, "F16"),
        (layer(5, 40, low=-8, high=7), 2, "F32"),
        (layer(5, 40, low=-127, high=127, table=True), 2, "F32"),
        (layer(5, 40, 2, low=-8, high=7, table=True), 2, "F32"),  # groups of 32 columns and of 8
    ],
)
def test_a_layer_gets_the_first_type_that_holds_it_exactly(made: PackedLayer, bits: int, kind: str) -> None:
    found, data = lay_out(made, bits=bits)
    if hasattr(gguf.GGMLQuantizationType, "Q2_0") and bits == 2 and found == "Q2_0":
        pytest.skip("this version of the package has Q2_0")
    assert found == kind
    read = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    assert read.shape == made.codes.shape
    assert np.array_equal(read, made.dense())


def test_q2_0_is_laid_out_as_llama_cpp_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf.GGMLQuantizationType, "Q2_0", 42, raising=False)
    made = layer(5, 192, high=2)
    kind, data = lay_out(made, bits=2)
    assert (kind, data.shape, data.dtype) == ("Q2_0", (5, 3 * 18), np.uint8)
    blocks = data.reshape(5, 3, 18)
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float32)
    codes = (blocks[..., 2:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3).astype(np.float32) - 1
    assert np.array_equal((codes.reshape(5, 3, 64) * scales).reshape(5, 192), made.dense())


def test_arrays_are_float16_only_where_that_is_exact() -> None:
    values = np.float32([[1, 0.5], [2, -3]])
    assert lay_out(values, bits=2)[0] == "F16"
    assert lay_out(values[0], bits=2)[0] == "F32"
    for value in (1 / 3, 70000.0):
        kind, data = lay_out(values * np.float32(value), bits=2)
        assert kind == "F32"
        assert np.array_equal(data, values * np.float32(value))


def test_stacked_layers_keep_their_codes_if_their_scales_are_alike() -> None:
    parts = [layer(5, 64), layer(3, 64)]
    stacked = stack([*parts])
    assert isinstance(stacked, PackedLayer)
    assert np.array_equal(stacked.dense(), np.concatenate([part.dense() for part in parts]))
    mixed = stack([parts[0], parts[1].dense()])
    assert np.array_equal(dense(mixed), stacked.dense())
    assert not isinstance(stack([parts[0], layer(3, 64, 2)]), PackedLayer)
