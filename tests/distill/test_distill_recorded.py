"""A step of training can be recorded as a CUDA graph: nothing in it reads a value or takes a tensor from the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from support.families import SMALL, T5, TEXT, Family, save_family
from support.fused_families import FUSED, OTHERS, inputs, name_of, opened
from support.recorded_steps import crossings
from support.training_runs import trainer_of
from ternarize_cli.distill import student_teacher
from ternarize_cli.distill.recordable import make_recordable
from ternarize_cli.distill.trainer import Trainer

MPNET: Family = ("MPNetModel", "MPNetConfig", SMALL | TEXT)
CHANGED = ("MPNetModel", "T5EncoderModel", "BeitModel", "Gemma3TextModel", "MistralModel", "Qwen3Model")


def asked_of_the_cpu(trainer: Trainer) -> list[str]:
    with trainer.pair.training():
        return crossings(trainer, next(trainer.batches.heaviest()))


KNOWN = [f for f in [*FUSED, *OTHERS] if hasattr(hf, f[0])]


# Swin's stages have other numbers of tokens than its end, whose mask the losses take
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("family", [f for f in KNOWN if f[0] != "SwinModel"], ids=name_of)
def test_a_step_takes_nothing_from_the_cpu(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_of_the_cpu(trainer_of(family, tmp_path, monkeypatch)) == []


def _on_the_cpu(self: Any, x: Tensor, position_ids: None = None, num_buckets: int = 32) -> Tensor:
    """Positions as MPNet of transformers 5.17 makes them."""
    place = torch.arange(x.shape[1])
    buckets = self.relative_position_bucket(place[None] - place[:, None], num_buckets=num_buckets).to(x.device)
    values: Tensor = self.relative_attention_bias(buckets).permute(2, 0, 1).unsqueeze(0)
    return values.expand(x.shape[0], -1, -1, -1).contiguous()


@pytest.mark.parametrize("kept", [True, False])
def test_positions_that_a_model_makes_on_the_cpu_are_made_once(
    kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf.models.mpnet.modeling_mpnet.MPNetEncoder, "compute_position_bias", _on_the_cpu)
    if not kept:
        monkeypatch.setattr(student_teacher, "make_recordable", lambda model: None)
    trainer = trainer_of(MPNET, tmp_path, monkeypatch)
    assert (asked_of_the_cpu(trainer) == []) is kept


@pytest.mark.parametrize("family", [f for f in FUSED if f[0] in CHANGED], ids=name_of)
def test_a_recordable_model_computes_the_same_bits(family: Family, tmp_path: Path) -> None:
    folder = save_family(family, tmp_path / "source")
    own, recordable = opened(family, folder), opened(family, folder)
    make_recordable(recordable)
    given = inputs(family)
    with torch.no_grad():  # transformers may keep an index that another test made in inference mode
        for _ in range(2):
            assert torch.equal(own(**given)[0], recordable(**given)[0])
    recordable.save_pretrained(tmp_path / "saved")
    name = "model.safetensors"
    assert (tmp_path / "saved" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("tokens", [1, 2, 3, 31, 33, 128, 200])
def test_kept_positions_are_those_of_any_length(tokens: int) -> None:
    t5 = hf.T5EncoderModel(hf.T5Config(**T5)).encoder.block[0].layer[0].SelfAttention
    mpnet = hf.MPNetModel(hf.MPNetConfig(**MPNET[2])).encoder
    x = torch.empty(3, tokens, 32)
    own = t5.compute_bias(tokens, tokens), mpnet.compute_position_bias(x)
    for module in (t5, mpnet):
        make_recordable(module)
    assert torch.equal(t5.compute_bias(tokens, tokens), own[0])
    assert torch.equal(mpnet.compute_position_bias(x), own[1])
