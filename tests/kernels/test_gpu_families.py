"""Families of encoders run fused on a GPU, and are as near to `reference` as float16 between products lets them be.

Rounding activations to int8 turns a last bit into a percent, so no one bound tells good arithmetic from bad. Noise
does: `reference` is run again with noise of the size of float16's or bfloat16's rounding behind each norm and linear.
On a GPU all families run as they are, elsewhere some in Triton's interpreter.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from support.families import Family
from support.fused_families import FUSED, distances, inputs, name_of, opened, packed
from ternarize_cli import hf as plugin
from ternarize_cli import kernels
from ternarize_cli.errors import CheckpointError
from ternarize_cli.kernels.fused_encoder import tables_of
from ternarize_cli.layers import PackedLinear

pytest.importorskip("triton", reason="the package triton is not installed")

from ternarize_cli.kernels.gpu import blocks, int8, pass_sizes
from ternarize_cli.kernels.gpu.encoder import GpuEncoder
from ternarize_cli.kernels.gpu.forward import GpuForward, gpu_refusal
from ternarize_cli.kernels.gpu.int8 import Int8
from ternarize_cli.kernels.gpu.token_rows import count_tokens

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = ("ModernBertModel", "MPNetModel", "Gemma3TextModel", "DINOv3ViTModel")
"""Together they have windows, rotary positions, gates, biases by distance, norms of heads and outputs, layer scales."""
KNOWN = [f for f in FUSED if hasattr(hf, f[0]) and (DEVICE == "cuda" or f[0] in INTERPRETED)]
FLOAT16, BFLOAT16 = 2.0**-11, 2.0**-9
assert plugin, "transformers knows packed models"

pytestmark = pytest.mark.slow


def opened_on_device(family: Family, folder: Path) -> tuple[Any, dict[str, Tensor]]:
    model = opened(family, packed(family, folder)).to(DEVICE)
    if isinstance(model.ternarize_block, str):
        pytest.skip(model.ternarize_block)  # this version of transformers has other modules
    given = inputs(family)
    if DEVICE == "cpu" and "input_ids" in given:
        given = {name: value[1:, :33].contiguous() for name, value in given.items()}
    return model, {name: value.to(DEVICE) for name, value in given.items()}


def with_noise(model: nn.Module, given: dict[str, Tensor], size: float) -> Tensor:
    generator = torch.Generator(DEVICE).manual_seed(0)

    def disturb(module: nn.Module, args: Any, y: Tensor) -> Tensor:
        return y * (1 + size * (2 * torch.rand(y.shape, generator=generator, device=y.device) - 1))

    places = [m for m in model.modules() if type(m).__name__.endswith("Norm") or isinstance(m, PackedLinear)]
    hooks = [m.register_forward_hook(disturb) for m in places]
    try:
        return model(**given).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
@pytest.mark.parametrize("family", KNOWN, ids=name_of)
def test_a_family_is_as_near_to_reference_as_its_floating_point_lets_it_be(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given = opened_on_device(family, tmp_path)
    assert kernels.use_backend(model, "reference") == "reference"
    expected = model(**given).last_hidden_state
    is_wide = "rms" in {norm.kind for norm in model.ternarize_block.norms.values()} and DEVICE == "cuda"
    noisy = with_noise(model, given, BFLOAT16 if is_wide else FLOAT16)
    assert gpu_refusal(model) is None
    encoder = GpuEncoder(model, Int8)
    real = given["attention_mask"].bool() if "attention_mask" in given else slice(None)
    noise = distances(noisy[real], expected[real]).median()

    def check(made: Tensor) -> None:
        assert distances(made[real], expected[real]).median() < 1.5 * noise

    if "pixel_values" in given:
        for _ in range(3 if DEVICE == "cuda" else 1):  # as it is, recorded, replayed
            check(encoder.images(given["pixel_values"]))
        return
    if DEVICE == "cuda":
        with monkeypatch.context() as patch:
            patch.setattr(int8, "_FEW", 0)  # every product is one of many rows
            check(GpuEncoder(model, Int8).texts(given["input_ids"], given["attention_mask"], None))
    ids, mask = given["input_ids"], given["attention_mask"]
    for _ in range(3 if DEVICE == "cuda" else 1):
        check(encoder.texts(ids, mask, None))
    monkeypatch.setattr(blocks, "_PREPARED", 8)  # as in long texts, queries and keys are turned before attention
    monkeypatch.setattr(pass_sizes, "_FEW", 64)
    for _ in range(3 if DEVICE == "cuda" else 1):
        check(encoder._unpadded(ids, mask, None, count_tokens(mask)))


@pytest.mark.skipif(DEVICE == "cpu", reason="Triton's interpreter rounds to e4m3 wrongly")
@torch.no_grad()
@pytest.mark.parametrize("family", KNOWN, ids=name_of)
def test_a_family_in_e4m3_gives_nearly_what_its_linears_in_e4m3_give(family: Family, tmp_path: Path) -> None:
    model, given = opened_on_device(family, tmp_path)
    linears = [m for m in model.modules() if isinstance(m, PackedLinear)]
    if any(size % 16 for m in linears for size in (m.in_features, m.out_features)):
        pytest.skip("scaled_mm takes multiples of 16")
    kernels.use_backend(model, "scaled_mm")
    real = given["attention_mask"].bool() if "attention_mask" in given else slice(None)
    forward, model.forward = model.forward, type(model).forward.__get__(model)
    expected = model(**given).last_hidden_state
    noise = distances(with_noise(model, given, BFLOAT16)[real], expected[real]).median()
    model.forward = forward
    assert isinstance(forward, GpuForward)
    made = model(**given).last_hidden_state
    assert forward._encoder is not None
    assert distances(made[real], expected[real]).median() < 1.5 * noise


def test_a_pass_that_fails_midway_leaves_nothing_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw sums stay in a buffer until the next norm reads and clears them: a failure between both must not matter."""
    family = next(f for f in FUSED if f[0] == "BertModel")
    model, given = opened_on_device(family, tmp_path)
    kernels.use_backend(model, "reference")
    forward: Any = type("OnDevice", (GpuForward,), {"device": DEVICE})(model, "reference", Int8)
    model.forward, forward._is_compared = forward, True
    with torch.no_grad():
        expected = model(**given).last_hidden_state
        real_norm, calls = blocks.norm, []

        def failing(*args: Any, **options: Any) -> Any:
            calls.append(0)
            if len(calls) == 2:
                raise RuntimeError("out of memory")
            return real_norm(*args, **options)

        monkeypatch.setattr(blocks, "norm", failing)
        sums = forward._encoder._blocks.products._sums_of(4, model.config.hidden_size, torch.device(DEVICE))
        sums += 1  # what a product has added, and no norm has cleared
        encoder = forward._encoder
        with pytest.raises(RuntimeError, match="out of memory"):
            model(**{name: value[:3] for name, value in given.items()})  # not recorded
        assert forward._encoder is encoder, "what was laid out and recorded stays"
        monkeypatch.setattr(blocks, "norm", real_norm)
        real = given["attention_mask"].bool()
        assert torch.equal(model(**given).last_hidden_state[real], expected[real])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layer_scales": ("intermediate.dense.bias", "output.dense.bias")}, "the layer scale intermediate.dense.bias"),
        ({"embeddings": {"first_position": 1 << 20}}, "has no position 1048576"),
    ],
)
def test_a_description_of_other_shapes_is_refused_before_a_kernel_reads_beyond_a_table(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model, _ = opened_on_device(next(f for f in FUSED if f[0] == "BertModel"), tmp_path)
    block = model.ternarize_block
    if "embeddings" in changed:
        changed = {"embeddings": replace(block.embeddings, **changed["embeddings"])}
    model.__dict__["ternarize_block"] = replace(block, **changed)
    with pytest.raises(CheckpointError, match=message):
        GpuEncoder(model, Int8)


def test_a_table_of_another_width_is_refused(tmp_path: Path) -> None:
    model, _ = opened_on_device(next(f for f in FUSED if f[0] == "BertModel"), tmp_path)
    with pytest.raises(CheckpointError, match="an embedding table is 32 wide, and the blocks 64"):
        tables_of(model, replace(model.ternarize_block, width=64))


@torch.no_grad()
@pytest.mark.parametrize(("key", "value"), [("scale", 3.0), ("kinds", [{"before": 1, "after": 1}, {}])])
@pytest.mark.skipif(DEVICE == "cpu", reason="the modules of a backend for GPUs run on a GPU only")
def test_a_description_that_gives_other_vectors_is_not_run(key: str, value: Any, tmp_path: Path, caplog: Any) -> None:
    family = next(f for f in FUSED if f[0] == "ModernBertModel")
    model, given = opened_on_device(family, tmp_path)
    from ternarize_cli.format.block import Block

    model.__dict__["ternarize_block"] = Block.from_dict(model.ternarize_block.to_dict() | {key: value})
    kernels.use_backend(model, "triton")
    model(**given)
    assert "gives other vectors than its modules" in caplog.text
    assert model.forward._encoder is None
