"""Uploads go to a hub on loopback; what does not belong to a model is refused before anything is sent."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.hub_server import Hub, serving
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.pack import pack
from ternarize_cli.export.export_folder import complete
from ternarize_cli.export.options import ExportOptions
from ternarize_cli.export.session import export

TOKEN = "hf_" + "a1B2" * 9


@pytest.fixture(scope="module")
def made(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ternary checkpoint and a packed model."""
    folder = tmp_path_factory.mktemp("made")
    convert(tiny_bert, folder / "latent")
    pack(folder / "latent", folder / "packed")
    return folder


@pytest.fixture
def packed(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "packed", tmp_path / "packed")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that takes TOKEN, which is the token of this machine."""
    from huggingface_hub import constants

    with serving({}) as server:
        server.token = TOKEN
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}")
        yield server


def test_a_packed_model_arrives_in_one_commit_with_its_name_in_the_code(
    run: Callable[..., Any], packed: Path, hub: Hub
) -> None:
    result = run("publish", packed, "me/small", "--private", "--message", "First", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["repo"], found["dry_run"]) == ("me/small", False)
    assert found["url"].endswith(f"/me/small/commit/{'d' * 40}")
    assert hub.calls == [
        "POST /api/repos/create",
        "POST /api/validate-yaml",
        "POST /api/models/me/small/preupload/main",
        "POST /api/models/me/small/commit/main",
    ]
    assert hub.messages == [("main", "First", False)]
    assert hub.private == {"me/small"}
    assert {file["path"]: file["bytes"] for file in found["files"]} == {k: len(v) for k, v in hub.uploaded.items()}
    assert found["bytes"] == sum(map(len, hub.uploaded.values()))
    for name, content in hub.uploaded.items():
        if name != "README.md":
            assert content == (packed / name).read_bytes()
    card = hub.uploaded["README.md"].decode()
    assert 'SentenceTransformer("me/small")\n' in card
    assert "ternarize export me/small --to wheel" in card
    assert "ternarize serve me/small\n" in card
    assert '(".")' in (packed / "README.md").read_text()


def test_a_dry_run_lists_the_bytes_and_needs_no_token_and_no_network(
    run: Callable[..., Any], packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    result = run("publish", packed, "me/small", "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["url"] is None
    names = {path.relative_to(packed).as_posix() for path in packed.rglob("*") if path.is_file()}
    assert {file["path"] for file in found["files"]} == names


def test_a_pull_request_makes_no_repository(run: Callable[..., Any], packed: Path, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "pytorch_model.bin").write_bytes(b"")
    hub.folders["me/there"] = tmp_path / "old"
    result = run("publish", packed, "me/there", "--create-pr")
    assert result.exit_code == 0, result.stderr
    assert "POST /api/repos/create" not in hub.calls
    assert hub.messages[0][2]
    assert "/me/there/discussions/1" in result.stdout
    assert "other files, which stay: pytorch_model.bin" in result.stderr


def test_a_branch_is_made(run: Callable[..., Any], packed: Path, hub: Hub) -> None:
    assert run("publish", packed, "me/small", "--revision", "next").exit_code == 0
    assert "POST /api/models/me/small/branch/next" in hub.calls
    assert hub.messages[0][0] == "next"


@pytest.fixture(scope="module")
def exported(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the packed model; tests must not write into it."""
    folder = tmp_path_factory.mktemp("exported") / "dense"
    export(made / "packed", folder, to="dense", options=ExportOptions(check=False))
    return folder


def test_checkpoints_and_exports_are_taken(
    run: Callable[..., Any], made: Path, exported: Path, tmp_path: Path, hub: Hub
) -> None:
    assert run("publish", made / "latent", "me/latent").exit_code == 0
    folder = shutil.copytree(exported, tmp_path / "ex")
    (folder / "picture.png").write_bytes(b"PNG")
    assert run("publish", folder, "me/ex").exit_code == 0
    assert b'AutoModel.from_pretrained("me/ex")' in hub.uploaded["README.md"]
    assert b'AutoModel.from_pretrained(".")' in (folder / "README.md").read_bytes()
    assert hub.uploaded.keys() == {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["openvino/m.bin", "onnx/model.onnx", "onnx/model.onnx_data", "m.gguf"])
def test_weights_of_every_format_are_taken(run: Callable[..., Any], tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"weights")
    (tmp_path / "openvino").mkdir(exist_ok=True)
    (tmp_path / "openvino" / "m.xml").write_text("<net/>")
    complete(tmp_path, {}, "A card.", {"LICENSE": b"MIT"})
    result = run("publish", tmp_path, "me/ex", "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    assert name in {file["path"] for file in json.loads(result.stdout)["files"]}


def test_a_damaged_export_is_refused(run: Callable[..., Any], exported: Path, tmp_path: Path) -> None:
    def refused(name: str, change: Callable[[Path], object]) -> str:
        folder = shutil.copytree(exported, tmp_path / name)
        change(folder)
        result = run("publish", folder, "me/ex", "--dry-run")
        assert result.exit_code == 2, result.stdout
        return " ".join(result.stderr.split())

    def flip(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-1] + b"?")

    def note(folder: Path, digests: object) -> None:
        (folder / "export.json").write_text(json.dumps({"digests": digests}))

    assert "is damaged or was changed" in refused("weights", lambda folder: flip(folder / "model.safetensors"))
    assert "is damaged or was changed" in refused("licence", lambda folder: flip(folder / "LICENSE-ternarize"))
    assert "lacks 'tokenizer.json'" in refused("missing", lambda folder: (folder / "tokenizer.json").unlink())
    assert "was added after the export" in refused("added", lambda folder: (folder / "vocab.txt").write_text("x"))
    assert "has no digests" in refused("none", lambda folder: note(folder, None))
    assert "has no digests" in refused("list", lambda folder: note(folder, ["config.json"]))
    assert "lacks '../../dense" in refused("outside", lambda folder: note(folder, {"../../dense/config.json": "0"}))


def test_wheels_and_folders_for_c_are_refused_in_words(run: Callable[..., Any], made: Path, tmp_path: Path) -> None:
    for form, said in (("wheel", "package index"), ("c", "is an export for C")):
        export(made / "packed", tmp_path / form, to=form)
        result = run("publish", tmp_path / form, "me/small", "--dry-run")
        assert result.exit_code == 2
        assert said in " ".join(result.stderr.split())
        assert "packed model that" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (".env", "is hidden"),
        (".git/config", "is hidden"),
        (".packed.partial/model.safetensors", "is hidden"),
        ("optimizer.pt", "is a pickle"),
        ("pytorch_model.bin", "is a pickle"),
        ("1_Pooling/pytorch_model.bin", "is a pickle"),
        ("notes.docx", "is no file that a model"),
        ("model.onnx", "is no file that a model"),
        ("token", "is no file that a model"),
    ],
)
def test_what_does_not_belong_to_a_model_is_refused(
    run: Callable[..., Any], packed: Path, hub: Hub, name: str, said: str
) -> None:
    (packed / name).parent.mkdir(exist_ok=True)
    (packed / name).write_bytes(b"x")
    result = run("publish", packed, "me/small")
    assert result.exit_code == 2
    assert said in result.stderr or "was added after the model was packed" in result.stderr
    assert name in result.stderr
    assert hub.calls == []


def test_damage_links_and_tokens_are_refused(
    run: Callable[..., Any], made: Path, packed: Path, tmp_path: Path, tiny_bert: Path
) -> None:
    def refused(folder: Path) -> str:
        result = run("publish", folder, "me/small", "--dry-run")
        assert result.exit_code == 2, result.stdout
        return " ".join(result.stderr.split())

    assert "neither a model that ternarize made nor an export" in refused(tiny_bert)
    assert "there is no folder" in refused(tmp_path / "nothing")
    weights = bytearray((packed / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (packed / "model.safetensors").write_bytes(weights)
    assert "its sha256 differs" in refused(packed)
    outside = tmp_path / "id_rsa"
    outside.write_text("secret")
    for name, target in (("README.md", outside), ("pictures.png", tmp_path / "nowhere"), ("photos", made)):
        copy = shutil.copytree(made / "packed", tmp_path / name / "copy")
        (copy / name).unlink(missing_ok=True)
        (copy / name).symlink_to(target)
        assert "is a link to a place outside" in refused(copy)
    copy = shutil.copytree(made / "packed", tmp_path / "told")
    (copy / "README.md").write_text(f"my token is {TOKEN}\n")
    assert "holds an access token" in refused(copy)
    assert TOKEN not in refused(copy)


@pytest.mark.parametrize(
    "repo", ["../x", "a/b/c", "owner/na me", "https://huggingface.co/datasets/a/b", "a/b@v1", "a--b/c"]
)
def test_a_name_that_no_repository_has_is_refused(run: Callable[..., Any], packed: Path, repo: str) -> None:
    result = run("publish", packed, repo, "--dry-run")
    assert result.exit_code == 2
    assert "try: " in result.stderr


def test_what_the_hub_refuses_is_explained_without_the_token(
    run: Callable[..., Any], packed: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(code: int, *arguments: object) -> str:
        result = run("publish", packed, *arguments)
        assert result.exit_code == code, result.stderr
        assert TOKEN not in result.output
        assert "Traceback" not in result.output
        return " ".join(result.stderr.split())

    assert "may not write to you/small" in said(2, "you/small")
    assert "there is no repository me/missing" in said(2, "me/missing", "--create-pr")
    hub.folders["me/public"] = tmp_path / "packed"
    assert "me/public exists already and is public" in said(2, "me/public", "--private")
    hub.token = "another"
    assert "does not take the token" in said(2, "me/small")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "there is no token for the hub here" in said(2, "me/small")
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the hub can't be reached" in said(1, "me/small")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in said(4, "me/small")
