"""The wheel of a model: what is in it, and that it runs where nothing but NumPy and tokenizers is installed."""

import ast
import base64
import csv
import hashlib
import io
import json
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from email import message_from_string
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.c_model import LIBRARY
from support.families import stages
from support.models import save_tiny_bert
from support.wheels import alone, wheel_of
from ternarize_cli.errors import (
    CheckpointError,
    FormatError,
    InputError,
    OutputError,
    OutputExistsError,
    UnavailableError,
)
from ternarize_cli.export.session import export
from ternarize_cli.export.wheel import package_name
from ternarize_cli.model_folder.model_files import model_files
from ternarize_cli.runtime.encoder import Encoder

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the compiled library is not built")
TEXTS = ["the cat", "a dog house by the river"]
LICENCE = Path(__file__).parents[2] / "LICENSE"


def test_the_package_gives_the_vectors_of_the_runtime_and_loads_no_other_library(site: Path, packed: Path) -> None:
    made = alone(
        site,
        "import json; from my_minilm import Encoder, encode; made = encode(sys.argv[1:])\n"
        "assert (Encoder().encode(sys.argv[1:]) == made).all()\n"
        "outside = {n.partition('.')[0] for n in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(json.dumps([made.tolist(), sorted(outside)]))",
        *TEXTS,
    )
    assert made.returncode == 0, made.stderr
    vectors, modules = json.loads(made.stdout)
    assert (np.array(vectors, np.float32) == Encoder(packed).encode(TEXTS)).all()
    assert [name for name in modules if not name.startswith(("_", "cython"))] == ["my_minilm", "numpy", "tokenizers"]


def test_one_string_gives_one_vector(site: Path, packed: Path) -> None:
    made = alone(site, "from my_minilm import encode; made = encode('the cat'); print(made.dtype, *made.tolist())")
    assert made.returncode == 0, made.stderr
    dtype, *vector = made.stdout.split()
    assert dtype == "float32"
    assert (np.array(vector, np.float32) == Encoder(packed).encode(["the cat"])[0]).all()


def test_equal_models_give_equal_bytes(wheel: Path, packed: Path, tmp_path: Path) -> None:
    assert wheel_of(packed, tmp_path / "again").read_bytes() == wheel.read_bytes()


def test_the_record_lists_every_file_with_its_digest(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        record = archive.read("my_minilm-1.0.dist-info/RECORD").decode()
        rows = {name: (digest, size) for name, digest, size in csv.reader(io.StringIO(record))}
        assert sorted(rows) == sorted(archive.namelist())
        for name, (digest, size) in rows.items():
            content = archive.read(name)
            made = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            wanted = ("", "") if name.endswith("/RECORD") else (f"sha256={made}", str(len(content)))
            assert (digest, size) == wanted
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_wheel_carries_the_model_as_it_is(wheel: Path, packed: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [n.removeprefix("my_minilm/model/") for n in archive.namelist() if n.startswith("my_minilm/model/")]
        assert sorted(names) == model_files(packed)
        for name in names:
            assert archive.read(f"my_minilm/model/{name}") == (packed / name).read_bytes()


def test_a_link_to_a_file_elsewhere_is_not_carried(packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(packed, folder)
    (folder / "tokenizer_config.json").rename(tmp_path / "secret.json")
    (folder / "tokenizer_config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(CheckpointError, match="is a link to a place outside the model's folder"):
        wheel_of(folder, tmp_path / "made")
    with pytest.raises(CheckpointError, match="is a link to a place outside the model's folder"):
        export(folder, tmp_path / "c", to="c")


def test_a_damaged_model_is_refused(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERNARIZE_VERIFY", "0")
    folder = tmp_path / "model"
    shutil.copytree(packed, folder)
    (folder / "vocab.txt").write_text("another\n")
    with pytest.raises(FormatError, match="was added after the model was packed"):
        wheel_of(folder, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_it_runs_beside_an_installed_ternarize(site: Path, packed: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); from ternarize_cli.runtime import Encoder; import my_minilm\n"
        f"assert not issubclass(my_minilm.Encoder, Encoder); made = my_minilm.encode({TEXTS!r})\n"
        f"assert (made == Encoder({str(packed)!r}).encode({TEXTS!r})).all()\n"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


def test_no_file_imports_ternarize_or_a_heavy_library(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sources = [name for name in archive.namelist() if name.endswith(".py")]
        assert len(sources) > 20
        for name in sources:
            for node in ast.walk(ast.parse(archive.read(name))):
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                top = {module.partition(".")[0] for module in modules}
                assert not top & {"ternarize_cli", "torch", "transformers", "safetensors", "huggingface_hub"}, name


def test_the_metadata_name_licence_requirements_and_command(tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source")
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\nA card.\n")
    (source / "LICENSE").write_text("The text of the licence.\n")
    with zipfile.ZipFile(wheel_of(stages(source, tmp_path)[2], tmp_path / "made", version="2.0.post1")) as archive:
        info = "my_minilm-2.0.post1.dist-info"
        about = message_from_string(archive.read(f"{info}/METADATA").decode())
        assert (about["Name"], about["Version"], about["License-Expression"]) == (
            "my_minilm",
            "2.0.post1",
            "Apache-2.0 AND MIT",
        )
        requirements = about.get_all("Requires-Dist")
        assert requirements is not None
        always = [line for line in requirements if "extra" not in line]
        assert [line.partition(">")[0] for line in always] == ["numpy", "tokenizers"]
        assert {"uvicorn", "orjson"} <= {line.partition(">")[0].partition(";")[0] for line in requirements}
        assert about.get_all("License-File") == ["LICENSE", "LICENSE-ternarize"]
        assert archive.read(f"{info}/licenses/LICENSE") == b"The text of the licence.\n"
        assert archive.read(f"{info}/licenses/LICENSE-ternarize") == LICENCE.read_bytes()
        assert "Licence of the model: apache-2.0." in about.get_payload()
        assert 'vector = encode("a text")  # float32 [32]' in about.get_payload()
        assert "my_minilm = my_minilm." in archive.read(f"{info}/entry_points.txt").decode()


@pytest.mark.parametrize(
    ("card", "line"),
    [
        ("license: other\nlicense_name: a-licence-of-ours", "License: a-licence-of-ours"),
        ('license: [mit, "two\\nLicense: lines"]', None),
        ('license: "mit\\nName: other"', None),
        ("license: {a: b", None),
        ("tags: [x]", None),
    ],
)
def test_a_card_may_say_anything(card: str, line: str | None, packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(packed, folder)
    (folder / "README.md").write_text(f"---\n{card}\n---\n")
    with zipfile.ZipFile(wheel_of(folder, tmp_path / "made")) as archive:
        about = message_from_string(archive.read("my_minilm-1.0.dist-info/METADATA").decode())
    said = [f"{key}: {about[key]}" for key in ("License", "License-Expression") if key in about]
    assert said == ([line] if line else [])
    assert "under the MIT License, whose text\nis in `LICENSE-ternarize`" in about.get_payload()
    assert about["Name"] == "my_minilm"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("all-MiniLM-L6-v2-packed", "all_minilm_l6_v2_packed"),
        ("3B--x.", "model_3b_x"),
        ("numpy", "numpy_model"),
        ("class", "class_model"),
        ("東京", "model"),
    ],
)
def test_a_package_is_named_after_its_model(model: str, name: str) -> None:
    assert package_name(None, model) == name
    assert name.isidentifier()


@pytest.mark.parametrize("name", ["my-model", "1st", "class", "_x", "x_", "", "a" * 101, "ä", "x.y", "../x", "x\n"])
def test_what_is_no_name_of_a_package_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="is no name of a Python package"):
        package_name(name, "model")


@pytest.mark.parametrize("name", ["numpy", "json", "ternarize_cli", "tokenizers"])
def test_the_name_of_another_package_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="another package is called"):
        package_name(name, "model")


def test_a_version_that_is_none_is_refused(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no version of a Python package"):
        wheel_of(packed, tmp_path / "made", version="latest")
    assert not (tmp_path / "made").exists()


def test_the_command_writes_a_wheel_and_a_dockerfile_into_a_folder(
    run: Callable[..., Any], packed: Path, tmp_path: Path
) -> None:
    made = tmp_path / "dist"
    arguments = ("export", packed, "--to", "wheel", "--name", "mine", "-o", made)
    assert "--dockerfile --serve" in run(*arguments, "--serve").stderr
    report = run(*arguments, "--dockerfile", "--serve", "--json")
    assert report.exit_code == 0, report.output
    values = json.loads(report.stdout)
    (wheel, dockerfile) = (Path(file["path"]) for file in values["files"])
    assert (values["name"], values["version"], values["requires"][0][:5]) == ("mine", "1.0", "numpy")
    text = dockerfile.read_text()
    assert f"'/tmp/{wheel.name}[serve]'" in text
    assert "\nUSER runner\n" in text
    assert text.startswith(
        "# docker build -t mine . && docker run -p 127.0.0.1:8080:8080 -e TERNARIZE_API_KEY=... mine\n"
    )
    assert 'CMD ["--serve"' in text
    again = run(*arguments)
    assert again.exit_code == OutputExistsError.exit_code
    assert run(*arguments, "--version", "1.1").exit_code == 0
    assert run(*arguments, "--force").exit_code == 0
    assert len(list(made.iterdir())) == 3


def test_a_wheel_for_another_platform_needs_its_library(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="there is no library for linux_aarch64 here"):
        wheel_of(packed, tmp_path / "made", platform="linux_aarch64")
    assert not (tmp_path / "made").exists()


def test_a_wheel_that_can_not_be_written_leaves_no_folder(packed: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OutputError, match="can't write"):
            wheel_of(packed, tmp_path / "made")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "made").exists()
