"""Writes the README of an export: how it is used, its licence, and which model it is."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ternarize_cli import __version__
from ternarize_cli.export.source import Source
from ternarize_cli.model_folder.model_files import contained
from ternarize_cli.runtime import Classifier, Encoder, Reranker

__all__ = ["Usage", "for_c", "for_wheel", "licence_files", "usage_of"]

_LICENCE = re.compile(r"(LICENSE|LICENCE|NOTICE|COPYING)[\w.-]{0,80}")
_LARGEST = 1 << 20


def for_c(source: Source, facts: Mapping[str, Any], named: str) -> str:
    """Writes the README of a folder for C.

    Args:
        source: the model.
        facts: what config.json holds.
        named: the name of the library's file.
    """
    return f"""# {source.name}

An encoder of texts with ternary weights, for programs in C: ids of tokens to vectors of {facts["dimensions"]} floats.

```sh
cc example.c -L. -lternarize -Wl,-rpath,'$ORIGIN' -o example
echo "101 7592 102" | ./example model.tz
```

`ternarize.h` describes the functions of `{named}`, which needs the C library and nothing else.
`model.tz` holds the weights. Texts have up to {facts["limit"]:,} tokens, special tokens included; `tokenizer.json`
makes them, with any library that reads such files. `config.json` lists prompts, which are put before a text.

{_about(source)}"""


class Usage(NamedTuple):
    """How the package of a model is used.

    Attributes:
        what: what it does, in a few words.
        names: the names that it has, sorted.
        code: a few lines of Python.
        command: a line for the shell, and what it prints.
    """

    what: str
    names: tuple[str, ...]
    code: str
    command: str


def usage_of(model: Encoder | Reranker | Classifier, name: str) -> Usage:
    """Describes how the package of a model is used.

    Args:
        model: the model.
        name: the name of the package.
    """
    if isinstance(model, Reranker):
        code = f'from {name} import score\n\nscores = score([("where is the cat?", "in a tree")])  # float32 [1]'
        line = f'`{name} --query "where is the cat?" "in a tree" "by the river"` prints a score for each text'
        return Usage("pairs of texts to scores", ("Reranker", "score"), code, line)
    if isinstance(model, Classifier):
        code = (
            f'from {name} import classify\n\nscores = classify(["a cat in a tree"])  # float32 [1, {len(model.labels)}]'
        )
        line = f'`{name} "a cat in a tree"` prints the scores of all labels'
        return Usage("texts to scores of labels", ("Classifier", "classify"), code, line)
    what = f"{' and '.join(f'{kind}s' for kind in sorted(model.reads, reverse=True))} to vectors"
    if "text" in model.reads:
        code = f'from {name} import encode\n\nvectors = encode(["a text", "another one"])  # float32 [2, {model.dim}]'
        names = ("Encoder", "encode", *(("encode_images",) if "image" in model.reads else ()))
        return Usage(what, names, code, f'`{name} "a cat in a tree"` prints a vector')
    code = f"from PIL import Image\nfrom {name} import encode_images\n\n"
    code += f'vectors = encode_images([Image.open("cat.png")])  # float32 [1, {model.dim}]'
    return Usage(what, ("Encoder", "encode_images"), code, f"`{name} cat.png` prints a vector")


def for_wheel(source: Source, usage: Usage, name: str) -> str:
    """Writes the README of a wheel.

    Args:
        source: the model.
        usage: how its package is used.
        name: the name of the package.
    """
    return f"""# {source.name}

{usage.what[0].upper()}{usage.what[1:]}, with ternary weights. It runs on CPUs, without PyTorch.

```python
{usage.code}
```

From the shell, {usage.command}, as a line of JSON.
Without arguments, each line of stdin is taken. `{name} --check` compares results with those that were computed when
this package was made.

With the extra `serve` (`pip install '{name}[serve]'`), `{name} --serve` starts a server, which speaks the protocols of
OpenAI and of text-embeddings-inference.

{_about(source)}"""


def licence_files(folder: Path) -> Iterator[Path]:
    """Yields the files of licences in a model's folder that are no links to other places, sorted by name."""
    for path in sorted(path for path in folder.iterdir() if _LICENCE.fullmatch(path.name)):
        if path.is_file() and contained(folder, path) and path.stat().st_size <= _LARGEST:
            yield path


def _about(source: Source) -> str:
    licence = source.licence or "not stated in the model's card"
    return f"""Licence: {licence}.

Content hash, as `ternarize inspect` prints it for the packed model:
`{source.digest}`. Made by ternarize {__version__}.
"""
