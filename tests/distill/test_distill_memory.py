"""Distillation within means: batches that fit the GPU, the teacher's embeddings kept on disk, CUDA graphs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.models import WORDS
from ternarize_cli.arithmetic import cuda_graphs
from ternarize_cli.compress.convert import convert
from ternarize_cli.distill import loop, optimisation
from ternarize_cli.distill.held_out import HeldOut, _agreement
from ternarize_cli.distill.optimisation import Optimisation
from ternarize_cli.encoders.loading import load_encoder

Run = Callable[..., Any]
POOLED = ("--loss", "hidden=0", "--joined", 0)


@pytest.fixture(scope="module")
def latent(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory") / "tiny-ternary"
    convert(tiny_bert, folder)
    return folder


@pytest.fixture
def command(tiny_bert: Path, latent: Path, tmp_path: Path) -> tuple[object, ...]:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"{a} {b}" for a in WORDS for b in WORDS[:5]))
    return ("distill", latent, "--teacher", tiny_bert, "--data", texts, "--steps", 4, "--json", "--device", "cpu")


@pytest.mark.slow
def test_batches_are_halved_until_they_fit(
    run: Run, command: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Optimisation._gradients_of

    def short_of_memory(self: Optimisation, batch: dict[str, Any]) -> Any:
        if len(batch["input_ids"]) > 12:
            raise torch.cuda.OutOfMemoryError
        return whole(self, batch)

    taught = []

    class Counted(HeldOut):
        def __init__(self, *args: Any) -> None:
            taught.append(1)
            super().__init__(*args)

    monkeypatch.setattr(loop, "HeldOut", Counted)
    monkeypatch.setattr(Optimisation, "_gradients_of", short_of_memory)
    result = run(*command, "--batch-size", 32, "-o", tmp_path / "a")
    assert result.exit_code == 2
    hint = "--gradient-checkpointing, --batch-size 16 --accumulate 2, or --auto-batch"
    assert hint in " ".join(result.stderr.split())
    result = run(*command, "--batch-size", 32, "--auto-batch", "-o", tmp_path / "a")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["batch_size"], report["accumulate"], report["steps"]) == (8, 4, 4)
    assert report["gradient_checkpointing"]
    assert len(taught) == 2  # once a run


@pytest.mark.slow
def test_gradient_checkpointing_comes_before_halving(
    run: Run, command: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Optimisation._gradients_of

    def short_of_memory(self: Optimisation, batch: dict[str, Any]) -> Any:
        if not self._training.gradient_checkpointing:
            raise torch.cuda.OutOfMemoryError
        return whole(self, batch)

    plain = run(*command, "--batch-size", 32, "-o", tmp_path / "plain")
    assert plain.exit_code == 0, plain.stderr
    monkeypatch.setattr(Optimisation, "_gradients_of", short_of_memory)
    result = run(*command, "--batch-size", 32, "--auto-batch", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["gradient_checkpointing"], report["batch_size"], report["accumulate"]) == (True, 32, 1)
    assert json.loads((tmp_path / "out" / "distillation.json").read_text())["gradient_checkpointing"]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "out")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_the_teachers_embeddings_are_made_once_and_are_its_own(
    run: Run, command: tuple[object, ...], tiny_bert: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    written = set()
    for name in "ab":
        result = run(*command, *POOLED, "--cache-teacher", cache, "-o", tmp_path / name)
        assert result.exit_code == 0, result.stderr
        made = list(cache.iterdir())
        assert len(made) == 1
        written.add(made[0].stat().st_mtime_ns)
    assert len(written) == 1
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert a == b
    vectors = np.load(made[0])
    expected = load_encoder(tiny_bert, device="cpu").encode(sorted(f"{x} {y}" for x in WORDS for y in WORDS[:5]))
    nearest = (vectors[0].astype(np.float32) @ expected.T).max(axis=1)
    assert np.allclose(nearest, 1, atol=2e-3)
    other = tmp_path / "other.txt"
    other.write_text("\n".join(f"{x} {y}" for x in WORDS for y in WORDS[5:9]))
    swapped = [other if str(part).endswith("texts.txt") else part for part in command]
    assert run(*swapped, *POOLED, "--cache-teacher", cache, "-o", tmp_path / "c").exit_code == 0
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [((), "--loss hidden=0"), (("--loss", "hidden=0"), "--joined 0"), (("--recipe", "paper"), "--loss output=0")],
)
def test_what_can_not_be_cached_is_refused(
    run: Run, command: tuple[object, ...], tmp_path: Path, options: tuple[object, ...], said: str
) -> None:
    result = run(*command, *options, "--cache-teacher", tmp_path / "cache", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_a_damaged_cache_is_refused(run: Run, command: tuple[object, ...], tmp_path: Path) -> None:
    cached = (*command, *POOLED, "--cache-teacher", tmp_path / "cache", "-o", tmp_path / "out")
    assert run(*cached).exit_code == 0
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    result = run(*cached, "--force")
    assert result.exit_code == 2
    assert f"rm {path}" in " ".join(result.stderr.split()).replace("- ", "-")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_recorded_steps_train_as_others_do(
    run: Run, command: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = [("cuda" if part == "cpu" else 30 if part == 4 else part) for part in command]
    cosines = []
    for name, most in (("recorded", 96), ("not", 0)):
        monkeypatch.setattr(cuda_graphs, "_MOST", most)
        result = run(*on_gpu, "--batch-size", 16, "-o", tmp_path / name)
        assert result.exit_code == 0, result.stderr
        cosines.append(json.loads(result.stdout)["cosine_after"])
    assert cosines[0] == pytest.approx(cosines[1], abs=5e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_gradients_are_finite_where_padding_sees_only_padding() -> None:
    from torch.nn.attention import sdpa_kernel
    from transformers import ModernBertConfig, ModernBertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 64, "num_hidden_layers": 2}
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
    config = ModernBertConfig(**sizes, **special, vocab_size=100, attn_implementation="sdpa")
    model = ModernBertModel(config).cuda()
    ids = torch.randint(5, 90, (8, 448), device="cuda")
    lengths = torch.tensor([436, 429, 404, 388, 374, 363, 345, 329], device="cuda")
    mask = (torch.arange(448, device="cuda") < lengths[:, None]).long()
    with sdpa_kernel(optimisation._ATTENTION), torch.autocast("cuda", torch.bfloat16):
        model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()].square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_agreement_is_the_rank_correlation_of_all_pairs_with_ties_at_their_mean_rank() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])  # cosines 1, 0, .6, 0, .6, .8
    b = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [0.8, 0.6]])  # cosines .6, 0, .8, .8, .96, .6
    first, second = np.array([6, 1.5, 3.5, 1.5, 3.5, 5]), np.array([2.5, 1, 4.5, 4.5, 6, 2.5])
    assert _agreement(a, a) == pytest.approx(1.0, abs=1e-12)
    assert _agreement(a, b) == pytest.approx(np.corrcoef(first, second)[0, 1], abs=1e-12)
    assert _agreement(a, torch.ones(4, 2)) == 0.0
    assert _agreement(a[:2], b[:2]) == 1.0
