"""Writes the model card (README.md) of an artifact: what the hub reads of it, how it is used, and its numbers.

    ---                                  metadata: licence, languages, data sets, tags and base model of the source's
    license: mit, …                      card, and what holds of every artifact: library, task, tags, "quantized"
    ---
    <!-- ternarize: begin -->            ours, written anew by every command: what this is,
    <!-- ternarize: scores -->           scores of `eval --card` (`card_scores`), which hold for this artifact alone, so
    …                                    the other commands leave them out,
    <!-- ternarize: end of scores -->
    <!-- ternarize: usage -->            code that runs, and a section for each of compress, convert, distill and pack,
    …                                    kept by the commands after it
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
from ternarize_cli.compress.card_file import BEGIN, END, SCORES, USAGE, read_card
from ternarize_cli.encoders import checkpoint
from ternarize_cli.encoders.hub import parse
from ternarize_cli.encoders.loading import can_encode
from ternarize_cli.encoders.modalities import modalities_of
from ternarize_cli.errors import ModelNotFoundError
from ternarize_cli.format.scheme import Artifact
from ternarize_cli.model_folder.model_kind import kind_of
from ternarize_cli.storage import files

__all__ = ["addressed", "cell", "metadata_of", "task_of", "write"]

_SECTION = re.compile(r"^<!-- ternarize: (compress|convert|distill|pack) -->\n", re.MULTILINE)
_ADAPTED = re.compile(r"(.+)@[0-9a-f]{40} \+ ")
"""The source of a merged adapter whose base is of the hub (`adapters.source_of`)."""
_MOST = 200
_TITLES = {
    "compress": "How it was made",
    "convert": "How it was converted",
    "distill": "How this student was trained",
    "pack": "How it was packed",
}
_OF_SOURCE = "## Card of the model that this was made from\n\nIts numbers and its code are that model's.\n\n"
_TEXTS = '["a cat in a tree", "a dog by the river"]'
_HERE = '(".")  # this folder, or its hub id'
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
        section: the command that made it: "compress", "convert", "distill" or "pack".
        text: Markdown with the command's numbers, without a heading.

    Raises:
        CheckpointError: a config of the folder is missing or damaged.
        OutputError: the card can't be written.
    """
    from huggingface_hub import ModelCardData

    artifact = checkpoint.artifact_of(folder)
    assert artifact is not None
    path = folder / "README.md"
    known, body = read_card(path)
    body = SCORES.sub("", body)
    before, found, rest = body.partition(BEGIN)
    own, _, after = rest.partition(END) if found else ("", "", "")
    if not found and body.strip():
        before, after = "", _OF_SOURCE + body.strip() if section == "convert" else body.strip()
    pieces = _SECTION.split(own)[1:]
    sections = {} if section == "convert" else dict(zip(pieces[::2], pieces[1::2], strict=True))
    sections[section] = f"## {_TITLES[section]}\n\n{text}"
    metadata = ModelCardData(**metadata_of(folder, artifact, known))
    block = [BEGIN, _head(folder, artifact)]
    block += [f"<!-- ternarize: {name} -->\n{sections[name].strip()}\n" for name in _TITLES if name in sections]
    parts = [f"---\n{metadata.to_yaml()}\n---", before.strip(), "\n".join([*block, END]), after.strip()]
    with files.atomic_file(path, force=True) as made:
        made.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def addressed(text: str, repo: str) -> str:
    """Writes the name of a hub repository into the code of a card, in place of the folder that the card lies in.

    Args:
        text: the card.
        repo: the hub id.
    """
    before, found, rest = text.partition(BEGIN)
    own, end, after = rest.partition(END)
    if not end:
        return text
    own = own.replace(_HERE, f'("{repo}")').replace('(".")', f'("{repo}")')
    return (
        before + found + re.sub(r"^(ternarize .*?) \.(?= |\r?$)", rf"\1 {repo}", own, flags=re.MULTILINE) + end + after
    )


def cell(text: str) -> str:
    """Escapes what means something in a line or a table of Markdown."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|`*~\[\]]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)  # a _ inside a word means nothing


def _words(value: object) -> list[str]:
    """Lists the short strings in a value of YAML, where Norwegian is `no`, which YAML reads as false."""
    listed = value if isinstance(value, list) else [value]
    words = ["no" if word is False else word for word in listed[:_MOST]]
    return [word for word in words if isinstance(word, str) and 0 < len(word) <= _MOST and word.isprintable()]


def metadata_of(folder: Path, artifact: Artifact, known: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the metadata of an artifact's card.

    Args:
        folder: the artifact.
        artifact: its description.
        known: the metadata of the card before it.
    """
    kept: dict[str, Any] = {
        key: words[0] for key in ("license", "license_name", "license_link") if (words := _words(known.get(key)))
    }
    if languages := _words(known["language"]) if known.get("language") is not None else []:
        kept["language"] = languages
    if datasets := _words(known["datasets"]) if known.get("datasets") is not None else []:
        kept["datasets"] = datasets
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
    tags = [*tags, library, "ternarize", artifact.levels]
    task = task_of(folder)
    return {**kept, "library_name": library, "pipeline_tag": task, "tags": list(dict.fromkeys(tags))}


def _is_id(name: str) -> bool:
    try:
        return parse(name).name == name
    except ModelNotFoundError:
        return False


def task_of(folder: Path) -> str:
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
    kind, images = kind_of(folder), "text" not in modalities_of(folder)
    lines = [f"# {cell(_source(artifact))}, {artifact.levels}\n", _summary(artifact)]
    lines += [f"{USAGE}\n## Usage\n", "```sh\npip install ternarize-cli\n```\n"]
    loads = f"from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained{_HERE}"
    if can_encode(folder):
        imports, use = _USAGE["image" if kind == "encoder" and images else kind]
        code = f"from sentence_transformers import {imports}\n\nmodel = {imports}{_HERE}\n{use}"
        code = f"from PIL import Image\n{code}" if "Image.new" in use else code
        lines.append(f"```python\n{code}\n```\n")
        loads = (
            ""
            if kind != "encoder"
            else f"transformers opens the encoder alone, without pooling:\n\n```python\n{loads}\n```\n"
        )
        lines.append(loads)
    else:
        lines.append(f"```python\n{loads}\n```\n")
    if artifact.stage == "packed" and not artifact.torch_only and can_encode(folder) and kind != "sparse":
        lines.append(_without_torch(folder, artifact))
    return "\n".join(filter(None, lines))


_EXPORTS = {
    "wheel": "a Python package that needs NumPy and tokenizers",
    "onnx": "ONNX Runtime, fastembed, transformers.js",
    "openvino": "OpenVINO",
    "gguf": "llama.cpp, if it knows this family",
    "dense": "transformers without ternarize, at full size",
}
"""What opens an export, by its format."""


def _without_torch(folder: Path, artifact: Artifact) -> str:
    """Shows the exports that can be made of a packed model, and the server."""
    bits = " --bits 4" if artifact.levels in ("int4", "mixed") else ""
    options = {"onnx": bits, "openvino": bits}
    left_out: set[str] = set()
    if kind_of(folder) != "encoder" or len(modalities_of(folder)) > 1:
        left_out = {"onnx", "openvino", "gguf"}
    elif "text" not in modalities_of(folder):
        left_out = {"gguf"}
    lines = [
        f"ternarize export . --to {form}{options.get(form, '')} -o {form}  # {what}"
        for form, what in _EXPORTS.items()
        if form not in left_out
    ]
    return "\n".join(
        [
            "In other runtimes: each export says in its README how it is opened, and how near it is to this model. The",
            "server speaks the protocols of OpenAI and of text-embeddings-inference, and needs no PyTorch:",
            "",
            "```sh",
            *lines,
            "pip install 'ternarize-cli[serve]'",
            "ternarize serve .",
            "```",
            "",
        ]
    )


_GRIDS = {
    "ternary": "one of -1, 0 and +1",
    "binary": "-1 or +1",
    "int2": "one of four values",
    "int4": "one of sixteen values",
    "mixed": "one of -1, 0 and +1, or in some of them one of sixteen values",
}


def _source(artifact: Artifact) -> str:
    """Names the model that an artifact was made from; short commits, and no characters that no name has."""
    source = re.sub(r"(@[0-9a-f]{12})[0-9a-f]{28}(?= |$)", r"\1", artifact.source)
    return " + ".join(re.sub(r"[^\w./@-]", "_", part) for part in source.split(" + ")) or "model"


def _summary(artifact: Artifact) -> str:
    name = _source(artifact)
    commit = f", commit `{artifact.source_revision[:12]}`" if artifact.source_revision else ""
    linked = f"[`{name}`](https://huggingface.co/{name})" if commit and _is_id(name) else f"`{name}`"
    shares = "row" if artifact.scheme.granularity == "row" else artifact.scheme.granularity
    form = "a packed model" if artifact.stage == "packed" else "a checkpoint to train or pack"
    return (
        f"Every weight of its linears is {_GRIDS[artifact.levels]}, times a scale for its {shares}. This is "
        f"{form}, made from {linked}{commit} by [ternarize](https://pypi.org/project/ternarize-cli/) {__version__}.\n"
    )
