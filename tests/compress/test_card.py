"""Cards of artifacts: metadata that the hub can read, code that runs, and what is kept of the source's card."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from sentence_transformers import SparseEncoder

from support.heads import save_headed
from support.models import save_tiny_bert, save_tiny_vit
from ternarize_cli.compress.card_scores import write_scores
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.pack import pack
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.export.formats import find_format
from ternarize_cli.format.scheme import Scheme
from ternarize_cli.storage.digests import content_hash

CARD = """---
license: other
license_name: own
license_link: https://example.com/terms
language: [en, no]
datasets: [maker/news]
base_model: maker/pretrained
tags: [news, sentence-transformers]
pipeline_tag: fill-mask
widget: [{text: hello}]
model-index:
- name: tiny
  results: [{task: {type: STS}}]
---
# Tiny

Trained on news.

## Usage

Like any other.
"""


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("card") / "tiny")


def made(source: Path, at: Path, card: "str | bytes | None" = None, levels: str = "ternary") -> Path:
    """Converts and packs a copy of a model with a card; returns the packed model."""
    copy = shutil.copytree(source, at / "source" / source.name)
    if card is not None:
        (copy / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    convert(copy, at / "latent", Scheme(levels=levels))
    pack(at / "latent", at / "packed")
    return at / "packed"


def metadata(folder: Path) -> dict[str, Any]:
    """The metadata of a card, as huggingface_hub reads it in two ways that must agree."""
    found = metadata_load(folder / "README.md")
    assert isinstance(found, dict)
    assert ModelCard.load(folder / "README.md").data.to_dict() == found
    return found


def test_licence_languages_tags_and_base_of_the_source_stay(bert: Path, tmp_path: Path) -> None:
    packed = made(bert, tmp_path, CARD)
    for folder in (tmp_path / "latent", packed):
        assert metadata(folder) == {
            "license": "other",
            "license_name": "own",
            "license_link": "https://example.com/terms",
            "language": ["en", "no"],
            "datasets": ["maker/news"],
            "base_model": "maker/pretrained",
            "base_model_relation": "quantized",
            "library_name": "sentence-transformers",
            "pipeline_tag": "sentence-similarity",
            "tags": ["news", "sentence-transformers", "ternarize", "ternary"],
        }


def test_the_text_of_the_source_comes_once_below_the_artifacts_own(bert: Path, tmp_path: Path) -> None:
    text = (made(bert, tmp_path, CARD) / "README.md").read_text()
    parts = [
        "# tiny, ternary",
        "How it was converted",
        "How it was packed",
        "Card of the model",
        "# Tiny\n",
        "Like any",
    ]
    assert [text.count(part) for part in parts] == [1] * len(parts)
    assert sorted(parts, key=text.index) == parts
    assert "a checkpoint to train or pack" in (tmp_path / "latent" / "README.md").read_text()


def test_a_source_without_a_card_claims_no_licence_and_no_base(bert: Path, tmp_path: Path) -> None:
    packed = made(bert, tmp_path)
    assert metadata(packed) == {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "ternarize", "ternary"],
    }
    assert "Card of the model" not in (packed / "README.md").read_text()


def test_a_source_of_the_hub_is_the_base_model_at_its_commit(bert: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--maker--tiny" / "snapshots" / ("b" * 40)
    shutil.copytree(bert, snapshot)
    (snapshot / "README.md").write_text(CARD)
    convert(snapshot, tmp_path / "latent")
    pack(tmp_path / "latent", tmp_path / "packed")
    found = metadata(tmp_path / "packed")
    assert (found["base_model"], found["base_model_relation"]) == ("maker/tiny", "quantized")
    assert (
        "made from [`maker/tiny`](https://huggingface.co/maker/tiny), commit `bbbbbbbbbbbb` by"
        in (tmp_path / "packed" / "README.md").read_text()
    )


@pytest.mark.parametrize(
    "card",
    [
        "---\nlicense: [\n---\n# Text\n",
        "---\n- a\n- list\n---\n# Text\n",
        "---\nlicense: {a: 1}\nlanguage: 7\ntags: [{x: y}, 7]\nbase_model: ../../secret\n---\n# Text\n",
        "---\n" + "a: " + "[" * 3000 + "]" * 3000 + "\n---\n# Text\n",
        "---\nlicense: !!python/object/apply:os.system ['exit 1']\n---\n# Text\n",
        "---\nlicense: mit\n" + "x: y\n" * 20_000 + "---\n# Text\n",
        b"---\nlicense: \xff\xfe\x00\n---\n# Text\n",
        "---\nno end\n# Text\n",
        "<!-- ternarize: begin -->\n<!-- ternarize: pack -->\n# Text\n",
        "# Text\r\n",
    ],
)
def test_a_strangers_card_gives_a_valid_one(bert: Path, tmp_path: Path, card: "str | bytes") -> None:
    found = metadata(made(bert, tmp_path, card))
    assert set(found) == {"library_name", "pipeline_tag", "tags"}
    assert found["tags"] == ["sentence-transformers", "ternarize", "ternary"]


def test_a_card_of_many_megabytes_is_left_out(bert: Path, tmp_path: Path) -> None:
    packed = made(bert, tmp_path, CARD + "x" * (5 << 20))
    assert (packed / "README.md").stat().st_size < 10_000
    assert "license" not in metadata(packed)


def test_the_same_model_gives_the_same_card(bert: Path, tmp_path: Path) -> None:
    first, second = (made(bert, tmp_path / name, CARD) / "README.md" for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_a_changed_card_keeps_its_place_through_pack_and_the_digest_ignores_it(bert: Path, tmp_path: Path) -> None:
    made(bert, tmp_path, CARD)
    card = tmp_path / "latent" / "README.md"
    card.write_text(card.read_text().replace("<!-- ternarize: begin", "Above all.\n\n<!-- ternarize: begin"))
    pack(tmp_path / "latent", tmp_path / "again")
    text = (tmp_path / "again" / "README.md").read_text()
    assert text.index("Above all.") < text.index("# tiny, ternary") < text.index("# Tiny\n")
    assert text.count("How it was converted") == 1
    (tmp_path / "again" / "README.md").write_text("another card")
    load_encoder(tmp_path / "again")


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("encoder", "sentence-similarity"),
        ("image", "image-feature-extraction"),
        ("cross-encoder", "text-ranking"),
        ("classifier", "text-classification"),
        ("sparse", "feature-extraction"),
    ],
)
def test_the_code_of_a_card_runs(
    kind: str,
    task: str,
    bert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = bert
    if kind == "image":
        source = save_tiny_vit(tmp_path / "vit")
    elif kind == "sparse":
        plain = save_headed(tmp_path / "plain", head="MaskedLM")
        SparseEncoder(str(plain), device="cpu").save_pretrained(str(tmp_path / "splade"))
        source = tmp_path / "splade"
    elif kind != "encoder":
        source = save_headed(tmp_path / "plain", labels=1 if kind == "cross-encoder" else 3)
    packed = made(source, tmp_path, levels="int4")
    assert metadata(packed)["pipeline_tag"] == task
    code = re.findall(r"```python\n(.*?)```", (packed / "README.md").read_text(), re.DOTALL)[0]
    monkeypatch.chdir(packed)
    capsys.readouterr()
    variables: dict[str, Any] = {}
    with torch.inference_mode():
        exec(code, variables)
    assert re.search(r"\d\.\d", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("kind", "formats"),
    [
        ("encoder", ["wheel", "onnx", "openvino", "gguf", "dense"]),
        ("image", ["wheel", "onnx", "openvino", "dense"]),
        ("cross-encoder", ["wheel", "dense"]),
    ],
)
def test_the_card_of_a_packed_model_names_the_exports_that_can_be_made_of_it(
    kind: str, formats: list[str], bert: Path, tmp_path: Path
) -> None:
    source = bert
    if kind == "image":
        source = save_tiny_vit(tmp_path / "vit")
    elif kind == "cross-encoder":
        source = save_headed(tmp_path / "plain", labels=1)
    packed = made(source, tmp_path)
    for folder, expected in ((tmp_path / "latent", []), (packed, formats)):
        text = (folder / "README.md").read_text()
        assert re.findall(r"^ternarize export \. --to (\w+) -o \1  # \w", text, re.MULTILINE) == expected
        assert ("ternarize serve .\n" in text) == bool(expected)
    assert [find_format(name).name for name in formats] == formats


@pytest.mark.parametrize("levels", ["ternary", "int4"])
def test_the_card_gives_the_bits_that_an_export_needs(levels: str, bert: Path, tmp_path: Path) -> None:
    text = (made(bert, tmp_path, levels=levels) / "README.md").read_text()
    found = re.findall(r"^ternarize export \. --to (\w+) --bits 4 -o \1 ", text, re.MULTILINE)
    assert found == (["onnx", "openvino"] if levels == "int4" else [])


def test_scores_of_eval_stand_in_the_card_of_the_model_that_they_hold_for(
    run: Callable[..., Any], bert: Path, tmp_path: Path
) -> None:
    packed = made(bert, tmp_path, CARD)
    name = "a|b <!-- ternarize: end -->"
    (tmp_path / f"{name}.csv").write_text("the cat,a dog,3\nthe tree,a river,1\na house,the house,5\n")
    (tmp_path / "sts.csv").write_text("the cat,a dog,3\nthe tree,a river,1\na house,the house,5\n")
    scored = ["--sts", tmp_path / f"{name}.csv", "--no-cache", "--card"]
    card = (packed / "README.md").read_text().replace("license: other", "license: other\nwidget: [mine]") + "\nMine.\n"
    (packed / "README.md").write_text(card)
    before, described = content_hash(packed), metadata(packed)
    found = json.loads(run("eval", packed, "--against", bert, *scored, "--json").stdout)
    text = (packed / "README.md").read_text()
    task = found["tasks"][0]
    scores = f"{task['student']:.4f} | {task['teacher']:.4f}"
    assert f"| a\\|b &lt;!-- ternarize: end --&gt; | {task['metric']} | 3 | {scores} |" in text
    assert text.index("# tiny, ternary") < text.index("## What it scores") < text.index("## Usage")
    without = re.sub("<!-- ternarize: scores.*of scores -->\n\n", "", text, flags=re.DOTALL)
    assert re.sub("model-index:.*?\n---", "---", without, flags=re.DOTALL) == card
    (index,) = metadata(packed).pop("model-index")
    (result,) = index["results"]
    assert (index["name"], result["dataset"]["name"]) == ("packed", name)
    assert result["metrics"][0]["value"] == round(task["student"], 4)
    assert result["metrics"][0]["args"]["retention"] == round(task["retention"], 4)
    kept = {key: value for key, value in metadata(packed).items() if key != "model-index"}
    assert (content_hash(packed), kept) == (before, described)
    assert run("eval", packed, "--sts", tmp_path / "sts.csv", "--no-cache", "--card").exit_code == 0
    text = (packed / "README.md").read_text()
    assert "a\\|b" not in text
    assert text.count("ternarize: end -->") == 1
    assert text.count("## What it scores") == 1
    assert run("eval", tmp_path / "latent", *scored).exit_code == 0
    pack(tmp_path / "latent", tmp_path / "again")
    assert "What it scores" not in (tmp_path / "again" / "README.md").read_text()
    refused = run("eval", bert, *scored)
    assert refused.exit_code == 2
    assert "--card writes into the card of a model that ternarize made" in refused.stderr


@pytest.mark.parametrize("card", [b"x" * (4 << 20) + b"y", "Gr\u00fc\u00dfe".encode("latin-1")])
def test_a_card_that_scores_do_not_fit_into_is_left_as_it_is(
    run: Callable[..., Any], bert: Path, tmp_path: Path, card: bytes
) -> None:
    packed = made(bert, tmp_path)
    (packed / "README.md").write_bytes(card)
    (tmp_path / "sts.csv").write_text("the cat,a dog,3\nthe tree,a river,1\na house,the house,5\n")
    refused = run("eval", packed, "--sts", tmp_path / "sts.csv", "--no-cache", "--card")
    assert refused.exit_code == 2
    assert "is left as it is" in refused.stderr
    assert (packed / "README.md").read_bytes() == card


def test_scores_keep_the_ends_of_lines_and_need_no_card_of_ours(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    write_scores(card, "| a |")
    assert card.read_text().count("What it scores") == 1
    card.write_bytes(b"---\r\nlicense: mit\r\n---\r\n# Mine\r\n")
    for text in ("| one |", "| two |"):
        write_scores(card, text)
    assert card.read_bytes().startswith(b"---\r\nlicense: mit\r\n---\r\n# Mine\r\n<!-- ternarize: scores -->\r\n")
    assert b"one" not in card.read_bytes()
    assert card.read_bytes().count(b"\n") == card.read_bytes().count(b"\r\n")
