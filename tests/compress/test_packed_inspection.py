"""`inspect` of a packed model says the same without PyTorch, and leaves to it what it would refuse."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.families import DECODER, SMALL, TEXT, Family, save_text, stages
from support.fused_families import FUSED, packed
from support.heads import save_headed
from support.models import add_dense, make_version_1, save_modules, save_tiny_bert, save_tiny_clip
from support.packed_models import merge, variant
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.inspect import inspect
from ternarize_cli.compress.options import ConvertOptions
from ternarize_cli.compress.pack import pack
from ternarize_cli.compress.packed_inspection import inspect_packed
from ternarize_cli.compress.skeleton_inspection import inspect_skeleton
from ternarize_cli.errors import CheckpointError, FormatError, TernarizeError, UnavailableError
from ternarize_cli.format.scheme import Scheme

TOKENS = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3, "mask_token_id": 4}
MORE: list[Family] = [
    ("CamembertModel", "CamembertConfig", SMALL | TEXT),
    ("RobertaModel", "RobertaConfig", SMALL | TEXT | {"type_vocab_size": 1, "num_hidden_layers": 11}),
    ("Qwen3Model", "Qwen3Config", DECODER | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
]
FAMILIES = [
    (name, config, settings if "image_size" in settings else settings | TOKENS) for name, config, settings in FUSED
]


def same(folder: Path) -> None:
    """Checks that both ways see the same model, field by field."""
    ours, theirs = vars(inspect_packed(folder)), vars(inspect_skeleton(folder))
    for mine, other in zip(ours.pop("modules"), theirs.pop("modules"), strict=True):
        kept = {"mean_abs": pytest.approx(other.mean_abs, rel=1e-6)} if other.mean_abs else {}
        assert vars(mine) == {**vars(other), **kept}
    assert ours == theirs


def by_skeleton(folder: Path) -> None:
    """Checks that a model is left to its skeleton, by which it is shown."""
    with pytest.raises(UnavailableError):
        inspect_packed(folder)
    assert inspect(folder) == inspect_skeleton(folder)


def outcome(way: Callable[[Path], Any], folder: Path) -> object:
    try:
        return way(folder)
    except TernarizeError as e:
        return type(e), str(e)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    return stages(save_tiny_bert(folder / "source"), folder)[2]


@pytest.mark.parametrize("family", [*FAMILIES, *MORE], ids=lambda family: family[0])
def test_both_ways_see_the_same_model(family: Family, tmp_path: Path) -> None:
    folder = packed(family, tmp_path)
    same(folder)


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_a_model_of_two_towers(kind: str, tmp_path: Path) -> None:
    same(stages(save_tiny_clip(tmp_path / "source", kind), tmp_path)[2])


@pytest.mark.parametrize(
    "scheme",
    [Scheme(table_bits=4), Scheme(table_bits=16), Scheme(table_bits=32), Scheme(granularity="tensor")],
    ids=str,
)
@pytest.mark.parametrize("name", ["MPNetModel", "T5EncoderModel"])
def test_tables_and_scales_of_every_kind(name: str, scheme: Scheme, tmp_path: Path) -> None:
    source = save_text(next(family for family in FAMILIES if family[0] == name), tmp_path / "source")
    save_modules(source, 32)
    same(stages(source, tmp_path, scheme)[2])


@pytest.mark.parametrize(
    "scheme",
    [Scheme(levels="int4"), Scheme(granularity="group", group_size=8), Scheme(activation_bits=16)],
    ids=str,
)
def test_codes_and_activations_of_every_kind(scheme: Scheme, tmp_path: Path) -> None:
    same(stages(save_tiny_bert(tmp_path / "source"), tmp_path, scheme)[2])


def test_the_other_codec_of_ternary_codes(tmp_path: Path) -> None:
    convert(save_tiny_bert(tmp_path / "source"), tmp_path / "latent", None, ConvertOptions(check=False))
    pack(tmp_path / "latent", tmp_path / "packed", codec="base3", check=False)
    same(tmp_path / "packed")


@pytest.mark.parametrize("keep", [False, True], ids=["packed", "kept"])
def test_dense_modules(keep: bool, tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source")
    add_dense(source, out_features=40)
    add_dense(source, in_features=40, out_features=24, bias=False, activation_function=None)
    folder = stages(source, tmp_path, keep_dense=keep)[2]
    (by_skeleton if keep else same)(folder)
    assert [m.name for m in inspect(folder).modules[-2:]] == ["2_Dense.linear", "3_Dense.linear"]


def test_linears_that_stay_as_they_are(tmp_path: Path) -> None:
    same(stages(save_tiny_bert(tmp_path / "source"), tmp_path, skip=["encoder.layer.1.output.dense"])[2])


def test_tables_that_stay_as_they_are(tmp_path: Path) -> None:
    folder = stages(save_tiny_bert(tmp_path / "source"), tmp_path, skip=["embeddings.position_embeddings"])[2]
    same(folder)
    assert [m.kind for m in inspect(folder).modules[:3]] == ["table", "dense", "table"]


def test_a_file_with_a_prefix_and_old_names_of_norms_and_without_a_pooler(tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source")
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        tensors |= {} if "pooler" in name else {f"bert.{old}": tensor}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    folder = stages(source, tmp_path)[2]
    same(folder)
    assert inspect(folder).modules[-1].name == "encoder.layer.1.output.dense"


@pytest.mark.slow
def test_biases_that_calibration_added(corpus: Path, tmp_path: Path) -> None:
    from ternarize_cli.compress.options import Calibration

    source = save_text(next(f for f in FAMILIES if f[0] == "NomicBertModel"), tmp_path / "source")
    save_modules(source, 32)
    convert(source, tmp_path / "latent", None, ConvertOptions(check=False), calibration=Calibration((corpus,), 32))
    pack(tmp_path / "latent", tmp_path / "packed", check=False)
    same(tmp_path / "packed")


@pytest.mark.parametrize(
    ("task", "labels"), [("SequenceClassification", 1), ("SequenceClassification", 3), ("MaskedLM", 1)]
)
def test_models_with_heads(task: str, labels: int, tmp_path: Path) -> None:
    same(stages(save_headed(tmp_path / "source", "Bert", task, labels=labels), tmp_path)[2])


def test_other_stages_versions_and_files_are_left_to_the_skeleton(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError):
        inspect_packed(bert.parent / "source")
    by_skeleton(bert.parent / "latent")
    shutil.copytree(bert, tmp_path / "old")
    by_skeleton(make_version_1(tmp_path / "old"))
    by_skeleton(variant(bert, tmp_path / "unknown", lambda f: merge(f / "config.json", a_key_of_tomorrow=1)))


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 1},
        {"hidden_size": 64},
        {"vocab_size": 3},
        {"type_vocab_size": 3},
        {"max_position_embeddings": 7},
        {"num_attention_heads": 3},
        {"num_attention_heads": 64},
        {"intermediate_size": "many"},
        {"hidden_act": "no_activation"},
        {"hidden_dropout_prob": 7.0},
        {"hidden_dropout_prob": "x"},
        {"pad_token_id": 10**6},
        {"is_decoder": True, "add_cross_attention": True},
        {"model_type": "no_model"},
        {"model_type": ["bert"]},
        {"auto_map": {"AutoModel": "x--modeling.Own"}, "architectures": ["Own"]},
        {"id2label": {"a": "b"}},
    ],
    ids=str,
)
def test_a_forged_config_is_refused_in_the_words_of_the_skeleton(
    values: dict[str, Any], bert: Path, tmp_path: Path
) -> None:
    folder = variant(bert, tmp_path / "forged", lambda f: merge(f / "config.json", **values))
    with pytest.raises(CheckpointError) as theirs:
        inspect_skeleton(folder)
    with pytest.raises(CheckpointError) as ours:
        inspect(folder)
    assert str(ours.value) == str(theirs.value)


QUERY, WORDS = "encoder.layer.1.attention.self.query", "embeddings.word_embeddings"
FORGED: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "a bias is missing": lambda t: t.pop(f"{QUERY}.bias"),
    "a norm's shift is missing": lambda t: t.pop("embeddings.LayerNorm.bias"),
    "a scale is missing": lambda t: t.pop("pooler.dense.weight_scale"),
    "a layer has a further tensor": lambda t: t.update({f"{QUERY}.lora_A.weight": torch.zeros(2, 32)}),
    "rows are missing": lambda t: t.update({f"{QUERY}.weight": t[f"{QUERY}.weight"][:5]}),
    "a linear is of floats": lambda t: t.update({f"{QUERY}.weight": torch.ones(32, 32)}),
    "a table is of floats": lambda t: t.update({f"{WORDS}.weight": t[f"{WORDS}.weight"].float()}),
    "codes are invalid": lambda t: t[f"{QUERY}.weight"].fill_(255),
    "a scale is negative": lambda t: t[f"{QUERY}.weight_scale"].fill_(-1.0),
    "a scale is no number": lambda t: t[f"{QUERY}.weight_scale"].fill_(float("nan")),
}


@pytest.mark.parametrize("what", FORGED)
def test_forged_tensors_are_refused_in_the_words_of_the_skeleton(what: str, bert: Path, tmp_path: Path) -> None:
    def forge(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        FORGED[what](tensors)
        save_file({k: t.contiguous() for k, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})

    folder = variant(bert, tmp_path / "forged", forge)
    with pytest.raises(FormatError) as theirs:
        inspect_skeleton(folder)
    with pytest.raises(FormatError) as ours:
        inspect(folder)
    assert str(ours.value) == str(theirs.value)


def test_a_file_with_a_gap_is_refused(bert: Path, tmp_path: Path) -> None:
    def forge(folder: Path) -> None:
        with (folder / "model.safetensors").open("ab") as stream:
            stream.write(b"\0" * 8)

    with pytest.raises(CheckpointError, match="damaged or cut off"):
        inspect(variant(bert, tmp_path / "forged", forge))


@pytest.mark.parametrize("name", ["model.safetensors", "modules.json", "config.json"])
def test_a_damaged_file_is_refused_even_where_models_open_unverified(
    name: str, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERNARIZE_VERIFY", "0")
    shutil.copytree(bert, tmp_path / "damaged")
    path = tmp_path / "damaged" / name
    path.write_bytes(path.read_bytes().replace(b'"hidden_size": 32', b'"hidden_size": 64') + b" ")
    with pytest.raises(FormatError, match="is not what was packed"):
        inspect(tmp_path / "damaged")


def test_no_skeleton_is_built_where_none_is_needed(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ternarize_cli.compress.skeleton_inspection", None)
    assert inspect(bert).architecture == "BertModel"
    monkeypatch.setenv("TERNARIZE_RUNTIME", "torch")
    with pytest.raises(ImportError):
        inspect(bert)


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("--json",), ("--histogram",)])
def test_a_packed_model_is_shown_where_pytorch_can_t_be_imported(
    how: tuple[str, ...], bert: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None; "
    code += "from ternarize_cli.__main__ import main; main()"
    command = [sys.executable, "-c", code, "inspect", str(bert), *how]
    made = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "80"})
    assert (made.returncode, made.stderr) == (0, "")
    monkeypatch.setenv("TERNARIZE_RUNTIME", "torch")
    monkeypatch.setenv("COLUMNS", "80")
    wanted = run("inspect", bert, *how).stdout
    assert (json.loads(made.stdout) == json.loads(wanted)) if how == ("--json",) else (made.stdout == wanted)
