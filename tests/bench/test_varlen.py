"""The rivals that run real tokens alone compute what the model computes with padding."""

from importlib import import_module
from pathlib import Path

import pytest
import torch

from support.families import DECODER, SMALL, TEXT, TEXT_FAMILIES, Family, save_family
from support.models import save_tiny_vit
from ternarize_cli.bench.candidates import relative_l2
from ternarize_cli.engines import baselines, exports
from ternarize_cli.engines.baselines import forward_of
from ternarize_cli.engines.varlen import Unpadded
from ternarize_cli.errors import UnavailableError

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="flash attention needs an NVIDIA GPU")
LENGTHS = (40, 1, 7, 40, 23)
RUN: list[Family] = [
    ("BertModel", "BertConfig", SMALL | TEXT),
    ("RobertaModel", "RobertaConfig", SMALL | TEXT),
    ("DistilBertModel", "DistilBertConfig", TEXT | {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}),
    ("ElectraModel", "ElectraConfig", SMALL | TEXT | {"embedding_size": 16}),
    ("ModernBertModel", "ModernBertConfig", SMALL | TEXT | {"local_attention": 8, "global_attn_every_n_layers": 2}),
    ("NomicBertModel", "NomicBertConfig", SMALL | TEXT | {"head_dim": 8}),
    ("Qwen3Model", "Qwen3Config", DECODER),
]
REFUSED = [family for family in TEXT_FAMILIES if family[0] in ("MPNetModel", "DebertaV2Model", "T5EncoderModel")]


def name_of(family: Family) -> str:
    return family[0]


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(5, 64, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return ids * mask, mask


@torch.no_grad()
@pytest.mark.parametrize("family", RUN, ids=name_of)
def test_without_padding_a_model_computes_what_it_computes_with_it(tmp_path, family):
    folder = save_family(family, tmp_path / "m")
    ids, mask = padded()
    expected = forward_of(exports.transformer(folder, torch.float32, attn_implementation="eager"))(ids, mask)
    run = Unpadded("torch-fp16-varlen", exports.transformer(folder, torch.float32))
    for _ in range(2):  # the second time, the places of the texts are known
        assert relative_l2(run(ids, mask), expected, mask) < 1e-5
    assert not run(ids, mask)[mask == 0].any()
    turned = mask.flip(1)  # padding on the left
    backwards = torch.zeros_like(ids)
    backwards[mask == 1] = ids.flip(1)[turned == 1]
    found, expected = run(ids.flip(1), turned), run(backwards, mask)
    torch.testing.assert_close(found[turned == 1], expected[mask == 1])


@pytest.mark.parametrize("family", REFUSED, ids=name_of)
def test_a_family_whose_attention_has_a_bias_is_refused_in_words(tmp_path, family):
    folder = save_family(family, tmp_path / "m")
    with pytest.raises(UnavailableError, match=f"no flash attention for {family[0]}"):
        Unpadded("torch-fp16-varlen", exports.transformer(folder, torch.float32))


def test_a_model_of_images_is_refused(tmp_path):
    with pytest.raises(UnavailableError, match="reads images"):
        Unpadded("torch-fp16-varlen", exports.transformer(save_tiny_vit(tmp_path / "v"), torch.float32))


@torch.no_grad()
@pytest.mark.slow
def test_the_compiled_form_computes_the_same_at_any_shape(tmp_path):
    with exports.quiet():
        import_module("torch._inductor.compile_fx")
    folder = save_family(RUN[0], tmp_path / "m")
    plain = Unpadded("a", exports.transformer(folder, torch.float32))
    compiled = Unpadded("b", exports.transformer(folder, torch.float32))
    compiled.model.compile(dynamic=True)
    ids, mask = padded()
    for rows in (5, 3, 4):
        given = ids[:rows], mask[:rows].clone()
        assert relative_l2(compiled(*given), plain(*given), given[1]) < 1e-5


@needs_gpu
@torch.no_grad()
@pytest.mark.parametrize("name", ["torch-fp16-varlen", "torch-fp16-varlen-compiled"])
@pytest.mark.parametrize("family", RUN, ids=name_of)
def test_on_a_gpu_flash_attention_computes_the_same(tmp_path: Path, family: Family, name: str):
    folder = save_family(family, tmp_path / "m")
    ids, mask = padded()
    expected = forward_of(exports.transformer(folder, torch.float32))(ids, mask)
    made = baselines.require_baseline(name, "cuda").build(folder, "cuda")
    found = made(ids.cuda(), mask.cuda()).cpu()
    assert relative_l2(found, expected, mask) < 0.02
