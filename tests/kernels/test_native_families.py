"""Whole encoders of the families that a description of blocks covers run fused, and give what their modules give."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from support.families import IMAGE_FAMILIES, WORDS, Family
from support.fused_families import FUSED, OTHERS, distances, inputs, name_of, needs_native, opened, packed
from support.models import make_version_1
from ternarize_cli import kernels
from ternarize_cli.encoders.blocks.describing import Undescribed, describe
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.format.block import Block, blocks_from_dict
from ternarize_cli.kernels.native.encoder import NativeForward

pytestmark = needs_native
BEIT = next(f for f in IMAGE_FAMILIES if f[2].get("use_relative_position_bias"))


@torch.inference_mode()
@pytest.mark.parametrize("family", FUSED, ids=name_of)
def test_a_text_does_not_depend_on_its_batch_or_on_threads(family: Family, tmp_path: Path) -> None:
    model = opened(family, packed(family, tmp_path))
    assert kernels.use_backend(model, "native") == "native"
    assert isinstance(model.forward, NativeForward)
    given, threads = inputs(family), torch.get_num_threads()
    whole = model(**given).last_hidden_state
    try:
        torch.set_num_threads(1)
        alone = model(**{name: value[:1] for name, value in given.items()}).last_hidden_state
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(whole[:1], alone)


@pytest.mark.parametrize("family", OTHERS, ids=name_of)
def test_other_families_run_linear_by_linear(family: Family, tmp_path: Path) -> None:
    model = opened(family, packed(family, tmp_path))
    assert kernels.use_backend(model, "native") == "native (linears only)"


@pytest.mark.parametrize("family", FUSED, ids=name_of)
def test_an_artifact_carries_the_description_that_its_config_gives(family: Family, tmp_path: Path) -> None:
    folder = packed(family, tmp_path)
    for stage in (folder, tmp_path / "latent"):
        stored = json.loads((stage / "config.json").read_text())["quantization_config"]["block"]
        assert blocks_from_dict(stored) == {"": describe(opened(family, folder))}


@pytest.mark.parametrize("kind", ["MPNetModel", "ModernBertModel", "T5EncoderModel"])
def test_an_artifact_of_format_version_1_runs_fused_and_gives_the_same_vectors(kind: str, tmp_path: Path) -> None:
    family = next(f for f in FUSED if f[0] == kind)
    made: list[Any] = []
    for name in ("2", "1"):
        folder = packed(family, tmp_path / name)
        if name == "1":
            make_version_1(folder)
        texts = ["the cat on the house", "write", "a big red index of stone and light"]
        for backend in ("native", "reference"):
            encoder = load_encoder(folder, device="cpu", backend=backend)
            assert isinstance(encoder[0].auto_model.forward, NativeForward) == (backend == "native")
            made.append(encoder.encode(texts))
    assert (made[0] == made[2]).all()
    assert (made[1] == made[3]).all()


def modern_bert(folder: Path) -> tuple[Family, Path]:
    family = next(f for f in FUSED if f[0] == "ModernBertModel")
    return family, packed(family, folder)


def test_a_module_of_another_name_ends_in_words(tmp_path: Path) -> None:
    family, folder = modern_bert(tmp_path)
    model = opened(family, folder)
    for layer in model.layers:
        layer.attn.out = layer.attn.Wo
        del layer.attn.Wo
    with pytest.raises(Undescribed, match=r"layers\.0 has no module attn\.Wo: this version of transformers"):
        describe(model)
    assert kernels.use_backend(model, "native") == "native (linears only)"


def test_a_table_of_another_name_ends_in_words(tmp_path: Path) -> None:
    family, folder = modern_bert(tmp_path)
    model = opened(family, folder)
    model.embeddings.words = model.embeddings.tok_embeddings
    del model.embeddings.tok_embeddings
    with pytest.raises(Undescribed, match=r"ModernBertModel is not built as its reader knows it: .*tok_embeddings"):
        describe(model)


def test_a_block_whose_norm_is_another_ends_in_words(tmp_path: Path) -> None:
    family, folder = modern_bert(tmp_path)
    model = opened(family, folder)
    model.layers[2].mlp_norm.eps = 1e-3
    with pytest.raises(Undescribed, match=r"feed_forward\.before of its block layers\.2 is another"):
        describe(model)


def test_a_module_that_no_name_accounts_for_ends_in_words(tmp_path: Path) -> None:
    family, folder = modern_bert(tmp_path)
    model = opened(family, folder)
    model.layers[1].gate = torch.nn.Linear(2, 2)
    with pytest.raises(Undescribed, match=r"layers\.1 has parts that no description names: gate"):
        describe(model)


@pytest.mark.parametrize(
    ("key", "value"),
    [("scale", 3.0), ("activation", "relu"), ("kinds", [{"before": 1, "after": 1}, {"before": 1, "after": 1}])],
)
def test_a_description_that_gives_other_vectors_is_not_run(
    key: str, value: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family, folder = modern_bert(tmp_path)
    model = opened(family, folder)
    values = model.ternarize_block.to_dict() | {key: value}
    model.__dict__["ternarize_block"] = Block.from_dict(values)
    with caplog.at_level(logging.WARNING, "ternarize_cli"):
        assert kernels.use_backend(model, "native") == "native (linears only)"
    assert "the description of its blocks gives other vectors than its modules" in caplog.text
    assert model(input_ids=torch.tensor([[2, 7, 8, 3]])).last_hidden_state.isfinite().all()


def test_a_model_in_training_is_compared_when_it_first_runs_fused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family, folder = modern_bert(tmp_path)
    ids = torch.tensor([[2, 7, 8, 3]])
    wanted = opened(family, folder)(input_ids=ids).last_hidden_state
    for key, value in (("scale", 3.0), ("scale", None)):
        model = opened(family, folder)
        values = model.ternarize_block.to_dict()
        model.__dict__["ternarize_block"] = Block.from_dict(values | ({} if value is None else {key: value}))
        model.train()
        kernels.use_backend(model, "native")
        assert isinstance(model.forward, NativeForward), "nothing could be compared yet"
        model.eval()
        is_wrong = value is not None
        with caplog.at_level(logging.WARNING, "ternarize_cli"), ThreadPoolExecutor(3) as callers:
            made = list(callers.map(lambda ids, model=model: model(input_ids=ids).last_hidden_state, [ids] * 6))
        assert caplog.text.count("gives other vectors") == is_wrong, "it is said once"
        assert (model.forward._encoder is None) == is_wrong
        assert all((one - wanted).norm() / wanted.norm() < 0.06 for one in made)
        caplog.clear()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layers", "embeddings"),
        ("layers", "nothing"),
        ("qkv", ["mlp.Wi"]),
        ("output", "mlp"),
        ("embeddings", {"words": "layers"}),
        ("embeddings", {"words": "embeddings.norm"}),
        ("relative", {"name": "embeddings.tok_embeddings", "buckets": 32, "distance": 128}),
        ("norms", {"last": {"name": "rotary_emb", "kind": "rms", "eps": 1e-6}}),
        ("layer_scales", ["attn.nothing", "mlp.nothing"]),
        ("heads", 3),
    ],
)
def test_a_description_that_names_other_modules_is_not_run(key: str, value: Any, tmp_path: Path) -> None:
    family, folder = modern_bert(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    given = config["quantization_config"]["block"][""]
    values = given | {key: value} | ({"key_value_heads": value} if key == "heads" else {})
    model = opened(family, folder)
    model.__dict__["ternarize_block"] = Block.from_dict(values)
    assert kernels.use_backend(model, "native") == "native (linears only)"
    assert model(input_ids=torch.tensor([[2, 7, 8, 3]])).last_hidden_state.isfinite().all()


def beit(folder: Path, **settings: Any) -> Any:
    model = opened(BEIT, packed((*BEIT[:2], BEIT[2] | settings), folder))
    assert kernels.use_backend(model, "native") == "native"
    return model


@torch.inference_mode()
@pytest.mark.parametrize("which", ["use_relative_position_bias", "use_shared_relative_position_bias"])
@pytest.mark.parametrize("image_size", [16, [16, 24]])
def test_biases_by_patches_are_those_of_the_models_modules_at_any_size(
    which: str, image_size: Any, tmp_path: Path
) -> None:
    model = beit(tmp_path, **{"use_relative_position_bias": False, which: True, "image_size": image_size})
    random = torch.Generator().manual_seed(2)
    for size in ((16, 16), (24, 16), (16, 24), (80, 72), (4, 4), (18, 23)):  # of 361 tokens, biases come in pieces
        pixels = torch.randn(2, 3, *size, generator=random)
        made, own = model(pixel_values=pixels), type(model).forward(model, pixel_values=pixels)
        assert distances(made.last_hidden_state, own.last_hidden_state).median() < 0.04, size
        assert distances(made.pooler_output, own.pooler_output).median() < 0.04, size
        assert torch.equal(model(pixel_values=pixels[:1]).last_hidden_state, made.last_hidden_state[:1]), size


@torch.inference_mode()
def test_the_biases_of_a_beit_matter_and_its_modules_run_what_is_unusual(tmp_path: Path) -> None:
    model = beit(tmp_path, use_mask_token=True)
    pixels = inputs(BEIT)["pixel_values"]
    made = model(pixel_values=pixels).last_hidden_state
    for unusual in ({"interpolate_pos_encoding": True}, {"bool_masked_pos": torch.arange(48).view(3, 16) % 3 == 0}):
        own = type(model).forward(model, pixel_values=pixels, **unusual)
        assert torch.equal(model(pixel_values=pixels, **unusual).last_hidden_state, own.last_hidden_state)
    for layer in model.layers:
        layer.relative_position_bias.relative_position_bias_table.zero_()
    plain = type(model).forward(model, pixel_values=pixels).last_hidden_state
    assert distances(plain, made).median() > 0.1


def test_a_beit_with_two_kinds_of_biases_ends_in_words(tmp_path: Path) -> None:
    both = hf.BeitModel(hf.BeitConfig(**BEIT[2], use_shared_relative_position_bias=True))
    with pytest.raises(Undescribed, match="relative positions of each block, and shared ones"):
        describe(both)


def test_a_scale_that_one_block_lacks_ends_in_words() -> None:
    model = hf.BeitModel(hf.BeitConfig(**BEIT[2]))
    del model.layers[1].lambda_2
    with pytest.raises(Undescribed, match=r"layers\.1 has no parameter lambda_2"):
        describe(model)


class Tilted(torch.nn.Module):
    """Biases that do not depend on the patches between two tokens alone."""

    def forward(self, patches: tuple[int, int]) -> Tensor:
        tokens = patches[0] * patches[1] + 1
        return torch.arange(4.0 * tokens * tokens).view(1, 4, tokens, tokens)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"name": "relative_position_bias", "shared": True}, "has no module relative_position_bias"),
        ({"name": "mlp"}, "the description of its blocks does not fit it"),
        ({"name": "layernorm_before"}, "the description of its blocks does not fit it"),
        ({"name": "drop_path"}, "the description of its blocks does not fit it"),
        ({"name": "tilted"}, "depend on more than the patches between two tokens"),
        (None, "gives other vectors than its modules"),
    ],
)
def test_a_bias_by_patches_that_is_another_is_not_run(
    value: Any, words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = opened(BEIT, packed(BEIT, tmp_path))
    for layer in model.layers:
        layer.tilted = Tilted()
    values = {k: v for k, v in model.ternarize_block.to_dict().items() if k != "patch_bias"}
    model.__dict__["ternarize_block"] = Block.from_dict(values | ({} if value is None else {"patch_bias": value}))
    with caplog.at_level(logging.WARNING, "ternarize_cli"):
        assert kernels.use_backend(model, "native") == "native (linears only)"
    assert words in caplog.text
    assert model(**inputs(BEIT)).last_hidden_state.isfinite().all()


@torch.inference_mode()
def test_threads_may_encode_while_another_makes_room_for_longer_texts(tmp_path: Path) -> None:
    family, folder = modern_bert(tmp_path)
    model = opened(family, folder)
    kernels.use_backend(model, "native")
    blocks = model.forward._encoder._blocks
    held = blocks.for_texts(3)
    before = [cos.copy() for cos, _ in held.turns]
    lengths = [3, 300, 20, 700, 3, 1500]
    texts = [torch.arange(n)[None] % (WORDS - 4) + 4 for n in lengths]
    with ThreadPoolExecutor(6) as threads:
        made = list(threads.map(lambda ids: model(input_ids=ids).last_hidden_state, texts))
    assert blocks.for_texts(3) is not held
    assert all((cos == was).all() for (cos, _), was in zip(held.turns, before, strict=True))
    for ids, one in zip(texts, made, strict=True):
        assert torch.equal(model(input_ids=ids).last_hidden_state, one)


@torch.inference_mode()
def test_texts_may_grow_longer_than_those_before(tmp_path: Path) -> None:
    family, folder = modern_bert(tmp_path)
    model = opened(family, folder)
    kernels.use_backend(model, "native")
    for tokens in (3, 300, 700, 20):
        ids = torch.arange(tokens)[None] % (WORDS - 4) + 4
        made, own = model(input_ids=ids).last_hidden_state, type(model).forward(model, input_ids=ids).last_hidden_state
        assert distances(made, own).median() < 0.04


@torch.inference_mode()
@pytest.mark.parametrize("family", FUSED, ids=name_of)
def test_a_mask_with_a_hole_keeps_the_places_of_tokens(family: Family, tmp_path: Path) -> None:
    given = inputs(family)
    if "attention_mask" not in given:
        pytest.skip("images have no mask")
    model = opened(family, packed(family, tmp_path))
    mask = given["attention_mask"] = torch.ones_like(given["attention_mask"])
    mask[:, 10:14] = 0
    given["input_ids"].clamp_(min=4)  # no padding
    kernels.use_backend(model, "native")
    made, own = (f(**given).last_hidden_state[mask.bool()] for f in (model, type(model).forward.__get__(model)))
    assert distances(made, own).median() < 0.04


@pytest.mark.parametrize("window", [0, 3, 500])
def test_a_stored_description_of_other_blocks_is_not_used(
    window: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family, folder = modern_bert(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]["digest"]
    kinds = config["quantization_config"]["block"][""]["kinds"]
    assert any(kind.get("before") for kind in kinds)
    for kind in kinds:
        if kind.get("before"):
            kind["before"] = kind["after"] = window or None
    (folder / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING, "ternarize_cli"):
        model = opened(family, folder)
    assert "describes other blocks than ModernBertModel" in caplog.text
    assert kernels.use_backend(model, "native") == "native"
    assert model.ternarize_block == describe(model)


def test_a_pooler_whose_forward_was_replaced_is_called(tmp_path: Path) -> None:
    family = next(f for f in FUSED if f[0] == "BertModel")
    model = opened(family, packed(family, tmp_path))
    kernels.use_backend(model, "native")
    ids = torch.tensor([[2, 7, 8, 3]])
    with torch.no_grad():
        hidden, own = model(input_ids=ids).to_tuple()
        assert torch.allclose(own, torch.tanh(model.pooler.dense(hidden[:, 0])), atol=1e-6)
        model.pooler.forward = lambda hidden: hidden[:, 1]
        assert torch.equal(model(input_ids=ids).pooler_output, hidden[:, 1])
        del model.pooler.forward
        model.pooler.activation.forward = torch.relu
        assert torch.equal(model(input_ids=ids).pooler_output, torch.relu(model.pooler.dense(hidden[:, 0])))
