"""The plug-in, as users of transformers and sentence-transformers meet it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTModel,
)

import ternarize_cli.hf
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.pack import pack
from ternarize_cli.layers import PackedLinear, TernaryLinear

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
FAMILIES = [
    (BertModel, BertConfig(vocab_size=20, **SMALL)),
    (RobertaModel, RobertaConfig(vocab_size=20, max_position_embeddings=40, **SMALL)),
    (DistilBertModel, DistilBertConfig(vocab_size=20, dim=16, n_layers=2, n_heads=2, hidden_dim=32)),
    (ViTModel, ViTConfig(image_size=8, patch_size=4, **SMALL)),
]


@pytest.fixture(scope="module")
def artifacts(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `latent` and `packed` of the tiny BERT; tests must not write into it."""
    folder = tmp_path_factory.mktemp("artifacts")
    convert(tiny_bert, folder / "latent")
    pack(folder / "latent", folder / "packed")
    return folder


def inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    if model.config.model_type == "vit":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator)}
    return {"input_ids": torch.randint(2, 20, (2, 7), generator=generator)}


def last_hidden_state(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(**inputs(model)).last_hidden_state


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "config"), FAMILIES, ids=lambda x: getattr(x, "__name__", ""))
def test_every_family_loads_from_both_stages_and_agrees(
    kind: type[PreTrainedModel], config: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERNARIZE_BACKEND", "reference")
    torch.manual_seed(0)
    kind(config).save_pretrained(tmp_path / "source")  # type: ignore[arg-type]
    convert(tmp_path / "source", tmp_path / "latent")
    pack(tmp_path / "latent", tmp_path / "packed")
    latent = AutoModel.from_pretrained(tmp_path / "latent")
    packed = AutoModel.from_pretrained(tmp_path / "packed")
    assert any(isinstance(m, TernaryLinear) for m in latent.modules())
    assert any(isinstance(m, PackedLinear) for m in packed.modules())
    assert not any(type(m) is torch.nn.Linear for m in packed.modules())
    torch.testing.assert_close(last_hidden_state(packed), last_hidden_state(latent), rtol=0, atol=1e-4)


def test_sentence_transformer_loads_both_stages(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERNARIZE_BACKEND", "reference")
    vectors = [SentenceTransformer(str(artifacts / s), device="cpu").encode(["a cat"]) for s in ("latent", "packed")]
    assert abs(vectors[0] - vectors[1]).max() < 1e-4


@pytest.mark.parametrize("stage", ["latent", "packed"])
def test_save_pretrained_round_trips(artifacts: Path, tmp_path: Path, stage: str) -> None:
    model = AutoModel.from_pretrained(artifacts / stage)
    expected = last_hidden_state(model)
    model.save_pretrained(tmp_path / "again")
    before, after = load_file(artifacts / stage / "model.safetensors"), load_file(tmp_path / "again/model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) and before[k].dtype == after[k].dtype for k in before)
    again = AutoModel.from_pretrained(tmp_path / "again")
    assert again.config.quantization_config.artifact == model.config.quantization_config.artifact
    assert torch.equal(last_hidden_state(again), expected)


def test_sentence_transformer_save_round_trips(artifacts: Path, tmp_path: Path) -> None:
    encoder = SentenceTransformer(str(artifacts / "packed"), device="cpu")
    encoder.save(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    assert abs(again.encode(["a cat"]) - encoder.encode(["a cat"])).max() == 0


def test_a_packed_model_runs_in_bfloat16(artifacts: Path) -> None:
    model = AutoModel.from_pretrained(artifacts / "packed", dtype=torch.bfloat16)
    scales = [m.weight_scale.dtype for m in model.modules() if isinstance(m, PackedLinear)]
    assert set(scales) == {torch.float16}
    half, full = last_hidden_state(model), last_hidden_state(AutoModel.from_pretrained(artifacts / "packed"))
    assert half.dtype == torch.bfloat16
    assert float((half.float() - full).norm() / full.norm()) < 0.05


def test_dequantize_gives_the_dense_twin(artifacts: Path) -> None:
    model = AutoModel.from_pretrained(artifacts / "packed")
    expected = last_hidden_state(model)
    dense = model.dequantize()
    assert not any(isinstance(m, PackedLinear) for m in dense.modules())
    assert float((last_hidden_state(dense) - expected).norm() / expected.norm()) < 0.05


def test_casting_a_packed_model_casts_what_it_computes(artifacts: Path) -> None:
    model = AutoModel.from_pretrained(artifacts / "packed").to(torch.bfloat16)
    assert last_hidden_state(model).dtype == torch.bfloat16


def test_a_dequantized_latent_model_computes_the_same_and_is_dense(artifacts: Path, tmp_path: Path) -> None:
    dense = AutoModel.from_pretrained(artifacts / "latent").dequantize()
    expected = last_hidden_state(dense)
    assert not any(isinstance(m, TernaryLinear) for m in dense.modules())
    dense.save_pretrained(tmp_path / "dense")
    assert torch.equal(last_hidden_state(AutoModel.from_pretrained(tmp_path / "dense")), expected)
    packed = AutoModel.from_pretrained(artifacts / "packed").dequantize()
    assert torch.equal(last_hidden_state(packed), expected)


def test_a_latent_model_trains(artifacts: Path) -> None:
    model = AutoModel.from_pretrained(artifacts / "latent").train()
    model(**inputs(model)).last_hidden_state.square().sum().backward()
    layer = next(m for m in model.modules() if isinstance(m, TernaryLinear))
    assert layer.weight.grad is not None
    assert float(layer.weight_scale.grad.abs().sum()) > 0


def stock(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs code in a Python where our package was never imported."""
    program = f"import sys; folder = {str(folder)!r}\n{code}\nassert 'ternarize_cli' not in sys.modules"
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
def test_without_the_plug_in_a_packed_model_fails_loudly(artifacts: Path) -> None:
    result = stock("from transformers import AutoModel; AutoModel.from_pretrained(folder)", artifacts / "packed")
    assert result.returncode != 0
    assert "mismatch" in result.stderr.lower() or "shape" in result.stderr.lower()


@pytest.mark.slow
def test_without_the_plug_in_a_ternary_checkpoint_is_its_dense_latent_model(artifacts: Path, tiny_bert: Path) -> None:
    code = (
        f"from transformers import AutoModel; import torch; other = {str(tiny_bert)!r}\n"
        "m, t = AutoModel.from_pretrained(folder), AutoModel.from_pretrained(other)\n"
        "assert all(torch.equal(a, b) for a, b in zip(m.state_dict().values(), t.state_dict().values()))"
    )
    result = stock(code, artifacts / "latent")
    assert result.returncode == 0, result.stderr


def test_importing_the_package_alone_loads_nothing_heavy() -> None:
    code = "import sys, ternarize_cli; assert not {'torch', 'transformers'} & set(sys.modules), 'heavy'"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert ternarize_cli.hf.__name__ == "ternarize_cli.hf"
