"""The format gguf: exact tensors, metadata, vectors in llama.cpp, its check, and what is refused."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.damage import damage
from support.families import TEXT_FAMILIES, save_family, stages
from support.gguf_files import read_gguf, save_byte_tokenizer, save_piece_tokenizer, save_unigram_tokenizer
from support.models import save_modules, save_tiny_bert, save_tiny_clip, save_word_tokenizer
from ternarize_cli import load
from ternarize_cli.errors import FormatError, GateMissedError, InputError, UnavailableError
from ternarize_cli.export.options import ExportOptions
from ternarize_cli.export.session import export
from ternarize_cli.format.scheme import Scheme
from ternarize_cli.layers import PackedEmbedding, PackedLinear

pytestmark = pytest.mark.skipif(find_spec("gguf") is None, reason="the extra `gguf` is not installed")
runs = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
TEXTS = ["the cat", "dog house tree " * 15, "red green small cat in a tree by the river", "water fire bird"]
UNCHECKED = ExportOptions(check=False)
SPECIAL = {
    "XLMRobertaModel": {"pad_token_id": 1},
    "ModernBertModel": {"local_attention": 8, "num_hidden_layers": 4},
    "Gemma3TextModel": {"sliding_window": 8, "num_hidden_layers": 6, "query_pre_attn_scalar": 8},
}
FAMILIES = [
    ("BertModel", save_word_tokenizer, "mean", "bert"),
    ("RobertaModel", save_byte_tokenizer, "cls", "bert"),
    ("XLMRobertaModel", save_unigram_tokenizer, "mean", "bert"),
    ("DistilBertModel", save_word_tokenizer, "mean", "bert"),
    ("NomicBertModel", save_word_tokenizer, "mean", "nomic-bert"),
    ("ModernBertModel", save_byte_tokenizer, "mean", "modern-bert"),
    ("Qwen3Model", save_byte_tokenizer, "lasttoken", "qwen3"),
    ("Gemma3TextModel", save_piece_tokenizer, "mean", "gemma-embedding"),
]


@pytest.fixture(scope="module")
def made(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of the tiny BERT, unchecked; tests must not write into it."""
    output = tmp_path_factory.mktemp("gguf") / "made"
    export(packed, output, to="gguf", options=UNCHECKED)
    return output


def tiny(name: str, tokenizer: Callable[[Path], int], mode: str, folder: Path, **changes: Any) -> Path:
    """A packed tiny model of a family."""
    model, config, settings = next(family for family in TEXT_FAMILIES if family[0] == name)
    settings = settings | {"vocab_size": 512} | SPECIAL.get(name, {}) | changes
    source = save_family((model, config, settings), folder / "source")
    tokenizer(source)
    save_modules(source, 32)
    pooling = {"embedding_dimension": 32, "pooling_mode": mode}
    (source / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return stages(source, folder)[2]


def packed_matrices(encoder: Any) -> set[bytes]:
    """The matrices of a packed model's linears and of its table of words, without BERT's pooler."""
    found = set()
    for name, module in encoder[0].named_modules():
        if isinstance(module, PackedLinear) and "pooler" not in name:
            found.add((module.codes().numpy() * module.weight_scale.float().numpy() + 0.0).tobytes())
        elif isinstance(module, PackedEmbedding) and "word" in name:
            found.add((module.weight.numpy() * module.weight_scale.float().numpy() + 0.0).tobytes())
    return found


def test_the_folder_and_what_the_file_says(made: Path, packed: Path) -> None:
    names = {path.name for path in made.iterdir()}
    assert names == {"packed.gguf", "export.json", "README.md", "LICENSE-ternarize"}
    fields, tensors = read_gguf(made / "packed.gguf")
    assert fields["general.architecture"] == "bert"
    assert fields["bert.pooling_type"] == 1
    assert fields["bert.attention.causal"] is False
    assert fields["bert.context_length"] == 64
    assert fields["tokenizer.ggml.model"] == "bert"
    assert fields["tokenizer.ggml.tokens"][:6] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "▁the"]
    assert (fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.seperator_token_id"]) == (2, 3)
    facts = json.loads((made / "export.json").read_text())
    assert facts["linears"] == {"Q4_0": 12}
    assert facts["check"] == {"unchecked": "--no-check"}
    assert "llama-server -m packed.gguf --embeddings" in (made / "README.md").read_text()
    assert str(packed).encode() not in (made / "packed.gguf").read_bytes()
    assert {kind for name, (kind, _) in tensors.items() if "norm" in name or "bias" in name} == {"F32"}
    assert tensors["token_types.weight"][0] == "F32"
    assert tensors["position_embd.weight"][0] == "Q8_0"


def test_weights_are_exact(made: Path, packed: Path) -> None:
    found = {(values + 0.0).tobytes() for _, values in read_gguf(made / "packed.gguf")[1].values()}
    expected = packed_matrices(load(packed, backend="reference"))
    assert len(expected) == 12 + 1
    assert expected <= found


def test_bytes_are_deterministic(made: Path, packed: Path, tmp_path: Path) -> None:
    export(packed, tmp_path / "again", to="gguf", options=UNCHECKED)
    assert (tmp_path / "again" / "packed.gguf").read_bytes() == (made / "packed.gguf").read_bytes()
    export(packed, tmp_path / "again", to="gguf", options=UNCHECKED, force=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "kinds"),
    [
        (Scheme(granularity="tensor"), {"TQ2_0"}),
        (Scheme(granularity="group", group_size=64), {"Q4_0", "Q2_0"}),
        (Scheme(levels="int4", table_bits=4), {"Q4_0"}),
    ],
)
def test_schemes_of_a_width_of_256(scheme: Scheme, kinds: set[str], tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source", hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    packed = stages(source, tmp_path, scheme)[2]
    facts = export(packed, tmp_path / "o", to="gguf", options=UNCHECKED).facts
    assert {*facts["linears"]} <= kinds
    found = {(values + 0.0).tobytes() for _, values in read_gguf(tmp_path / "o" / "packed.gguf")[1].values()}
    encoder: Any = load(packed, backend="reference")
    from ternarize_cli.arithmetic.ternary import dequantize

    linears = [m for n, m in encoder[0].named_modules() if isinstance(m, PackedLinear) and "pooler" not in n]
    assert all((dequantize(m.codes(), m.weight_scale).numpy() + 0.0).tobytes() in found for m in linears)


@runs
@pytest.mark.slow
@pytest.mark.parametrize(("name", "tokenizer", "mode", "architecture"), FAMILIES)
def test_llama_cpp_gives_the_packed_models_tokens_and_vectors(
    name: str, tokenizer: Callable[[Path], int], mode: str, architecture: str, tmp_path: Path
) -> None:
    from ternarize_cli.export.gguf_runtime import LlamaModel
    from ternarize_cli.export.nearness import Tokenizing

    packed = tiny(name, tokenizer, mode, tmp_path)
    facts = export(packed, tmp_path / "o", to="gguf", options=UNCHECKED).facts
    assert (facts["architecture"], facts["pooling"]) == (architecture, mode)
    model, encoder = LlamaModel(tmp_path / "o" / "packed.gguf"), load(packed, backend="reference")
    assert isinstance(model, Tokenizing)
    for text in TEXTS:
        assert model.tokenize(text) == encoder.tokenizer(text)["input_ids"]
    vectors = model(encoder.preprocess(TEXTS))["sentence_embedding"].numpy()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert (vectors * encoder.encode(TEXTS)).sum(1).min() > 0.998


@runs
@pytest.mark.slow
def test_the_check_compares_vectors_and_ids(packed: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join([*TEXTS, "a [SEP] b", "the cat " * 60]))
    gate = ("--texts", texts, "--min-cosine", "1", "--bits", "4")
    result = run("export", packed, "--to", "gguf", "-o", tmp_path / "o", *gate, "--json")
    assert result.exit_code == GateMissedError.exit_code
    found = json.loads(result.stdout)["check"]
    assert found["runtime"].startswith("llama-cpp-python ")
    assert (found["count"], found["tokens_differ"]) == (len(TEXTS) + 2, 0)
    assert 0.99 < found["lowest_cosine"] <= found["mean_cosine"] < 1
    assert list(found["milliseconds"]) == ["1x16", "8x64"]
    assert json.loads((tmp_path / "o" / "export.json").read_text())["check"] == found


@runs
@pytest.mark.slow
def test_other_tokens_are_counted_and_said(tmp_path: Path) -> None:
    packed = tiny("XLMRobertaModel", save_unigram_tokenizer, "mean", tmp_path)
    texts, said = tmp_path / "texts.txt", list[str]()
    texts.write_text("\n".join([*TEXTS, "cat\tdog"]))  # a tab is a space to tokenizers alone
    options = ExportOptions(texts=str(texts))
    found = export(packed, tmp_path / "o", to="gguf", options=options, say=said.append).facts["check"]
    assert (found["tokens_differ"], found["count"]) == (1, len(TEXTS) + 1)
    assert f"warning: llama-cpp-python makes other tokens of 1 of {len(TEXTS) + 1} texts" in said
    assert "makes other tokens of 1 of these texts" in (tmp_path / "o" / "README.md").read_text()


@runs
def test_a_file_that_llama_cpp_can_not_read_raises(made: Path, tmp_path: Path) -> None:
    from ternarize_cli.export.gguf_runtime import LlamaModel

    content = (made / "packed.gguf").read_bytes()
    for name, damaged in (("cut", content[: len(content) // 2]), ("empty", b""), ("other", b"GGUF" + bytes(64))):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(RuntimeError, match=r"\w"):
            LlamaModel(tmp_path / name)


def test_a_damaged_model_is_refused_before_anything_is_written(packed: Path, tmp_path: Path) -> None:
    damage(packed, tmp_path / "damaged")
    with pytest.raises(FormatError, match="is not what was packed"):
        export(tmp_path / "damaged", tmp_path / "o", to="gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def test_without_the_libraries_that_is_said(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ternarize_cli.export import check, gguf

    monkeypatch.setattr(check, "find_spec", lambda name: None)
    said: list[str] = []
    facts = export(packed, tmp_path / "o", to="gguf", say=said.append).facts
    assert facts["check"] == {"unchecked": "llama-cpp-python is not installed"}
    assert "llama-cpp-python is not installed, so the export is unchecked: pip install llama-cpp-python" in said
    monkeypatch.setattr(gguf, "find_spec", lambda name: None if name == "llama_cpp" else find_spec(name))
    with pytest.raises(UnavailableError, match="--min-cosine: llama-cpp-python is not installed"):
        export(packed, tmp_path / "p", to="gguf", options=ExportOptions(min_cosine=0.5))
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="needs the package gguf"):
        export(packed, tmp_path / "p", to="gguf")
    with pytest.raises(InputError, match="--bits 3"):
        export(packed, tmp_path / "p", to="gguf", options=ExportOptions(bits=3))
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("name", "changes", "mode", "why"),
    [
        ("MPNetModel", {}, "mean", "it is a 'mpnet', and --to gguf writes bert, camembert"),
        ("BertModel", {"hidden_act": "relu"}, "mean", "its config has hidden_act 'relu', and llama.cpp knows gelu"),
        ("BertModel", {}, "max", "it pools by max, and llama.cpp by mean, cls, lasttoken"),
        ("ModernBertModel", {"mlp_bias": True}, "mean", "its config has mlp_bias True"),
        ("Gemma3TextModel", {"query_pre_attn_scalar": 32}, "mean", "its config has query_pre_attn_scalar 32"),
        ("Gemma3TextModel", {"use_bidirectional_attention": False}, "mean", "use_bidirectional_attention False"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    name: str, changes: dict[str, Any], mode: str, why: str, tmp_path: Path
) -> None:
    packed = tiny(name, save_byte_tokenizer, mode, tmp_path, **changes)
    with pytest.raises(UnavailableError, match=f"llama.cpp can't run this model: .*{why}"):
        export(packed, tmp_path / "o", to="gguf", options=UNCHECKED)
    assert not (tmp_path / "o").exists()


def test_modules_and_images_that_llama_cpp_does_not_know_are_refused(with_dense: Path, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="it has 1 module Dense behind pooling"):
        export(with_dense, tmp_path / "o", to="gguf", options=UNCHECKED)
    clip = stages(save_tiny_clip(tmp_path / "clip"), tmp_path)[2]
    with pytest.raises(UnavailableError, match="it reads images"):
        export(clip, tmp_path / "o", to="gguf", options=UNCHECKED)
