"""The format onnx: the folder's layout, exact weights, vectors in ONNX Runtime, its check, and what is refused."""

import json
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.damage import damage
from support.families import TEXT_FAMILIES, Family, save_text, stages
from support.heads import save_headed
from support.models import save_modules, save_tiny_bert, save_tiny_clip
from support.packed_matrices import packed_matrices
from ternarize_cli import load
from ternarize_cli.errors import CheckpointError, FormatError, GateMissedError, InputError, UnavailableError
from ternarize_cli.export import nearness
from ternarize_cli.export.options import ExportOptions
from ternarize_cli.export.session import export
from ternarize_cli.format.scheme import Scheme

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="the extra `rivals` is not installed"
)
TEXTS = ["the cat", "dog house tree " * 15, "red green small cat in a tree by the river"]
UNCHECKED = ExportOptions(check=False)


@pytest.fixture(scope="module")
def made(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of the tiny BERT; tests must not write into it."""
    output = tmp_path_factory.mktemp("onnx") / "made"
    export(packed, output, to="onnx")
    return output


def session(folder: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(folder / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])


def outputs(folder: Path, features: dict[str, Any]) -> dict[str, np.ndarray]:
    """Runs features of sentence-transformers in ONNX Runtime."""
    run = session(folder)
    ids = features["input_ids"].numpy()
    fed = {e.name: features[e.name].numpy() if e.name in features else np.zeros_like(ids) for e in run.get_inputs()}
    return dict(zip([entry.name for entry in run.get_outputs()], run.run(None, fed), strict=True))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def dense(folder: Path) -> Counter[bytes]:
    """The float32 matrices of an ONNX file that its steps read in codes, as the operators' definitions give them."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(folder / "onnx" / "model.onnx").graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found: Counter[bytes] = Counter()
    for node in graph.node:
        sizes = {entry.name: entry.i for entry in node.attribute}
        if node.op_type == "MatMulNBits":
            codes, scales = stored[node.input[1]], stored[node.input[2]]
            bits = sizes["bits"]
            digits = (codes[..., None] >> np.arange(0, 8, bits, dtype=np.uint8)) & (2**bits - 1)
            digits = digits.reshape(*scales.shape, -1).astype(np.float32) - 2 ** (bits - 1)
            matrix = (digits * scales[..., None]).reshape(sizes["N"], -1)[:, : sizes["K"]]
        elif node.op_type == "GatherBlockQuantized":
            codes, scales = stored[node.input[0]].astype(np.float32), stored[node.input[2]]
            matrix = codes * scales.repeat(32, axis=1)[:, : codes.shape[1]]
        elif node.op_type == "Gather" and stored.get(node.input[0], np.zeros(0)).dtype == np.int8:
            matrix = stored[node.input[0]] * stored[node.input[0].replace(".codes", ".scales")].astype(np.float32)
        else:
            continue
        assert matrix.dtype == np.float32
        found[np.ascontiguousarray(matrix + 0.0).tobytes()] += 1
    return found


def test_the_folder_is_laid_out_as_libraries_look_for_it(made: Path, packed: Path) -> None:
    import onnx

    names = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    assert names >= {"onnx/model.onnx", "config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json"}
    assert names >= {"export.json", "README.md", "LICENSE-ternarize"}
    assert not any(".safetensors" in name or name.endswith("_data") for name in names)
    assert (made / "2_Normalize").is_dir()
    assert "quantization_config" not in json.loads((made / "config.json").read_text())
    settings = made / "config_sentence_transformers.json"
    assert not settings.is_file() or "requirements" not in json.loads(settings.read_text())
    model = onnx.load(made / "onnx" / "model.onnx")
    onnx.checker.check_model(model)
    assert [value.name for value in model.graph.input] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [size.dim_param for size in model.graph.input[0].type.tensor_type.shape.dim] == [
        "batch_size",
        "sequence_length",
    ]
    assert [value.name for value in model.graph.output] == ["last_hidden_state"]
    assert str(packed).encode() not in (made / "onnx" / "model.onnx").read_bytes()
    assert b"site-packages" not in (made / "onnx" / "model.onnx").read_bytes()


def test_hidden_states_are_the_packed_models(made: Path, packed: Path) -> None:
    encoder: Any = load(packed, backend="reference")
    features = encoder.preprocess(TEXTS)
    hidden = outputs(made, features)["last_hidden_state"]
    expected = encoder[0](dict(features))["token_embeddings"].detach().numpy()
    assert hidden.shape == expected.shape
    seen = features["attention_mask"].numpy().astype(bool)
    assert cosines(hidden[seen], expected[seen]).min() > 0.98


def test_the_check_is_stored(made: Path) -> None:
    facts = json.loads((made / "export.json").read_text())
    found = facts["check"]
    assert facts["bits"] == 2
    assert found["count"] == len(nearness.sentences()) == len(set(nearness.sentences())) == 100
    assert found["runtime"].startswith("onnxruntime ")
    assert 0.98 < found["lowest_cosine"] < found["mean_cosine"] <= 1
    assert list(found["milliseconds"]) == ["1x16", "8x64"]  # the tiny model reads 64 tokens
    assert all(set(times) >= {"export", "onnx-int8"} for times in found["milliseconds"].values())
    assert f"{found['mean_cosine']:.4f}" in (made / "README.md").read_text()


def test_weights_are_exact(made: Path, packed: Path) -> None:
    found = dense(made)
    assert found == packed_matrices(load(packed, backend="reference")[0])
    assert len(found) >= 2 * 6 + 3


@pytest.mark.slow
def test_without_onnxruntime_the_same_bytes_stand_unchecked(
    made: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ternarize_cli.engines import exports
    from ternarize_cli.export import check, graph_folder

    for module in (exports, check, graph_folder):
        monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    said: list[str] = []
    facts = export(packed, tmp_path / "o", to="onnx", say=said.append).facts
    assert facts["check"] == {"unchecked": "onnxruntime is not installed"}
    assert json.loads((tmp_path / "o" / "export.json").read_text()) == facts
    assert "onnxruntime is not installed, so the export is unchecked: pip install onnxruntime" in said
    assert "It was not compared with the packed model" in (tmp_path / "o" / "README.md").read_text()
    for path in made.rglob("*"):
        if path.is_file() and path.name not in ("export.json", "README.md"):
            assert path.read_bytes() == (tmp_path / "o" / path.relative_to(made)).read_bytes(), path
    with pytest.raises(UnavailableError, match="--to onnx needs onnxruntime"):
        export(packed, tmp_path / "p", to="onnx", options=ExportOptions(min_cosine=0.5))


@pytest.mark.slow
def test_pooling_and_dense_in_the_graph_with_4_bits(with_dense: Path, tmp_path: Path) -> None:
    from sentence_transformers.base.modules import Dense

    found = export(with_dense, tmp_path / "o", to="onnx", options=ExportOptions(pooled=True, bits=4, check=False)).facts
    assert found["outputs"] == ["last_hidden_state", "sentence_embedding"]
    encoder: Any = load(with_dense, backend="reference")
    vectors = outputs(tmp_path / "o", encoder.preprocess(TEXTS))["sentence_embedding"]
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert cosines(vectors, encoder.encode(TEXTS)).min() > 0.98
    assert dense(tmp_path / "o") == packed_matrices(encoder)
    (where,) = (path.parent for path in (tmp_path / "o").glob("*_Dense/config.json"))
    assert "quantization_config" not in (where / "config.json").read_text()
    linear = encoder[2].linear
    opened = Dense.load(str(where)).linear
    assert np.array_equal(opened.weight.detach(), linear.codes() * linear.weight_scale.float())


def text_family(name: str) -> Family:
    return next(family for family in TEXT_FAMILIES if family[0] == name)


@pytest.mark.usefixtures("without_rival")
@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), [("MPNetModel", "max"), ("Qwen3Model", "lasttoken")])
def test_other_families_and_poolings(name: str, mode: str, tmp_path: Path) -> None:
    source = save_text(text_family(name), tmp_path / "source")
    save_modules(source, 32)
    (source / "1_Pooling" / "config.json").write_text(json.dumps({"embedding_dimension": 32, "pooling_mode": mode}))
    packed = stages(source, tmp_path, Scheme(table_bits=4))[2]
    facts = export(packed, tmp_path / "o", to="onnx", options=ExportOptions(pooled=True)).facts
    assert facts["inputs"] == ["input_ids", "attention_mask"]
    assert facts["check"]["mean_cosine"] > 0.97
    assert dense(tmp_path / "o") == packed_matrices(load(packed, backend="reference")[0])


@pytest.mark.usefixtures("without_rival")
@pytest.mark.slow
def test_groups_and_tables_of_4_bits(tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source", hidden_size=80, intermediate_size=96)
    packed = stages(source, tmp_path, Scheme(granularity="group", group_size=16, table_bits=4))[2]
    with pytest.raises(InputError, match="has a scale for 16 inputs, and MatMulNBits has one for 32 or more"):
        export(packed, tmp_path / "o", to="onnx", options=UNCHECKED)
    source = save_tiny_bert(tmp_path / "wide" / "source", hidden_size=96)
    packed = stages(source, tmp_path / "wide", Scheme(granularity="group", group_size=32, table_bits=4))[2]
    assert export(packed, tmp_path / "o", to="onnx").facts["check"]["mean_cosine"] > 0.98
    assert dense(tmp_path / "o") == packed_matrices(load(packed, backend="reference")[0])


@pytest.mark.usefixtures("without_rival")
@pytest.mark.slow
def test_an_encoder_of_images(tiny_vit: Path, tmp_path: Path) -> None:
    packed = stages(tiny_vit, tmp_path)[2]
    facts = export(packed, tmp_path / "o", to="onnx").facts
    assert (facts["inputs"], facts["outputs"]) == (["pixel_values"], ["last_hidden_state"])
    assert facts["check"]["inputs"] == "random images"
    assert facts["check"]["mean_cosine"] > 0.98
    assert (tmp_path / "o" / "preprocessor_config.json").is_file()


@pytest.mark.usefixtures("without_rival")
@pytest.mark.slow
def test_a_missed_gate_ends_with_3_and_says_what_was_measured(
    tiny_bert: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    scheme = Scheme(levels="int4", activation_bits=16)  # ONNX Runtime rounds activations all the same
    packed = stages(tiny_bert, tmp_path, scheme)[2]
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS))
    output = tmp_path / "o"
    gate = ("--bits", "4", "--texts", texts, "--min-cosine", "1")
    result = run("export", packed, "--to", "onnx", "-o", output, *gate, "--json")
    assert result.exit_code == GateMissedError.exit_code
    found = json.loads(result.stdout)["check"]
    assert found["count"] == len(TEXTS)
    assert f"the mean cosine to the packed model is {found['mean_cosine']:.4f}" in result.stderr
    assert json.loads((output / "export.json").read_text())["check"] == found
    assert dense(output) == packed_matrices(load(packed, backend="reference")[0])


def test_a_damaged_model_is_refused_before_anything_is_written(packed: Path, tmp_path: Path) -> None:
    damage(packed, tmp_path / "damaged")
    with pytest.raises(FormatError, match="is not what was packed: its sha256 differs"):
        export(tmp_path / "damaged", tmp_path / "o", to="onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (ExportOptions(bits=3), "--bits 3: products are written with codes of 2 or 4"),
        (ExportOptions(check=False, min_cosine=0.9), "--min-cosine is for the check, and --no-check leaves it out"),
        (ExportOptions(check=False, texts="a.txt"), "--texts is for the check"),
        (ExportOptions(platform="linux_x86_64"), "--platform means nothing for the format onnx"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: ExportOptions, why: str, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=why):
        export(packed, tmp_path / "o", to="onnx", options=options)
    with pytest.raises(InputError, match="--no-check means nothing for the format c"):
        export(packed, tmp_path / "o", to="c", options=UNCHECKED)
    assert not (tmp_path / "o").exists()


def test_models_that_are_no_encoders_of_one_kind_are_refused(tmp_path: Path) -> None:
    reranker = stages(save_headed(tmp_path / "r" / "source"), tmp_path / "r")[2]
    (tmp_path / "c").mkdir()
    with pytest.raises(CheckpointError, match="is a cross-encoder"):
        export(reranker, tmp_path / "o", to="onnx")
    clip = stages(save_tiny_clip(tmp_path / "clip"), tmp_path / "c")[2]
    with pytest.raises(InputError, match="reads texts and images, and --to onnx writes models of one of them"):
        export(clip, tmp_path / "o", to="onnx")


@pytest.mark.slow
def test_codes_that_need_4_bits_are_refused_with_2(tiny_bert: Path, tmp_path: Path) -> None:
    packed = stages(tiny_bert, tmp_path, Scheme(levels="int4"))[2]
    with pytest.raises(InputError, match="2 bits hold those from -2 to 1") as caught:
        export(packed, tmp_path / "o", to="onnx")
    assert caught.value.hint == "--bits 4"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latent", "packed"]
