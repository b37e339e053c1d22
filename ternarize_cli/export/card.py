"""What the READMEs of exports have in common: metadata, how a model is opened, how near it is, and its licences.

A format writes the README of its folder, and takes these parts.
"""

from collections.abc import Mapping
from typing import Any

from ternarize_cli import __version__
from ternarize_cli.compress.card import metadata_of
from ternarize_cli.compress.card_file import read_card
from ternarize_cli.export.licences import OURS
from ternarize_cli.export.source import Source

__all__ = ["HERE", "about", "front_matter", "gives", "in_sentence_transformers", "in_transformers", "nearness"]

HERE = '"."'
"""How the code of a README names the folder in which it lies."""


def front_matter(source: Source, *tags: str) -> str:
    """Writes the metadata of an export's README, which the hub reads: those of the packed model, and more tags.

    Args:
        source: the model.
        tags: names of the format, such as "onnx".
    """
    from huggingface_hub import ModelCardData

    known, _ = read_card(source.folder / "README.md")
    found = metadata_of(source.folder, source.artifact, known)
    return f"---\n{ModelCardData(**found | {'tags': [*found['tags'], *tags]}).to_yaml()}\n---\n\n"


def in_transformers(facts: Mapping[str, Any]) -> str:
    """Shows how a checkpoint is opened, and what its check has found.

    Args:
        facts: what the folder's export.json holds.
    """
    return f"""```python
from transformers import AutoModel

model = AutoModel.from_pretrained({HERE})  # this folder, or its hub id
```

sentence-transformers opens the folder, too, if it has modules.json.
{nearness(facts["check"], "The packed model ran with activations as they are, too.")}"""


def in_sentence_transformers(backend: str) -> str:
    """Writes the Python that opens a folder in sentence-transformers.

    Args:
        backend: the backend of sentence-transformers, "onnx" or "openvino".
    """
    return f"""# pip install "sentence-transformers[{backend}]"
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({HERE}, backend="{backend}")  # this folder, or its hub id"""


def gives(facts: Mapping[str, Any]) -> str:
    """Names the inputs and outputs of a graph, as the end of a sentence.

    Args:
        facts: what the folder's export.json holds.
    """
    given, made = (", ".join(f"`{name}`" for name in facts[key]) for key in ("inputs", "outputs"))
    return f"takes {given}\nand gives {made}."


def nearness(found: Mapping[str, Any], rounds: str) -> str:
    """Says what the check has found.

    Args:
        found: what export.json says of the check.
        rounds: a sentence that says how activations are rounded on both sides.
    """
    if "unchecked" in found:
        return f"It was not compared with the packed model: {found['unchecked']}."
    return f"""In {found["runtime"]}, {found["count"]} {found["inputs"]} have a mean cosine of
{found["mean_cosine"]:.4f} to the packed model, the lowest {found["lowest_cosine"]:.4f}. {rounds}"""


def about(source: Source) -> str:
    """Writes the end of a README: the licence, the content hash, and the version of ternarize.

    Args:
        source: the model.
    """
    licence = source.licence or "not stated in the model's card"
    return f"""Licence of the model: {licence}. The code that runs it is ternarize's, under the MIT License, whose text
is in `{OURS}`.

Content hash, as `ternarize inspect` prints it for the packed model:
`{source.digest}`. Made by ternarize {__version__}.
"""
