"""BitBLAS: what it says without a GPU, how it lays out and keeps things, and on a GPU that it equals `reference`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from support.models import save_tiny_bert, save_tiny_vit
from support.random_layers import random_layer
from ternarize_cli import kernels
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.pack import pack
from ternarize_cli.encoders import loading
from ternarize_cli.format.scheme import Scheme
from ternarize_cli.kernels.bitblas import BitBlas, _scaled, kernel_cache, operators, toolchain
from ternarize_cli.kernels.bitblas.generate import mended
from ternarize_cli.kernels.bitblas.layout import fitted, lay_out, padded
from ternarize_cli.kernels.bitblas.operators import Operator, OperatorShape

REASON = BitBlas().missing()
needs_bitblas = pytest.mark.skipif(REASON is not None, reason=f"bitblas can't run here: {REASON}")


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with a card and an empty cache."""
    monkeypatch.setattr(toolchain, "card", lambda: "NVIDIA-H100-sm90")
    monkeypatch.setattr(toolchain, "versions", lambda: "bitblas0.1.0-nvcc13.0.88")
    monkeypatch.setenv("TERNARIZE_CACHE", str(tmp_path))
    return tmp_path / "bitblas"


@pytest.mark.parametrize(("width", "multiple"), [(1, 16), (16, 16), (17, 32), (312, 320), (768, 768)])
def test_widths_are_fitted_to_multiples_of_16(width: int, multiple: int) -> None:
    assert fitted(width) == multiple
    assert OperatorShape.of(width, 5, "int8") == (multiple, 16, "int8")


def test_few_rows_and_odd_widths_are_padded_with_zeros() -> None:
    x = torch.ones(1, 18, dtype=torch.int8)
    y = padded(x, 16)
    assert y.shape == (16, 32)
    assert y.is_contiguous()
    assert torch.equal(y, F.pad(x, (0, 14, 0, 15)))
    assert padded(torch.ones(20, 32), 16).shape == (20, 32)


def test_weights_lie_in_the_order_that_the_kernels_decode() -> None:
    codes = torch.zeros(1, 16, dtype=torch.int8)
    codes[0, 1] = 1  # a 3 among 2s
    whole = torch.full((15, 4), 0xAA, dtype=torch.uint8).view(torch.int8)  # rows that only fill up
    for activations in ("int8", "float16"):
        laid_out = lay_out(codes, activations)
        assert laid_out.shape == (16, 4)
        assert laid_out[0].view(torch.int32).item() & 0xFFFFFFFF == 0xAAAAAAAA ^ (1 << 8)
        assert torch.equal(laid_out[1:], whole)


@pytest.mark.parametrize(
    ("activations", "place"), [("int8", [0, 8, 16, 24, 2]), ("float16", [0, 8, 2, 10, 4])]
)  # of the first five inputs
def test_where_the_first_inputs_lie(activations: str, place: list[int]) -> None:
    found = []
    for k in range(5):
        codes = torch.zeros(16, 16, dtype=torch.int8)
        codes[0, k] = 1
        word = lay_out(codes, activations)[0].view(torch.int32).item() & 0xFFFFFFFF
        found.append((word ^ 0xAAAAAAAA).bit_length() - 1)
    assert found == place


def test_a_layout_holds_every_code() -> None:
    codes = torch.randint(-1, 2, (5, 40), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    for activations in ("int8", "float16"):
        weights = lay_out(codes, activations).view(torch.uint8)
        values = torch.stack([weights >> shift & 3 for shift in (0, 2, 4, 6)]).long()
        assert values.numel() == 16 * 48
        assert int((values - 2).sum()) == int(codes.sum())


def test_rows_beyond_float16_are_scaled_by_powers_of_two() -> None:
    x = torch.tensor([[1e6, -3.0], [0.0, 0.0], [2.0, 1e-9], [1e-30, 0.0]])
    q, t = _scaled(x)
    assert q.dtype == torch.float16
    assert q.abs().max() <= 1
    assert torch.equal(torch.frexp(t).mantissa, torch.full((4, 1), 0.5))
    torch.testing.assert_close(q.float() * t, x, rtol=1e-3, atol=1e-7)


def test_ampere_and_ada_are_compiled_for_as_they_are_and_newer_cards_from_sm_80() -> None:
    known = "sm_80\nsm_86\nsm_89\nsm_90\nsm_100\n"
    assert toolchain.target((8, 9)) == "cuda -arch=sm_89"
    assert toolchain.flags((8, 9), known)[-1] == "arch=compute_89,code=sm_89"
    assert toolchain.target((9, 0)) == "cuda -arch=sm_80"
    assert toolchain.flags((9, 0), known)[-1] == "arch=compute_80,code=sm_90"
    assert toolchain.flags((12, 0), known)[-1] == "arch=compute_80,code=compute_80"


def test_every_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    monkeypatch.setattr(toolchain, "_known_to_loader", lambda library: False)
    monkeypatch.setattr(toolchain, "_folder_of", lambda library: None)
    monkeypatch.setattr(toolchain, "nvcc", lambda: None)
    said = BitBlas().missing()
    assert said is not None
    for part in ("no NVIDIA GPU", "bitblas is not installed", "libcudart.so.12", "libnvrtc.so.12", "nvcc is not on"):
        assert part in said


def test_an_old_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert "Tesla T4 is older than Ampere" in str(BitBlas().missing())


def test_libraries_are_found_on_the_loaders_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(toolchain, "_loadable", lambda: "")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{tmp_path}")
    assert not toolchain._known_to_loader("libnvrtc.so.12")
    (tmp_path / "libnvrtc.so.12").touch()
    assert toolchain._known_to_loader("libnvrtc.so.12")


def test_a_kept_kernel_is_found_by_card_versions_and_shape(
    cards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = tmp_path / "built.so"
    built.write_bytes(b"a library")
    shape = OperatorShape(3072, 768, "int8")
    assert kernel_cache.find(str(shape)) is None
    library = kernel_cache.keep(str(shape), built)
    assert kernel_cache.find(str(shape)) == library
    assert library.parent.parent == cards
    assert library.name == "int8-3072x768.so"
    assert sorted(p.name for p in library.parent.iterdir()) == ["int8-3072x768.json", "int8-3072x768.so"]
    assert kernel_cache.find(str(OperatorShape(3072, 768, "float16"))) is None
    monkeypatch.setattr(toolchain, "card", lambda: "NVIDIA-A100-sm80")
    assert kernel_cache.find(str(shape)) is None


@pytest.mark.parametrize("damage", ["cut", "changed", "no record", "record", "list"])
def test_a_damaged_kernel_is_not_trusted(cards: Path, tmp_path: Path, damage: str) -> None:
    built = tmp_path / "built.so"
    built.write_bytes(b"a library")
    library = kernel_cache.keep("int8-16x16", built)
    record = library.with_suffix(".json")
    if damage == "no record":
        record.unlink()
    elif damage in ("record", "list"):
        record.write_text("{" if damage == "record" else "[]")
    else:
        library.write_bytes(b"a lib" if damage == "cut" else b"a_library")
    assert kernel_cache.find("int8-16x16") is None
    kernel_cache.keep("int8-16x16", built)
    assert kernel_cache.find("int8-16x16") == library


def test_a_cache_that_cannot_be_written_is_only_a_note(
    cards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert BitBlas().note() is None
    built = tmp_path / "built.so"
    built.write_bytes(b"a library")
    (tmp_path / "file").touch()
    monkeypatch.setenv("TERNARIZE_CACHE", str(tmp_path / "file"))
    assert "builds them at every start" in str(BitBlas().note())
    assert kernel_cache.keep("int8-16x16", built) == built


def test_zeros_that_no_header_knows_are_mended() -> None:
    zeros = ", ".join(["(signed char)0"] * 8)
    assert mended(f"x = make_int2({zeros}); y = make_int2(1, 2);") == "x = make_int2(0, 0); y = make_int2(1, 2);"


def test_a_failing_compiler_is_quoted() -> None:
    with pytest.raises(RuntimeError, match="nvcc ended with 2: no such card"):
        operators._run(["sh", "-c", "echo no such card >&2; exit 2"], "nvcc")
    with pytest.raises(RuntimeError, match=r"nvcc ended with 1: a\.cu: error: what is this"):
        operators._run(["sh", "-c", "echo a.cu: error: what is this >&2; echo at line 3; exit 1"], "nvcc")
    with pytest.raises(RuntimeError, match="nvcc did not run"):
        operators._run(["/nowhere/nvcc"], "nvcc")


@pytest.mark.parametrize("rows", [1, 50])
def test_sums_are_finished_as_the_reference_does(rows: int) -> None:
    pytest.importorskip("triton", reason="the package triton is not installed")
    from ternarize_cli.kernels.bitblas.products import finish
    from ternarize_cli.kernels.gpu.norm import Sums

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(-9999, 9999, (rows, 1100), generator=generator, dtype=torch.int32).to(device)
    t, scale = torch.rand(rows, generator=generator).to(device) / 1000, torch.rand(1100, generator=generator).to(device)
    bias = torch.randn(1100, generator=generator).to(device)
    expected = raw.float() * scale * t[:, None] + bias
    torch.testing.assert_close(finish(Sums(raw, t, scale, bias)).float(), expected, rtol=1e-3, atol=1e-3)


class OnCpu(Operator):
    """Stands in for a kernel where there is no card: reads the weights back from their layout."""

    def _loaded(self, library: Path) -> None:
        pass

    def _launch(self, x: Tensor, weight: Tensor, y: Tensor) -> None:
        assert x.shape[0] >= 16 or not len(x)
        assert x.is_contiguous()
        assert x.dtype == (torch.int8 if self.shape.activations == "int8" else torch.float16)
        fields, number = (4 if self.shape.activations == "int8" else 2), torch.arange(16)
        words = weight.view(torch.int32).long()
        if self.shape.activations == "float16":
            words = words & 0xFF0000FF | (words & 0x00FF0000) >> 8 | (words & 0x0000FF00) << 8
        shift = number % fields * (32 // fields) + number // fields * 2
        codes = (words[..., None] >> shift & 3).flatten(1) - 2
        y.copy_(x.double() @ codes.double().T)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators that run without a card."""
    monkeypatch.setattr(operators, "get", lambda shape: OnCpu(shape, Path()))
    monkeypatch.setattr(operators, "start", lambda shape: None)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(("outputs", "inputs", "bits"), [(64, 48, 8), (5, 70, 8), (48, 80, 16), (100, 50, 16)])
@pytest.mark.parametrize("rows", [1, 16, 35])
def test_what_is_around_the_kernel_equals_reference(outputs: int, inputs: int, bits: int, rows: int) -> None:
    layer = random_layer(outputs, inputs, Scheme(activation_bits=bits))
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(1))
    got = BitBlas().prepare(layer)(x)
    layer.backend = "reference"
    if bits == 8:
        assert torch.equal(got, layer(x))
    else:
        torch.testing.assert_close(got, layer(x), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("activations", ["int8", "float16"])
def test_an_operator_that_is_wrong_is_refused(activations: str) -> None:
    operator = OnCpu(OperatorShape(48, 64, activations), Path())
    operator.check("cpu")

    class Wrong(OnCpu):
        def _launch(self, x: Tensor, weight: Tensor, y: Tensor) -> None:
            super()._launch(x, weight, y)
            if len(x) > 128:
                y[-1, -1] += 64

    with pytest.raises(RuntimeError, match="wrong at 130 rows"):
        Wrong(OperatorShape(48, 64, activations), Path()).check("cpu")


@pytest.mark.slow
@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("save", [save_tiny_bert, save_tiny_vit])
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_whole_encoders_give_nearly_what_the_reference_gives(tmp_path: Path, save: Callable[..., Path]) -> None:
    pytest.importorskip("triton", reason="the package triton is not installed")
    from ternarize_cli.kernels.bitblas.products import BitBlasProducts, shapes_of
    from ternarize_cli.kernels.gpu.encoder import GpuEncoder

    convert(save(tmp_path / "model"), tmp_path / "ternary", Scheme())
    pack(tmp_path / "ternary", tmp_path / "packed")
    model: Any = loading.load_encoder(tmp_path / "packed", backend="reference", device="cpu")[0].auto_model
    width, inner = model.config.hidden_size, model.config.intermediate_size
    wanted = {(3 * width, width), (width, width), (inner, width), (width, inner)}
    assert {(shape.outputs, shape.inputs) for shape in shapes_of(model)} == {
        OperatorShape.of(*w, "int8")[:2] for w in wanted
    }
    stack = GpuEncoder(model, BitBlasProducts)
    with torch.no_grad():
        if save is save_tiny_vit:
            pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
            got, expected = stack.images(pixels), model(pixel_values=pixels).last_hidden_state
            assert (got - expected).norm() < 0.06 * expected.norm()
            return
        ids = torch.randint(5, 40, (3, 11), generator=torch.Generator().manual_seed(0))
        mask = (torch.arange(11) < torch.tensor([[11], [4], [7]])).long()
        got, expected = stack.texts(ids, mask, None), model(input_ids=ids, attention_mask=mask).last_hidden_state
        got, expected = got[mask.bool()], expected[mask.bool()]
        assert (got - expected).norm() < 0.06 * expected.norm()


@needs_bitblas
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("outputs", "inputs"), [(768, 384), (48, 80), (100, 50)])
def test_it_equals_reference_on_a_gpu(outputs: int, inputs: int, bits: int) -> None:
    layer = random_layer(outputs, inputs, Scheme(activation_bits=bits)).cuda()
    for rows in (1, 15, 17, 300):
        x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows)).cuda()
        layer.backend = "bitblas"
        got = layer(x)
        layer.backend = "reference"
        torch.testing.assert_close(got, layer(x), rtol=1e-3, atol=1e-3 if bits == 16 else 1e-5)


@needs_bitblas
def test_a_damaged_kernel_is_built_anew_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TERNARIZE_CACHE", str(tmp_path))
    monkeypatch.setattr(operators, "_BUILDS", {})
    shape = OperatorShape(32, 48, "int8")
    operators.get.cache_clear()
    operators.get(shape)
    library = kernel_cache.folder() / f"{shape}.so"
    library.write_bytes(library.read_bytes()[:4000])
    assert kernel_cache.find(str(shape)) is None
    operators._BUILDS.clear()
    operators.get.cache_clear()
    assert operators.get(shape).shape == shape
    assert kernel_cache.find(str(shape)) == library
    assert json.loads(library.with_suffix(".json").read_text())["sha256"]


def test_a_layer_on_the_cpu_is_refused() -> None:
    reason = BitBlas().refuses(random_layer(8, 8, Scheme()))
    assert reason == "the model is on cpu, and bitblas runs on cuda"
    assert "bitblas" in kernels.backend_names()
