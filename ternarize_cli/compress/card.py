"""Writes the model card (README.md) of an artifact: what the hub reads of it, how it is used, and its numbers.

    ---                                  metadata: licence, languages, tags and base model of the source's card, and
    license: mit, …                      what holds of every artifact: library, task, tags, "quantized"
    ---
    <!-- ternarize: begin -->            ours, written anew by every command: what this is, code that runs, and a
    …                                    section for each of convert, distill and pack, kept by the commands after it
    <!-- ternarize: scores -->           of `eval --card`, which changes nothing else; they hold for this artifact
    …                                    alone, so the other commands leave them out
    <!-- ternarize: end of scores -->
    <!-- ternarize: end -->
    the text of the source's card        kept, under a heading that says whose it is

Other metadata of the source, such as its results on benchmarks, does not hold for the artifact and is left out. A card
of more than 4 MB, or with metadata that can't be read, is a stranger's file like any other: that much is left out. The
text depends on nothing but the model and its numbers, so the same run writes the same card.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ternarize_cli import __version__
from ternarize_cli.encoders import checkpoint
from ternarize_cli.encoders.hub import parse
from ternarize_cli.encoders.loading import can_encode
from ternarize_cli.encoders.modalities import modalities_of
from ternarize_cli.errors import InputError, ModelNotFoundError
from ternarize_cli.format.scheme import Artifact
from ternarize_cli.model_folder.model_kind import kind_of
from ternarize_cli.storage import files

__all__ = ["read_text", "write", "write_scores"]

_BEGIN, _END = "<!-- ternarize: begin -->", "<!-- ternarize: end -->"
_SECTION = re.compile(r"^<!-- ternarize: (convert|distill|pack) -->\n", re.MULTILINE)
_HEADER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_RESULTS = re.compile(r"^model-index:.*\n?(?:[ \t#-].*\n?|\r?\n)*", re.MULTILINE)
_SCORES = re.compile(r"<!-- ternarize: scores -->.*?<!-- ternarize: end of scores -->\r?\n?", re.DOTALL)
_ADAPTED = re.compile(r"(.+)@[0-9a-f]{40} \+ ")
"""The source of a merged adapter whose base is of the hub (`adapters.source_of`)."""
_LONGEST, _LONGEST_HEADER = 4 << 20, 64 << 10
_MOST = 200
_TITLES = {
    "convert": "How it was converted",
    "distill": "How this student was trained",
    "pack": "How it was packed",
}
_OF_SOURCE = "## Card of the model that this was made from\n\nIts numbers and its code are that model's.\n\n"
_TEXTS = '["a cat in a tree", "a dog by the river"]'
_USAGE = {
    "encoder": ("SentenceTransformer", f"vectors = model.encode({_TEXTS})\nprint(model.similarity(vectors, vectors))"),
    "image": (
        "SentenceTransformer",
        'vectors = model.encode([Image.new("RGB", (224, 224), "red"), Image.new("RGB", (224, 224), "blue")])\n'
        "print(model.similarity(vectors, vectors))",
    ),
    "cross-encoder": (
        "CrossEncoder",
        'pairs = [("where is the cat?", "a cat in a tree"), ("where is the cat?", "a dog by the river")]\n'
        "print(model.predict(pairs))",
    ),
    "sparse": ("SparseEncoder", f"vectors = model.encode({_TEXTS})\nprint(model.similarity(vectors, vectors))"),
}


def write(folder: Path, section: str, text: str) -> None:
    """Writes a section of an artifact's card, and its head anew; the card that is there may be its source's.

    The artifact's other files must be complete.

    Args:
        folder: the artifact.
        section: the command that made it: "convert", "distill" or "pack".
        text: Markdown with the command's numbers, without a heading.

    Raises:
        CheckpointError: a config of the folder is missing or damaged.
        OutputError: the card can't be written.
    """
    from huggingface_hub import ModelCardData

    artifact = checkpoint.artifact_of(folder)
    assert artifact is not None
    path = folder / "README.md"
    known, body = _read(path)
    body = _SCORES.sub("", body)
    before, found, rest = body.partition(_BEGIN)
    own, _, after = rest.partition(_END) if found else ("", "", "")
    if not found and body.strip():
        before, after = "", _OF_SOURCE + body.strip() if section == "convert" else body.strip()
    pieces = _SECTION.split(own)[1:]
    sections = {} if section == "convert" else dict(zip(pieces[::2], pieces[1::2], strict=True))
    sections[section] = f"## {_TITLES[section]}\n\n{text}"
    metadata = ModelCardData(**_metadata(folder, artifact, known))
    block = [_BEGIN, _head(folder, artifact)]
    block += [f"<!-- ternarize: {name} -->\n{sections[name].strip()}\n" for name in _TITLES if name in sections]
    parts = [f"---\n{metadata.to_yaml()}\n---", before.strip(), "\n".join([*block, _END]), after.strip()]
    with files.atomic_file(path, force=True) as made:
        made.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def write_scores(path: Path, text: str) -> None:
    """Writes scores into a card, in the place of earlier scores, and changes nothing else.

    A card without scores gets them at the end of our own part, or else at its end; where there is no card, one is made.

    Args:
        path: the card.
        text: Markdown with the scores, without a heading; it must hold no HTML comment.

    Raises:
        InputError: the card is longer than 4 MB, or no text in UTF-8.
        OutputError: the card can't be written.
    """
    card = read_text(path) if path.exists() else ""
    block = f"<!-- ternarize: scores -->\n## What it scores\n\n{text}\n<!-- ternarize: end of scores -->\n"
    block = block.replace("\n", "\r\n") if "\r\n" in card else block
    if _SCORES.search(card):
        card = _SCORES.sub(lambda _: block, card, count=1)
    elif card.count(_END) == 1:
        card = card.replace(_END, block + _END)
    else:
        card += ("" if not card or card.endswith("\n") else "\n") + block
    with files.atomic_file(path, force=True) as made:
        made.write_text(card, encoding="utf-8", newline="")


def read_text(path: Path) -> str:
    """Reads a card as it is, with its ends of lines.

    Raises:
        InputError: the card is longer than 4 MB, or no text in UTF-8.
    """
    if path.stat().st_size > _LONGEST:
        raise InputError(f"{path} is longer than 4 MB, and is left as it is", hint="leave --card out, or shorten it")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as e:
        raise InputError(f"{path} is no text in UTF-8, and is left as it is", hint="save it as UTF-8") from e


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """Reads the metadata and the text of a card; empty of one that is missing, too long or unreadable."""
    from huggingface_hub import ModelCard

    if not path.is_file() or path.stat().st_size > _LONGEST:
        return {}, ""
    text = path.read_bytes().decode("utf-8-sig", errors="replace").replace("\r\n", "\n")
    header = _HEADER.match(text)
    if header is None:
        return {}, text
    wanted, body = _RESULTS.sub("", header[1] + "\n"), text[header.end() :]
    if len(wanted) > _LONGEST_HEADER:
        return {}, body
    try:
        return dict(vars(ModelCard(f"---\n{wanted}\n---\n", ignore_metadata_errors=True).data)), body
    except Exception:  # YAML of a stranger: a syntax error, a recursion, keys that are no names, …
        return {}, body


def _words(value: object) -> list[str]:
    """Lists the short strings in a value of YAML, where Norwegian is `no`, which YAML reads as false."""
    listed = value if isinstance(value, list) else [value]
    words = ["no" if word is False else word for word in listed[:_MOST]]
    return [word for word in words if isinstance(word, str) and 0 < len(word) <= _MOST and word.isprintable()]


def _metadata(folder: Path, artifact: Artifact, known: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the metadata of an artifact's card from those of the card before it."""
    kept: dict[str, Any] = {
        key: words[0] for key in ("license", "license_name", "license_link") if (words := _words(known.get(key)))
    }
    if languages := _words(known["language"]) if known.get("language") is not None else []:
        kept["language"] = languages
    if of_adapter := _ADAPTED.match(artifact.source):
        bases = [of_adapter[1]]
    elif artifact.source_revision:
        bases = [artifact.source]
    else:
        bases = [base for base in _words(known.get("base_model")) if _is_id(base)]
    if bases:
        kept["base_model"] = bases[0] if len(bases) == 1 else bases
        kept["base_model_relation"] = "quantized"
    library = "sentence-transformers" if can_encode(folder) else "transformers"
    tags = [tag for tag in _words(known.get("tags")) if not tag.startswith("base_model:")]
    tags = [*tags, library, "ternarize", artifact.scheme.levels]
    task = _task(folder)
    return {**kept, "library_name": library, "pipeline_tag": task, "tags": list(dict.fromkeys(tags))}


def _is_id(name: str) -> bool:
    try:
        return parse(name).name == name
    except ModelNotFoundError:
        return False


def _task(folder: Path) -> str:
    """Returns the hub's name of what a model is for."""
    kind = kind_of(folder)
    if kind == "cross-encoder":
        labels = checkpoint.read_config(folder).get("id2label")
        return "text-classification" if isinstance(labels, dict) and len(labels) > 1 else "text-ranking"
    if kind == "sparse" or not can_encode(folder):
        return "feature-extraction"
    return "sentence-similarity" if "text" in modalities_of(folder) else "image-feature-extraction"


def _head(folder: Path, artifact: Artifact) -> str:
    """Writes what the artifact is, and code that runs in its folder."""
    kind = kind_of(folder)
    source = re.sub(r"(@[0-9a-f]{12})[0-9a-f]{28}(?= |$)", r"\1", artifact.source)
    name = " + ".join(re.sub(r"[^\w./@-]", "_", part) for part in source.split(" + ")) or "model"
    commit = f", commit `{artifact.source_revision[:12]}`" if artifact.source_revision else ""
    form = "a packed model" if artifact.stage == "packed" else "a checkpoint to train or pack"
    lines = [
        f"# {name}, {artifact.scheme.levels}\n",
        f"The weights of its linears are {artifact.scheme.levels}. This is {form}, made from `{name}`{commit} by "
        f"ternarize {__version__}.\n",
        "## Usage\n",
        "```sh\npip install ternarize-cli\n```\n",
    ]
    if not can_encode(folder):
        code = (
            'from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained(".")  # this folder, or its hub id'
        )
        return "\n".join([*lines, f"```python\n{code}\n```\n"])
    imports, use = _USAGE["image" if kind == "encoder" and "text" not in modalities_of(folder) else kind]
    code = f'from sentence_transformers import {imports}\n\nmodel = {imports}(".")  # this folder, or its hub id\n{use}'
    code = f"from PIL import Image\n{code}" if "Image.new" in use else code
    return "\n".join([*lines, f"```python\n{code}\n```\n"])
