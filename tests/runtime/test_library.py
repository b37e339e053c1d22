"""The compiled library on every instruction set: exact sums, products of the reference, and refusals in words."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from support.instruction_sets import SETS, needs_library
from support.random_layers import random_layer
from ternarize_cli.arithmetic import packing
from ternarize_cli.arithmetic.ternary import ternary_linear
from ternarize_cli.errors import FormatError, UnavailableError
from ternarize_cli.format.codecs import codec_for
from ternarize_cli.format.scheme import LEVELS, Scheme
from ternarize_cli.layers import PackedLinear
from ternarize_cli.runtime import native
from ternarize_cli.runtime.native import interface
from ternarize_cli.runtime.native import threads as native_threads
from ternarize_cli.runtime.native.arrays import aligned
from ternarize_cli.runtime.native.library import Library, library
from ternarize_cli.runtime.native.weights import NormWeights, PackedCodes

pytestmark = needs_library


def packed(lib: Library, layer: PackedLinear) -> PackedCodes:
    scale, bias = layer.weight_scale.float().flatten().numpy(), layer.bias
    return PackedCodes(
        lib, layer.codec, layer.weight.numpy(), layer.in_features, scale, None if bias is None else bias.numpy()
    )


def reference(layer: PackedLinear, x: np.ndarray) -> np.ndarray:
    made: np.ndarray = ternary_linear(torch.from_numpy(x), layer.codes(), layer.weight_scale, layer.bias).numpy()
    return made


def random_rows(rows: int, width: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width), dtype=np.float32)


@pytest.mark.parametrize(("levels", "codec"), [("ternary", "2bit"), ("ternary", "base3"), ("int4", "4bit")])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(1, 384, 384), (7, 33, 5), (16, 1, 1), (17, 65, 33), (65, 127, 130), (300, 768, 96), (4096, 63, 31), (0, 8, 4)],
)
def test_sums_are_the_exact_integers(
    lib: Library, rows: int, inputs: int, outputs: int, levels: str, codec: str
) -> None:
    codes = random_layer(outputs, inputs, Scheme(levels=levels)).codes()
    stored = packing.pack(codec_for(levels, codec), codes).numpy()
    w = PackedCodes(lib, codec_for(levels, codec), stored, inputs, np.ones(outputs, np.float32), None)
    x = np.random.default_rng(1).integers(-127, 128, (rows, inputs))
    x[:, 0] = 127  # so that rounding to int8 changes nothing
    assert (lib.sums(w, x.astype(np.float32)) == x @ codes.numpy().T.astype(np.int64)).all()


@pytest.mark.parametrize("inputs", [64, 1 << 20])
@pytest.mark.parametrize("levels", ["ternary", "int4"])
def test_the_largest_sums_fit(lib: Library, levels: str, inputs: int) -> None:
    codec, (low, high) = codec_for(levels), (LEVELS[levels][0], LEVELS[levels][-1])
    codes = torch.tensor([[low], [high]], dtype=torch.int8).expand(2, inputs)
    w = PackedCodes(lib, codec, packing.pack(codec, codes).numpy(), inputs, np.ones(2, np.float32), None)
    x = np.repeat(np.float32([[127], [-127]]), inputs, axis=1)
    most = 127 * inputs
    assert lib.sums(w, x).tolist() == [[most * low, most * high], [-most * low, -most * high]]


@pytest.mark.parametrize("levels", ["ternary", "int4"])
def test_products_are_those_of_the_reference(lib: Library, levels: str) -> None:
    layer, x = random_layer(70, 200, Scheme(levels=levels)), random_rows(40, 200)
    assert (lib.linear(packed(lib, layer), x) == reference(layer, x)).all()


def test_a_product_does_not_depend_on_threads_or_neighbours(lib: Library, set_threads: Callable[[int], None]) -> None:
    w, x = packed(lib, random_layer(260, 700, Scheme())), random_rows(70, 700)  # enough work to be shared
    made = []
    for threads in (1, 2, 3, 8):
        set_threads(threads)
        made.append(lib.linear(w, x))
    assert all((one == made[0]).all() for one in made)
    assert (made[0][33:34] == lib.linear(w, x[33:34])).all()


def test_rows_that_are_not_contiguous_are_copied(lib: Library) -> None:
    w, x = packed(lib, random_layer(5, 40, Scheme())), random_rows(12, 80)
    for view in (x[::2, :40], x[:, ::2], x[:, 40:][::-1]):
        assert (lib.linear(w, view) == lib.linear(w, view.copy())).all()


@pytest.mark.parametrize("value", [0.0, 1e-42, 1e-30, 3e38])
def test_rows_of_any_size_are_rounded_as_the_reference_rounds_them(lib: Library, value: float) -> None:
    layer = random_layer(8, 16, Scheme(), bias=False)
    x = np.float32([np.linspace(-1, 1, 16)] * 2) * np.float32(value)
    assert (lib.linear(packed(lib, layer), x) == reference(layer, x)).all()


def test_ties_are_rounded_to_even(lib: Library) -> None:
    layer = random_layer(8, 128, Scheme(), bias=False)
    middle = np.float32([[127, *(np.arange(-63, 64) + 0.5)]])  # values in the middle between two int8 steps
    assert (lib.linear(packed(lib, layer), middle) == reference(layer, middle)).all()


def test_values_that_are_not_finite_stay_so(lib: Library) -> None:
    x = random_rows(4, 70)
    x[1, 3], x[2, 69] = np.nan, np.inf
    made = lib.linear(packed(lib, random_layer(8, 70, Scheme())), x)
    assert np.isnan(made).any(axis=1).tolist() == [False, True, True, False]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scales_and_biases_that_are_not_finite_stay_so(lib: Library, value: float) -> None:
    layer = random_layer(40, 70, Scheme())
    layer.weight_scale.flatten()[3], layer.bias[39] = value, value
    finite = np.isfinite(lib.linear(packed(lib, layer), random_rows(5, 70)))
    assert finite.all(axis=0).tolist() == [i not in (3, 39) for i in range(40)]


def test_what_does_not_fit_a_linear_is_refused_in_words(lib: Library) -> None:
    layer = random_layer(40, 70, Scheme())
    w, scale, rows = packed(lib, layer), layer.weight_scale.float().flatten().numpy(), layer.weight.numpy()
    for x in (np.zeros((2, 71), np.float32), np.zeros((2, 70)), np.zeros((2, 2, 70), np.float32)):
        with pytest.raises(ValueError, match="x should be float32 \\[2, 70\\]"):
            lib.linear(w, x)
    with pytest.raises(FormatError, match="scale and bias of a linear of 40 outputs have the shapes \\[39\\]"):
        PackedCodes(lib, layer.codec, rows, 70, scale[:39], None)
    for inputs, why in (
        (69 * 64, "the bytes of a row"),
        (0, "1 to 4,194,304 inputs"),
        (1 << 40, "1 to 4,194,304 inputs"),
    ):
        with pytest.raises(FormatError, match=why):
            PackedCodes(lib, layer.codec, rows, inputs, scale, None)
    for wrong in (rows.astype(np.int32), rows[0]):
        with pytest.raises(FormatError, match="packed codes are uint8 \\[out, width\\], not "):
            lib.packed(layer.codec, wrong, 70)
    for levels in ("binary", "int2"):
        with pytest.raises(FormatError, match=f"takes ternary and int4 codes, not {levels}"):
            PackedCodes(lib, codec_for(levels), rows, 70, scale, None)
    with pytest.raises(FormatError, match="a linear of 4 bits has 1 to 1,048,576 inputs"):
        PackedCodes(lib, codec_for("int4"), rows, (1 << 20) + 1, scale, None)
    for bits in (0, 1, 3, 8, -2):
        w.linear.bits = bits
        with pytest.raises(FormatError, match="the codes of a linear have 2 or 4 bits"):
            lib.linear(w, np.zeros((2, 70), np.float32))
    w.linear.bits = 2
    w.linear.blocks = 10_000
    with pytest.raises(FormatError, match="blocks of a linear don't fit its inputs"):
        lib.linear(w, np.zeros((2, 70), np.float32))


def test_embeddings_are_sums_of_rows_whatever_the_number_of_threads(
    lib: Library, set_threads: Callable[[int], None]
) -> None:
    random = np.random.default_rng(0)
    codes = [random.integers(-128, 128, (rows, 700), np.int8) for rows in (300, 2, 700)]
    tables = [(table, random.random(len(table), np.float32)) for table in codes]
    ids = [random.integers(0, len(table), 600) for table in codes]
    expected = sum(table[i].astype(np.float64) * scale[i, None] for (table, scale), i in zip(tables, ids, strict=True))
    made = []
    for threads in (1, 2, 3, 8):
        set_threads(threads)
        made.append(lib.embed(tables, ids, None))
    assert np.abs(made[0] - expected).max() < 1e-4
    assert all((one == made[0]).all() for one in made)


def test_ids_that_are_no_rows_are_refused_in_words(lib: Library) -> None:
    table, scale, ids = np.ones((5, 8), np.int8), np.ones(5, np.float32), np.array([0, 4, 2])
    gain, bias = np.ones(8, np.float32), np.zeros(8, np.float32)
    norm = NormWeights("layer", gain, bias, 1e-5)
    assert lib.embed([(table, scale)], [ids], norm).shape == (3, 8)
    assert lib.embed([(table, scale)], [ids], None).tolist() == [[1.0] * 8] * 3
    for wrong in (5, -1, 1 << 40, -(1 << 63)):
        with pytest.raises(FormatError, match="an id is no row of its table"):
            lib.embed([(table, scale)], [np.array([0, wrong, 2])], norm)
    for wrong_gain, wrong_bias in ((gain[:7], bias), (gain, bias[:7])):
        with pytest.raises(ValueError, match="of a norm should be float32 \\[8\\]"):
            lib.embed([(table, scale)], [ids], NormWeights("layer", wrong_gain, wrong_bias, 1e-5))
    with pytest.raises(FormatError, match="epsilon of a layer norm"):
        lib.embed([(table, scale)], [ids], NormWeights("layer", gain, bias, float("nan")))
    for tables, chosen, why in (
        ([(table.astype(np.uint8), scale)], [ids], "a table should be int8 \\[5, 8\\]"),
        ([(table, scale[:4])], [ids], "the scales of a table should be float32 \\[5\\]"),
        ([(table, scale)], [ids.astype(np.int32)], "ids should be int64 \\[3\\]"),
        ([(table, scale)] * 2, [ids, ids[:2]], "ids should be int64 \\[3\\]"),
        ([(table[:, ::-1], scale)], [ids], "contiguous"),
    ):
        with pytest.raises(ValueError, match=why):
            lib.embed(tables, chosen, None)


def test_sequences_that_are_not_there_are_refused_in_words(lib: Library) -> None:
    encoder = interface.Encoder(layers=0, width=8, heads=2, key_value_heads=2, head=4, inner=8, scale=0.5)
    x = np.zeros((3, 8), np.float32)
    lib.encode(encoder, np.array([0, 1, 3], np.int32), x)
    for starts, why in (
        ([0, 2, 1], "ends before it starts"),
        ([1, 3], "starts at 0"),
        ([0, 4], "behind the last token"),
    ):
        with pytest.raises(FormatError, match=why):
            lib.encode(encoder, np.array(starts, np.int32), x)
    for wrong in (np.array([0, 3]), np.zeros(0, np.int32), np.array([[0, 3]], np.int32)):
        with pytest.raises(ValueError, match="starts should be int32"):
            lib.encode(encoder, wrong, x)
    for wrong_x in (x.astype(np.float64), x[:, :7], x[0]):
        with pytest.raises(ValueError, match=r"x should be float32 \[\d, 8\]"):
            lib.encode(encoder, np.array([0, 3], np.int32), wrong_x)
    with pytest.raises(ValueError, match="contiguous"):
        lib.encode(encoder, np.array([0, 3], np.int32), np.zeros((3, 16), np.float32)[:, ::2])
    encoder.key_value_heads = 3
    with pytest.raises(FormatError, match="don't divide those of queries"):
        lib.encode(encoder, np.array([0, 3], np.int32), x)


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 33)])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_aligned_arrays_begin_at_a_cache_line(shape: tuple[int, ...], dtype: type) -> None:
    made = aligned(*shape, dtype=dtype)
    assert (made.shape, made.dtype, made.ctypes.data % 64) == (shape, np.dtype(dtype), 0)
    assert made.flags.c_contiguous
    assert made.flags.writeable
    assert not made.any()


@pytest.fixture
def anew() -> Iterator[None]:
    """Lets the library be loaded again, before and after a test."""
    library.cache_clear()
    yield
    library.cache_clear()


@pytest.mark.usefixtures("anew")
def test_an_instruction_set_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERNARIZE_NATIVE_ISA", "sse9")
    with pytest.raises(UnavailableError, match=f"TERNARIZE_NATIVE_ISA=sse9: this processor runs {', '.join(SETS)}"):
        library()
    monkeypatch.setenv("TERNARIZE_NATIVE_ISA", SETS[-1].upper())
    assert library().chosen == SETS[-1]


@pytest.mark.usefixtures("anew")
def test_a_library_that_is_missing_or_damaged_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "__path__", [str(tmp_path)])
    with pytest.raises(UnavailableError, match="no C\\+\\+ compiler was found"):
        library()
    (tmp_path / "libternarize_native.so.1").write_bytes(b"no library")
    with pytest.raises(UnavailableError, match="can't be loaded"):
        library()


@pytest.mark.usefixtures("anew")
def test_without_openmp_the_library_with_threads_of_its_own_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alone = next(path for folder in native.__path__ for path in Path(folder).glob("libternarize_alone.so.1"))
    (tmp_path / alone.name).symlink_to(alone)
    (tmp_path / "libternarize_native.so.1").write_bytes(b"a library that can't be loaded")
    wanted, layer, x = library().instruction_sets, random_layer(260, 700, Scheme()), random_rows(70, 700)
    products = library().linear(packed(library(), layer), x)
    library.cache_clear()
    monkeypatch.setattr(native, "__path__", [str(tmp_path)])
    assert library().instruction_sets == wanted
    assert (library().linear(packed(library(), layer), x) == products).all()


@pytest.mark.slow
def test_the_library_needs_numpy_alone() -> None:
    code = "import sys, ternarize_cli.runtime.blocks; from ternarize_cli.runtime.native import library\n"
    code += "library.library(); print(sorted({'torch', 'transformers', 'safetensors'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("named", "wanted", "threads"),
    [
        ("3", None, 3),
        ("3,2,1", None, 3),
        (" 2 ", None, 2),
        ("0", None, 8),
        ("-4", None, 8),
        ("many", None, 8),
        ("", None, 8),
        ("64", None, 8),
        ("3", lambda: 5, 5),
        ("3", lambda: 100, 8),
        ("3", lambda: 0, 1),
    ],
)
def test_threads_are_those_that_somebody_names_and_there_are_processors_for(
    monkeypatch: pytest.MonkeyPatch, named: str, wanted: Callable[[], int] | None, threads: int
) -> None:
    monkeypatch.setattr(native_threads, "processors", lambda: 8)
    monkeypatch.setattr(native_threads, "_wanted", None)
    monkeypatch.setenv("OMP_NUM_THREADS", named)
    native_threads.set_threads(wanted)
    assert native_threads.threads() == threads
