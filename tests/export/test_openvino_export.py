"""The format openvino: the folder's layout, exact weights, products of codes, vectors, and what is refused."""

import json
import resource
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.families import stages
from support.models import save_tiny_bert
from support.packed_matrices import packed_matrices
from ternarize_cli import load
from ternarize_cli.errors import InputError, OutputError
from ternarize_cli.export.openvino import OpenVino
from ternarize_cli.export.options import ExportOptions
from ternarize_cli.export.session import export
from ternarize_cli.format.scheme import Scheme
from ternarize_cli.measuring.child import Child

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxscript", "openvino"))), reason="the extra `rivals` is not installed"
)
TEXTS = ["the cat", "dog house tree " * 15, "red green small cat in a tree by the river"]
UNCHECKED = ExportOptions(check=False)
_LAYERS = """
import collections, json, os, sys
os.environ["CI"] = "true"
import openvino
# With AMX the plugin would multiply small products in bfloat16.
model = openvino.Core().compile_model(sys.argv[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
nodes = model.get_runtime_model().get_ordered_ops()
kinds = [(n.get_rt_info()["layerType"].astype(str), n.input(1).get_element_type().get_type_name())
         for n in nodes if len(n.inputs()) > 1]
print(json.dumps(collections.Counter(kind for layer, kind in kinds if layer == "FullyConnected")))
"""


@pytest.fixture(scope="module")
def made(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of the tiny BERT; tests must not write into it."""
    output = tmp_path_factory.mktemp("openvino") / "made"
    export(packed, output, to="openvino", options=UNCHECKED)
    return output


class Graph:
    """An IR, whose constants and the steps between them it computes as OpenVINO's documentation defines them."""

    def __init__(self, folder: Path) -> None:
        root = ET.parse(folder / "openvino" / "openvino_model.xml").getroot()
        self.content = (folder / "openvino" / "openvino_model.bin").read_bytes()
        self.layers = {layer.attrib["id"]: layer for layer in root.iter("layer")}
        self.sources: dict[str, list[str]] = {}
        for edge in sorted(root.iter("edge"), key=lambda edge: int(edge.attrib["to-port"])):
            self.sources.setdefault(edge.attrib["to-layer"], []).append(edge.attrib["from-layer"])

    def of_type(self, name: str) -> list[str]:
        return [key for key, layer in self.layers.items() if layer.attrib["type"] == name]

    def value(self, key: str) -> np.ndarray | None:
        """Computes a value; None if it depends on inputs."""
        layer = self.layers[key]
        if layer.attrib["type"] == "Const":
            return self._constant(layer.find("data").attrib)  # type: ignore[union-attr]
        given = [self.value(source) for source in self.sources.get(key, [])]
        if not given or any(entry is None for entry in given):
            return None
        a, b = (given + given)[:2]
        steps = {"Convert": lambda: a.astype(np.float32), "Reshape": lambda: a.reshape(_sizes(a, b))}  # type: ignore[union-attr]
        steps |= {"Subtract": lambda: a - b, "Multiply": lambda: a * b}  # type: ignore[operator]
        return steps[layer.attrib["type"]]() if layer.attrib["type"] in steps else None

    def _constant(self, facts: dict[str, str]) -> np.ndarray:
        shape = [int(size) for size in facts["shape"].split(",") if size]
        first, kind = int(facts["offset"]), facts["element_type"]
        content = self.content[first : first + int(facts["size"])]
        if kind in ("u2", "u4", "i4"):
            bits = int(kind[1])
            digits = (np.frombuffer(content, np.uint8)[:, None] >> np.arange(0, 8, bits)) & (2**bits - 1)
            codes = digits.ravel()[: int(np.prod(shape))].reshape(shape)
            return codes if kind[0] == "u" else (codes ^ 8) - 8
        names = {
            "boolean": "bool",
            "i64": "int64",
            "i32": "int32",
            "i8": "int8",
            "u8": "uint8",
            "f32": "float32",
            "f16": "float16",
        }
        return np.frombuffer(content, names.get(kind, f"int{kind[1:]}")).reshape(shape)


def _sizes(a: Any, wanted: Any) -> list[int]:
    """The sizes that Reshape gives, of which 0 stands for the size that is there."""
    return [a.shape[i] if size == 0 else int(size) for i, size in enumerate(wanted)]


def matrices(folder: Path) -> Counter[bytes]:
    """The float32 matrices that products and tables of codes in an IR stand for."""
    graph = Graph(folder)
    found: Counter[bytes] = Counter()
    for key in graph.of_type("MatMul"):
        value = graph.value(graph.sources[key][1])
        if value is not None and value.ndim == 2:
            found[(value.astype(np.float32) + 0.0).tobytes()] += 1
    tables = {}
    for key in graph.of_type("Gather"):
        name, *_ = graph.layers[graph.sources[key][0]].attrib["name"].rsplit(".", 1)
        value = graph.value(graph.sources[key][0])
        if value is not None and value.ndim == 2:
            tables.setdefault(name, []).append(value.astype(np.float32))
    for parts in tables.values():
        found[(np.prod(np.broadcast_arrays(*parts), axis=0) + 0.0).tobytes()] += 1
    return found


def test_the_folder_is_laid_out_as_libraries_look_for_it(made: Path) -> None:
    names = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    assert names >= {"openvino/openvino_model.xml", "openvino/openvino_model.bin", "config.json", "tokenizer.json"}
    assert names >= {"modules.json", "1_Pooling/config.json", "export.json", "README.md", "LICENSE-ternarize"}
    assert not any(".safetensors" in name or ".onnx" in name for name in names)
    graph = Graph(made)
    inputs = [graph.layers[key].attrib["name"] for key in graph.of_type("Parameter")]
    assert inputs == ["input_ids", "attention_mask", "token_type_ids"]
    described = (made / "openvino" / "openvino_model.xml").read_text()
    assert 'names="last_hidden_state"' in described
    assert not any(word in described for word in ("site-packages", str(made.parent), "/tmp"))
    assert 'backend="openvino"' in (made / "README.md").read_text()


@pytest.mark.slow
def test_the_check_is_stored(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "openvino", raising=False)  # other tests import it here
    export(packed, tmp_path / "o", to="openvino")
    facts = json.loads((tmp_path / "o" / "export.json").read_text())
    assert facts["check"]["runtime"].startswith("openvino ")
    assert 0.98 < facts["check"]["lowest_cosine"] < facts["check"]["mean_cosine"] <= 1
    times = facts["check"]["milliseconds"]["1x16"]
    assert set(times) >= {"export", *(("openvino-int8",) if find_spec("nncf") else ())}
    assert "openvino" not in sys.modules  # it runs in processes of its own


def test_weights_are_exact(made: Path, packed: Path) -> None:
    expected = packed_matrices(load(packed, backend="reference")[0])
    assert matrices(made) == expected
    assert len(expected) >= 2 * 6 + 3


@pytest.mark.slow
def test_the_plugin_multiplies_codes_of_2_bits(made: Path) -> None:
    path = made / "openvino" / "openvino_model.xml"
    ended = subprocess.run([sys.executable, "-c", _LAYERS, path], capture_output=True, text=True, check=True)
    products = json.loads((made / "export.json").read_text())["products"]
    assert json.loads(ended.stdout) == {"u2": products}


@pytest.mark.slow
def test_the_same_bytes_are_written_again(made: Path, packed: Path, tmp_path: Path) -> None:
    export(packed, tmp_path / "o", to="openvino", options=UNCHECKED)
    for path in made.rglob("*"):
        if path.is_file() and path.name not in ("export.json", "README.md"):
            assert path.read_bytes() == (tmp_path / "o" / path.relative_to(made)).read_bytes(), path


def constants(folder: Path) -> Counter[str]:
    """How many constants of each type an IR has."""
    graph = Graph(folder)
    facts = [graph.layers[key].find("data") for key in graph.of_type("Const")]
    return Counter(entry.attrib["element_type"] for entry in facts if entry is not None)


@pytest.mark.usefixtures("without_rival")
@pytest.mark.slow
def test_pooling_groups_tables_of_4_bits_and_products_of_4(tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source", hidden_size=64)
    packed = stages(source, tmp_path, Scheme(granularity="group", group_size=32, table_bits=4))[2]
    facts = export(packed, tmp_path / "o", to="openvino", options=ExportOptions(pooled=True, bits=4)).facts
    assert facts["outputs"] == ["last_hidden_state", "sentence_embedding"]
    assert facts["check"]["mean_cosine"] > 0.98
    found = constants(tmp_path / "o")
    assert (found["i4"], found["u4"], found["u2"]) == (1, 2 * facts["products"], 0)  # codes and zero points
    assert matrices(tmp_path / "o") == packed_matrices(load(packed, backend="reference")[0])


@pytest.mark.usefixtures("without_rival")
@pytest.mark.slow
def test_widths_that_do_not_fill_bytes(tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source", hidden_size=36, intermediate_size=37)
    packed = stages(source, tmp_path, Scheme(activation_bits=16))[2]
    found = export(packed, tmp_path / "o", to="openvino").facts["check"]
    assert found["lowest_cosine"] > 0.9999
    assert constants(tmp_path / "o")["u8"] == 2 * 2
    assert matrices(tmp_path / "o") == packed_matrices(load(packed, backend="reference")[0])


def test_a_table_that_openvino_has_no_look_up_for_is_refused(tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source", hidden_size=40)
    packed = stages(source, tmp_path, Scheme(table_bits=4))[2]
    with pytest.raises(InputError, match="a table of int4 has 40 columns, and OpenVINO looks up multiples of 32"):
        export(packed, tmp_path / "o", to="openvino", options=UNCHECKED)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latent", "packed", "source"]


@pytest.mark.usefixtures("without_rival")
@pytest.mark.slow
def test_an_encoder_of_images(tiny_vit: Path, tmp_path: Path) -> None:
    packed = stages(tiny_vit, tmp_path)[2]
    facts = export(packed, tmp_path / "o", to="openvino").facts
    assert (facts["inputs"], facts["outputs"]) == (["pixel_values"], ["last_hidden_state"])
    assert facts["check"]["mean_cosine"] > 0.98


def test_what_openvino_cannot_write_leaves_nothing(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: OpenVino, model: Any, folder: Path) -> None:
        (folder / "openvino").write_bytes(b"")  # a file where the folder should be
        place(self, model, folder)

    place = OpenVino.place
    monkeypatch.setattr(OpenVino, "place", fails)
    with pytest.raises(OutputError):
        export(packed, tmp_path / "o", to="openvino", options=UNCHECKED)
    assert not any(tmp_path.iterdir())


def test_a_file_that_openvino_cannot_write_is_told_with_the_systems_reason(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limited(self: Child, *arguments: Any) -> Any:
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        return call(self, *arguments)

    call = Child.call
    monkeypatch.setattr(Child, "call", limited)
    with pytest.raises(InputError, match="File too large") as raised:
        export(packed, tmp_path / "o", to="openvino", options=UNCHECKED)
    assert "disk" not in f"{raised.value} {raised.value.hint}"
    assert not any(tmp_path.iterdir())
