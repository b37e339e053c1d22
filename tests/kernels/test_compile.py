"""torch.compile and torch.export of packed models."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from support.families import IMAGE, SMALL, TEXT, save_family, save_text, stages
from ternarize_cli.errors import UnavailableError
from ternarize_cli.kernels import describe, use_backend

IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 0, 0]])
TEXTS = {"input_ids": IDS, "attention_mask": (IDS != 0).long()}
IMAGES = {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
BACKENDS = [b.name for b in describe() if b.available and b.name in ("native", "onednn", "reference")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The packed models of a tiny BERT, a ViT, a DINOv2 with registers and a BEiT."""
    folder = tmp_path_factory.mktemp("packed")
    save_text(("BertModel", "BertConfig", SMALL | TEXT), folder / "bert" / "source")
    save_family(("ViTModel", "ViTConfig", IMAGE), folder / "vit" / "source")
    registers = IMAGE | {"num_register_tokens": 2}
    save_family(("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", registers), folder / "dino" / "source")
    save_family(("BeitModel", "BeitConfig", IMAGE | {"use_relative_position_bias": True}), folder / "beit" / "source")
    return {name: stages(folder / name / "source", folder / name)[2] for name in ("bert", "vit", "dino", "beit")}


@pytest.fixture(autouse=True)
def fresh() -> Any:
    torch.compiler.reset()
    with torch.no_grad():
        yield
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("backend", "name"),
    # torch.export gives the last bit of BEiT's own modules another value, packed or not
    [(b, n) for b in BACKENDS for n in ("bert", "vit", "dino", "beit") if n != "beit" or b == "native"],
)
def test_one_graph_computes_the_bits_of_the_model(name: str, backend: str, folders: dict[str, Path]) -> None:
    model = AutoModel.from_pretrained(folders[name]).eval()
    inputs = TEXTS if name == "bert" else IMAGES
    use_backend(model, backend)
    expected = model(**inputs)
    compiled = torch.compile(model, backend="eager", fullgraph=True)(**inputs)
    exported = torch.export.export(model, (), inputs).module()(**inputs)
    for made in (compiled, exported):
        assert torch.equal(made.last_hidden_state, expected.last_hidden_state)
        assert (made.pooler_output is None) == (expected.pooler_output is None)


@pytest.mark.skipif("native" not in BACKENDS, reason="the backend native is not built")
def test_a_graph_has_one_operator_for_the_whole_encoder_and_takes_other_shapes(folders: dict[str, Path]) -> None:
    model = AutoModel.from_pretrained(folders["bert"]).eval()
    use_backend(model, "native")
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    shapes = {name: {0: batch, 1: tokens} for name in TEXTS}
    program = torch.export.export(model, (), TEXTS, dynamic_shapes=shapes)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert [t for t in targets if t.startswith("ternarize.")] == [
        "ternarize.encode.default",
        "ternarize.linear.default",  # the pooler
    ]
    longer = {name: tensor.repeat(2, 3) for name, tensor in TEXTS.items()}
    made = program.module()(**longer).last_hidden_state
    assert torch.equal(made, model(**longer).last_hidden_state)


def test_the_first_call_of_a_compiled_model_chooses_its_backend(folders: dict[str, Path]) -> None:
    expected = AutoModel.from_pretrained(folders["bert"])(**TEXTS).last_hidden_state
    model = torch.compile(AutoModel.from_pretrained(folders["bert"]), backend="eager")
    for _ in range(2):
        assert torch.equal(model(**TEXTS).last_hidden_state, expected)
    with pytest.raises(UnavailableError, match="has no backend yet"):
        torch.export.export(AutoModel.from_pretrained(folders["bert"]), (), TEXTS)


def test_a_graph_without_its_model_says_so(folders: dict[str, Path]) -> None:
    model = AutoModel.from_pretrained(folders["bert"])
    model(**TEXTS)
    program = torch.export.export(model, (), TEXTS).module()
    del model
    gc.collect()
    with pytest.raises(UnavailableError, match="no longer loaded"):
        program(**TEXTS)


def test_a_graph_gives_hidden_states_from_the_modules(folders: dict[str, Path]) -> None:
    model = AutoModel.from_pretrained(folders["bert"]).eval()
    expected = model(**TEXTS, output_hidden_states=True).hidden_states
    made = torch.compile(model, backend="eager")(**TEXTS, output_hidden_states=True).hidden_states
    assert [torch.equal(*pair) for pair in zip(made, expected, strict=True)] == [True] * 3
