"""Every encoder family through convert → pack → load → encode, tiny and random: packed equals unpacked bit for bit."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

import ternarize_cli.hf
from support.families import (
    CLIP,
    CLIP_IMAGE,
    DECODER,
    IMAGE_FAMILIES,
    TEXT_FAMILIES,
    WORDS,
    Family,
    enlarge,
    save_decoder_tokenizer,
    save_family,
    save_processor,
    save_text,
    stages,
)
from support.models import add_dense, save_tiny_bert
from ternarize_cli import kernels
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.inspect import inspect
from ternarize_cli.compress.options import ConvertOptions
from ternarize_cli.encoders.loading import load_encoder, pooling_note
from ternarize_cli.errors import CheckpointError, FormatError, InputError
from ternarize_cli.format.scheme import Scheme
from ternarize_cli.layers import PackedEmbedding, PackedLinear, TernaryLinear
from ternarize_cli.model_folder.integrity import seal

SENTENCES = ["the cat on the house", "a dog by the river", "write the file", "big red index of stone and light"]
CLIP_TEXT = CLIP | {"vocab_size": WORDS, "max_position_embeddings": 80, "projection_dim": 16}
CLIP_TEXT |= {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}


KEPT = {"DebertaV2Model": {"encoder.rel_embeddings"}}


def family_name(value: object) -> str:
    return str(value[0]).removesuffix("Model") if isinstance(value, tuple) else ""


def encode(folder: Path, **options: Any) -> np.ndarray:
    return load_encoder(folder, device="cpu", **options).encode(SENTENCES)


def assert_encodes_equally(latent: Path, packed: Path) -> np.ndarray:
    vectors = encode(packed, backend="reference")
    assert np.isfinite(vectors).all()
    assert abs(vectors[0] - vectors[1]).max() > 0
    np.testing.assert_array_equal(vectors, encode(latent))
    return vectors


@pytest.mark.slow
@pytest.mark.parametrize("family", TEXT_FAMILIES, ids=family_name)
def test_a_text_encoder_packs_to_itself(family: Family, tmp_path: Path) -> None:
    source = save_text(family, tmp_path / "source")
    report, latent, packed = stages(source, tmp_path)
    vectors = assert_encodes_equally(latent, packed)
    assert vectors.shape == (4, 32)
    assert report.layers
    model = load_encoder(packed, device="cpu")[0].auto_model
    left = [name for name, m in model.named_modules() if type(m) in (torch.nn.Linear, hf.pytorch_utils.Conv1D)]
    assert left == []
    assert set(report.plan.excluded) == KEPT.get(family[0], set())
    assert all(np.isfinite(encode(source)).flatten())


def pixel_values(folder: Path) -> torch.Tensor:
    from PIL import Image

    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)) for _ in range(2)]
    processor = hf.ViTImageProcessorPil.from_pretrained(folder)
    return processor(images, return_tensors="pt")["pixel_values"]


def hidden(folder: Path, **inputs: torch.Tensor) -> torch.Tensor:
    model = AutoModel.from_pretrained(folder).eval()
    if any(isinstance(m, PackedLinear) for m in model.modules()):
        kernels.use_backend(model, "reference")
    with torch.inference_mode():
        out = model(**inputs)
    return torch.cat([v.flatten() for v in (out.last_hidden_state, out.get("pooler_output")) if v is not None])


@pytest.mark.slow
@pytest.mark.parametrize("family", IMAGE_FAMILIES, ids=family_name)
def test_an_image_encoder_packs_to_itself(family: Family, tmp_path: Path) -> None:
    source = save_family(family, tmp_path / "source")
    save_processor(source)
    report, latent, packed = stages(source, tmp_path)
    pixels = pixel_values(packed)
    assert torch.equal(pixels, pixel_values(source))
    vectors = hidden(packed, pixel_values=pixels)
    assert torch.isfinite(vectors).all()
    assert torch.equal(vectors, hidden(latent, pixel_values=pixels))
    assert any("Conv2d" in name or "Conv2d" in what for name, what in report.plan.others.items())
    assert any("LayerNorm" in name for name in report.plan.others)


def test_the_attention_head_of_siglip_stays_and_says_why(tmp_path: Path) -> None:
    family = next(f for f in IMAGE_FAMILIES if f[0] == "SiglipVisionModel")
    report, _, packed = stages(save_family(family, tmp_path / "source"), tmp_path)
    assert "nn.MultiheadAttention" in report.plan.excluded["head.attention.out_proj"]
    assert isinstance(AutoModel.from_pretrained(packed).head.mlp.fc1, PackedLinear)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_both_towers_of_an_image_text_model_pack_to_themselves(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = getattr(hf, f"{kind}Config")(text_config=CLIP_TEXT, vision_config=CLIP_IMAGE, projection_dim=16)
    model = getattr(hf, f"{kind}Model")(config)
    enlarge(model)
    model.save_pretrained(tmp_path / "source")
    _, latent, packed = stages(tmp_path / "source", tmp_path)
    ids = torch.tensor([[2, 9, 11, 3], [2, 7, 8, 3]])
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    outputs = []
    for folder in (latent, packed):
        both = AutoModel.from_pretrained(folder).eval()
        if folder == packed:
            kernels.use_backend(both, "reference")
        with torch.inference_mode():
            out = both(input_ids=ids, pixel_values=pixels)
        outputs.append(torch.cat([out.text_embeds.flatten(), out.image_embeds.flatten()]))
    assert torch.equal(*outputs)


def test_the_text_tower_of_clip_packs_to_itself(tmp_path: Path) -> None:
    source = save_text(("CLIPTextModel", "CLIPTextConfig", CLIP_TEXT), tmp_path / "source")
    _, latent, packed = stages(source, tmp_path)
    ids = torch.tensor([[2, 9, 11, 3], [2, 7, 8, 3]])
    assert torch.equal(hidden(packed, input_ids=ids), hidden(latent, input_ids=ids))


# ---- Conv1D


def test_a_conv1d_keeps_its_layout_until_it_is_packed(tmp_path: Path) -> None:
    family = next(f for f in TEXT_FAMILIES if f[0] == "GPT2Model")
    source = save_text(family, tmp_path / "source")
    report, latent, packed = stages(source, tmp_path)
    key = "h.0.attn.c_attn.weight"
    assert next(layer.shape for layer in report.layers if layer.name == "h.0.attn.c_attn") == (96, 32)
    assert load_file(latent / "model.safetensors")[key].shape == (32, 96)
    assert load_file(latent / "model.safetensors")[f"{key}_scale"].shape == (96, 1)
    assert load_file(packed / "model.safetensors")[key].shape == (96, 8)
    dense = AutoModel.from_pretrained(packed).dequantize()
    dense.save_pretrained(tmp_path / "dense")
    again = AutoModel.from_pretrained(tmp_path / "dense")
    assert torch.equal(again.h[0].attn.c_attn.weight, dense.h[0].attn.c_attn.weight)
    assert type(again.h[0].attn.c_attn) is hf.pytorch_utils.Conv1D
    student = AutoModel.from_pretrained(latent).train()
    student(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state.square().sum().backward()
    assert student.h[0].attn.c_attn.weight.grad.shape == (32, 96)


# ---- shared and scaled weights


def test_a_table_under_two_names_is_stored_once(tmp_path: Path) -> None:
    family = next(f for f in TEXT_FAMILIES if f[0] == "T5EncoderModel")
    source = save_text(family, tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    report, latent, packed = stages(source, tmp_path)
    assert "shared" in {d.module for d in report.plan.having("table")}
    assert [d.key for d in report.plan.having("tied")] == ["encoder.embed_tokens.weight"]
    for folder in (latent, packed):
        assert "encoder.embed_tokens.weight" not in load_file(folder / "model.safetensors")
    model = load_encoder(packed, device="cpu")[0].auto_model
    assert isinstance(model.shared, PackedEmbedding)
    assert model.encoder.embed_tokens is model.shared
    model.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == load_file(packed / "model.safetensors").keys()
    tensors["encoder.embed_tokens.weight"] += 1
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="are one weight in the model"):
        convert(source, tmp_path / "other")


def test_the_alias_alone_is_enough(tmp_path: Path) -> None:
    family = next(f for f in TEXT_FAMILIES if f[0] == "T5EncoderModel")
    source = save_text(family, tmp_path / "source")
    _, _, packed = stages(source, tmp_path)
    tensors = load_file(source / "model.safetensors")
    tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "alias").mkdir()
    _, _, other = stages(source, tmp_path / "alias")
    assert (other / "model.safetensors").read_bytes() == (packed / "model.safetensors").read_bytes()


def test_the_scale_of_a_scaled_table_survives(tmp_path: Path) -> None:
    family = next(f for f in TEXT_FAMILIES if f[0] == "Gemma3TextModel")
    source = save_text(family, tmp_path / "source")
    _, latent, packed = stages(source, tmp_path)
    ids = torch.tensor([[5, 6, 7]])
    dense, *ours = (AutoModel.from_pretrained(f).get_input_embeddings()(ids) for f in (source, latent, packed))
    for rows in ours:
        torch.testing.assert_close(rows, dense, rtol=0.02, atol=0.02 * float(dense.detach().abs().max()))


# ---- checkpoints as they lie on the hub


def prefixed(folder: Path, prefix: str, head: dict[str, torch.Tensor]) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors = {f"{prefix}.{k}": v for k, v in tensors.items()} | head
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "prefix", "head"),
    [
        ("BertModel", "bert", "cls.predictions.transform.dense.weight"),
        ("RobertaModel", "roberta", "lm_head.dense.weight"),
        ("ElectraModel", "electra", "discriminator_predictions.dense.weight"),
        ("ModernBertModel", "model", "head.dense.weight"),
        ("Qwen3Model", "model", "lm_head.weight"),
        ("GPT2Model", "transformer", "lm_head.weight"),
        ("ViTModel", "vit", "classifier.weight"),
        ("Dinov2Model", "dinov2", "classifier.weight"),
        ("SwinModel", "swin", "classifier.weight"),
    ],
)
def test_a_checkpoint_with_a_head_gives_the_encoder(name: str, prefix: str, head: str, tmp_path: Path) -> None:
    family = next(f for f in TEXT_FAMILIES + IMAGE_FAMILIES if f[0] == name)
    is_text = family in TEXT_FAMILIES
    source = (save_text if is_text else save_family)(family, tmp_path / "source")
    plain, *_ = stages(source, tmp_path)
    prefixed(source, prefix, {head: torch.ones(32, 32)})
    (tmp_path / "prefixed").mkdir()
    report, latent, packed = stages(source, tmp_path / "prefixed")
    assert report.plan.dropped == (head,)
    assert [layer.name for layer in report.layers] == [layer.name for layer in plain.layers]
    assert all(key.startswith(f"{prefix}.") for key in load_file(packed / "model.safetensors"))
    if is_text:
        vectors = assert_encodes_equally(latent, packed)
        np.testing.assert_array_equal(vectors, encode(tmp_path / "packed", backend="reference"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sources_convert_and_their_infinities_do_not(dtype: torch.dtype, tmp_path: Path) -> None:
    source = save_text(TEXT_FAMILIES[0], tmp_path / "source")
    AutoModel.from_pretrained(source).to(dtype).save_pretrained(source)
    tensors = load_file(source / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {dtype}
    _, latent, packed = stages(source, tmp_path)
    assert_encodes_equally(latent, packed)
    for key in (
        "encoder.layer.0.output.dense.weight",
        "embeddings.LayerNorm.bias",
        "embeddings.word_embeddings.weight",
    ):
        damaged = {k: t.clone() for k, t in tensors.items()}
        damaged[key].view(-1)[5] = torch.inf
        save_file(damaged, source / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=f"{key}.* not finite"):
            convert(source, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def fuse(folder: Path, pieces: tuple[str, ...], whole: str) -> None:
    """Stores pieces of a model as the original checkpoints do: as one tensor."""
    tensors = load_file(folder / "model.safetensors")
    for key in [k for k in tensors if pieces[0] in k]:
        parts = [tensors.pop(key.replace(pieces[0], piece)) for piece in pieces]
        tensors[key.replace(pieces[0], whole)] = torch.cat(parts)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


@pytest.mark.parametrize(
    ("name", "pieces", "whole"),
    [
        ("NomicBertModel", QKV, "attn.Wqkv"),
        ("Dinov2Model", ("mlp.gate_proj.", "mlp.up_proj."), "mlp.weights_in."),
    ],
)
@pytest.mark.parametrize("granularity", ["row", "tensor"])
def test_fused_tensors_are_cut_as_transformers_cuts_them(
    name: str, pieces: tuple[str, ...], whole: str, granularity: str, tmp_path: Path
) -> None:
    family = [f for f in TEXT_FAMILIES + IMAGE_FAMILIES if f[0] == name][-1]
    source = save_family(family, tmp_path / "source")
    tensors = AutoModel.from_pretrained(source).state_dict()
    save_file({k: v.contiguous() for k, v in tensors.items()}, source / "model.safetensors", metadata={"format": "pt"})
    scheme = Scheme(granularity=granularity)
    apart, *_ = stages(source, tmp_path, scheme=scheme)
    fuse(source, pieces, whole)
    assert any(whole in key for key in load_file(source / "model.safetensors"))
    (tmp_path / "fused").mkdir()
    report, latent, packed = stages(source, tmp_path / "fused", scheme=scheme)
    assert report.layers == apart.layers
    assert report.plan.dropped == ()
    assert (packed / "model.safetensors").read_bytes() == (tmp_path / "packed" / "model.safetensors").read_bytes()
    assert {m.name for m in inspect(source).modules} == {m.name for m in inspect(packed).modules}
    inputs = (
        {"pixel_values": torch.ones(1, 3, 16, 16)} if name == "Dinov2Model" else {"input_ids": torch.ones(1, 4).long()}
    )
    assert torch.equal(hidden(packed, **inputs), hidden(latent, **inputs))


def test_a_tensor_that_transformers_rebuilds_otherwise_is_refused(tmp_path: Path) -> None:
    config = hf.Qwen3MoeConfig(**DECODER, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16)
    hf.Qwen3MoeModel(config).save_pretrained(tmp_path / "source")
    with pytest.raises(CheckpointError, match=r"experts.*transformers rebuilds this tensor"):
        convert(tmp_path / "source", tmp_path / "out")


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "BertForTokenClassification"])
def test_a_packed_encoder_loads_under_a_class_with_a_new_head(kind: str, tmp_path: Path) -> None:
    source = save_text(TEXT_FAMILIES[0], tmp_path / "source")
    _, _, packed = stages(source, tmp_path, skip=["pooler*"])
    model = getattr(hf, kind).from_pretrained(packed)
    assert type(model.classifier) is torch.nn.Linear
    ids = torch.tensor([[2, 9, 11, 3]])
    alone = AutoModel.from_pretrained(packed)(ids).last_hidden_state
    assert torch.equal(model.bert(ids).last_hidden_state, alone)
    tensors = load_file(packed / "model.safetensors")
    del tensors["encoder.layer.0.output.dense.weight_scale"]
    save_file(tensors, packed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FormatError, match="is not what was packed"):
        getattr(hf, kind).from_pretrained(packed)
    seal(packed)
    with pytest.raises(FormatError, match=r"bert\.encoder\.layer\.0\.output\.dense\.weight_scale is missing"):
        getattr(hf, kind).from_pretrained(packed)


def test_a_head_that_is_tied_to_a_packed_table_and_missing_is_refused(tmp_path: Path) -> None:
    _, latent, packed = stages(save_text(TEXT_FAMILIES[0], tmp_path / "source"), tmp_path)
    with pytest.raises(CheckpointError, match=r"cls\.predictions\.bias is missing"):
        hf.BertForMaskedLM.from_pretrained(packed)
    assert isinstance(hf.BertForMaskedLM.from_pretrained(latent).bert.pooler, type(None))


# ---- sentence-transformers folders


@pytest.fixture
def with_dense(tmp_path: Path) -> Path:
    source = save_tiny_bert(tmp_path / "source")
    add_dense(source)
    return source


@pytest.mark.slow
def test_a_dense_module_becomes_ternary_and_packs_to_itself(with_dense: Path, tmp_path: Path) -> None:
    report, latent, packed = stages(with_dense, tmp_path)
    assert report.layers[-1].name == "2_Dense.linear"
    assert report.layers[-1].shape == (16, 32)
    vectors = assert_encodes_equally(latent, packed)
    assert vectors.shape == (4, 16)
    tensors = load_file(packed / "2_Dense" / "model.safetensors")
    assert tensors["linear.weight"].dtype == torch.uint8
    assert tensors["linear.weight_scale"].dtype == torch.float16
    student = SentenceTransformer(str(latent), device="cpu")
    assert isinstance(student[2].linear, TernaryLinear)
    frozen = SentenceTransformer(str(packed), device="cpu")
    frozen.save(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    assert isinstance(again[2].linear, PackedLinear)
    np.testing.assert_array_equal(again.encode(SENTENCES), frozen.encode(SENTENCES))


def test_keep_dense_keeps_dense(with_dense: Path, tmp_path: Path) -> None:
    report, latent, packed = stages(with_dense, tmp_path, keep_dense=True)
    assert report.plan.excluded["2_Dense.linear"] == "--keep-dense"
    for folder in (latent, packed):
        tensors = load_file(folder / "2_Dense" / "model.safetensors")
        source = load_file(with_dense / "2_Dense" / "model.safetensors")
        assert tensors.keys() == source.keys()
        assert all(torch.equal(tensors[k], source[k]) for k in source)
    assert_encodes_equally(latent, packed)


def test_skip_patterns_reach_dense_modules(with_dense: Path, tmp_path: Path) -> None:
    report, latent, packed = stages(with_dense, tmp_path, skip=["2_Dense.*", "pooler*"])
    assert report.plan.excluded["2_Dense.linear"] == "--skip 2_Dense.*"
    assert_encodes_equally(latent, packed)
    with pytest.raises(InputError, match="'3_Dense' matches no linear"):
        convert(with_dense, tmp_path / "no", options=ConvertOptions(skip=["3_Dense"]))


def test_a_dense_module_with_a_residual_projection_packs_to_itself(tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source")
    add_dense(source, use_residual=True, bias=False)
    report, latent, packed = stages(source, tmp_path)
    assert [layer.name for layer in report.layers[-2:]] == ["2_Dense.linear", "2_Dense.residual"]
    assert_encodes_equally(latent, packed)


def test_a_pickled_dense_module_is_refused_and_with_leave_converted(with_dense: Path, tmp_path: Path) -> None:
    path = with_dense / "2_Dense" / "model.safetensors"
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()
    with pytest.raises(CheckpointError, match=r"2_Dense.*is a pickle"):
        convert(with_dense, tmp_path / "no")
    for keep in (False, True):
        (tmp_path / f"{keep}").mkdir()
        _, latent, packed = stages(with_dense, tmp_path / f"{keep}", keep_dense=keep, allow_pickle=True)
        assert not list(latent.rglob("*.bin"))
        assert_encodes_equally(latent, packed)


def test_a_damaged_dense_module_is_named(with_dense: Path, tmp_path: Path) -> None:
    _, _, packed = stages(with_dense, tmp_path)
    path = packed / "2_Dense" / "model.safetensors"
    tensors = load_file(path)
    for key, value, message in (
        ("linear.weight", torch.full_like(tensors["linear.weight"], 255), r"2_Dense\.linear\.weight: invalid code"),
        ("linear.weight_scale", tensors["linear.weight_scale"] * torch.nan, r"2_Dense\.linear\.weight_scale"),
        ("linear.weight", tensors["linear.weight"][:3], r"linear\.weight is \[3, 8\]"),
    ):
        save_file(tensors | {key: value.contiguous()}, path, metadata={"format": "pt"})
        seal(packed)
        with pytest.raises(FormatError, match=message):
            load_encoder(packed)
    save_file({k: v for k, v in tensors.items() if k != "linear.weight_scale"}, path, metadata={"format": "pt"})
    seal(packed)
    with pytest.raises(FormatError, match=r"linear\.weight_scale is missing"):
        load_encoder(packed)


@pytest.mark.slow
def test_without_the_plug_in_a_ternary_dense_module_does_not_load(with_dense: Path, tmp_path: Path) -> None:
    stages(with_dense, tmp_path)
    code = """
import sys
from sentence_transformers.base.modules import Dense
for folder in sys.argv[1:]:
    try:
        Dense.load(folder, subfolder="2_Dense")
    except RuntimeError as e:
        assert "linear.weight" in str(e), e
    else:
        raise SystemExit(f"{folder} loads")
assert "ternarize_cli" not in sys.modules
"""
    folders = [str(tmp_path / stage) for stage in ("latent", "packed")]
    alone = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    command = [sys.executable, "-c", code, *folders]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=alone)
    assert result.returncode == 0, result.stderr


MODES = ["mean_tokens", "cls_token", "max_tokens", "lasttoken", "weightedmean_tokens", "mean_sqrt_len_tokens"]


@pytest.mark.parametrize("mode", MODES)
def test_every_pooling_mode_travels(mode: str, tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source")
    pooling = {"word_embedding_dimension": 32} | {f"pooling_mode_{m}": m == mode for m in MODES}
    (source / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    _, latent, packed = stages(source, tmp_path)
    assert_encodes_equally(latent, packed)
    assert load_encoder(packed, device="cpu")[1].pooling_mode == load_encoder(source, device="cpu")[1].pooling_mode


def test_prompts_and_lengths_travel(tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source")
    prompts = {"prompts": {"query": "the file ", "document": ""}, "default_prompt_name": "query"}
    (source / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    (source / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 5, "do_lower_case": False}))
    _, latent, packed = stages(source, tmp_path)
    for folder in (latent, packed):
        encoder = load_encoder(folder, device="cpu")
        assert encoder.max_seq_length == 5
        assert encoder.prompts["query"] == "the file "
        assert encoder.default_prompt_name == "query"
    assert_encodes_equally(latent, packed)


# ---- plain folders


def test_a_plain_encoder_is_mean_pooled_and_the_checkpoint_says_so(tmp_path: Path) -> None:
    source = save_text(TEXT_FAMILIES[0], tmp_path / "source")
    assert "mean-pooled" in str(pooling_note(source))
    report, latent, packed = stages(source, tmp_path)
    assert any("modules.json with mean pooling" in note for note in report.notes)
    assert pooling_note(latent) is pooling_note(packed) is None
    for folder in (source, latent, packed):
        assert load_encoder(folder, device="cpu")[1].pooling_mode == "mean"


@pytest.mark.parametrize("name", ["Qwen3Model", "GPT2Model", "LlamaModel"])
def test_a_plain_decoder_gives_its_last_token_and_the_checkpoint_says_so(name: str, tmp_path: Path) -> None:
    source = save_text(next(f for f in TEXT_FAMILIES if f[0] == name), tmp_path / "source")
    assert "last token" in str(pooling_note(source))
    _, latent, packed = stages(source, tmp_path)
    for folder in (source, latent, packed):
        assert load_encoder(folder, device="cpu")[1].pooling_mode == "lasttoken"
    assert SentenceTransformer(str(packed), device="cpu")[1].pooling_mode == "lasttoken"


def test_a_decoder_with_bidirectional_attention_is_mean_pooled(tmp_path: Path) -> None:
    source = save_text(next(f for f in TEXT_FAMILIES if f[0] == "Gemma3TextModel"), tmp_path / "source")
    assert "mean-pooled" in str(pooling_note(source))


def test_without_a_padding_token_the_end_of_text_pads(tmp_path: Path) -> None:
    source = save_text(next(f for f in TEXT_FAMILIES if f[0] == "Qwen3Model"), tmp_path / "source")
    padded = encode(source)
    save_decoder_tokenizer(source, pad=False)
    np.testing.assert_allclose(encode(source), padded, rtol=1e-4, atol=1e-5)
    report, latent, packed = stages(source, tmp_path)
    assert any("its end-of-text token '[SEP]' pads" in note for note in report.notes)
    assert SentenceTransformer(str(packed), device="cpu").tokenizer.pad_token == "[SEP]"
    assert_encodes_equally(latent, packed)


def test_without_any_token_to_pad_with_the_user_is_told(tmp_path: Path, run: Callable[..., Any]) -> None:
    source = save_text(next(f for f in TEXT_FAMILIES if f[0] == "Qwen3Model"), tmp_path / "source")
    save_decoder_tokenizer(source, pad=False, eos=False)
    with pytest.raises(InputError, match="neither a padding token nor an end-of-text token"):
        load_encoder(source, device="cpu")
    result = run("convert", source, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "pad_token" in result.stderr
    assert not (tmp_path / "out").exists()


# ---- what is refused


def test_an_encoder_without_linears_is_refused(tmp_path: Path, run: Callable[..., Any]) -> None:
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    hf.ResNetModel(config).save_pretrained(tmp_path / "source")
    result = run("convert", tmp_path / "source", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "nothing to ternarise" in result.stderr


def test_model_code_in_the_folder_is_refused(tmp_path: Path) -> None:
    source = save_text(TEXT_FAMILIES[0], tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    auto = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (source / "config.json").write_text(json.dumps(config | {"model_type": "evil", "auto_map": auto}))
    (source / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(CheckpointError, match="brings its own model code"):
        convert(source, tmp_path / "out")


def test_the_command_tells_what_stays(with_dense: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    result = run("convert", with_dense, "-o", tmp_path / "out", "--keep-dense", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["kept"]["2_Dense.linear"] == "--keep-dense"
    assert any("LayerNorm" in name for name in told["others"])
    assert "5 × LayerNorm" in result.stderr
    assert ternarize_cli.hf.__name__
    shutil.rmtree(tmp_path / "out")
