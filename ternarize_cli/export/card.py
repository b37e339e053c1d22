"""Writes the README of an export: how it is used, its licence, and which model it is."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ternarize_cli import __version__
from ternarize_cli.export.source import Source
from ternarize_cli.model_folder.model_files import contained

__all__ = ["for_c", "for_wheel", "licence_files"]

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

`ternarize.h` describes the functions of `{named}`, which needs the C library and nothing else. `model.tz` holds the
weights. Texts have up to {facts["limit"]:,} tokens, special tokens included; `tokenizer.json` makes them, with any
library that reads such files. `config.json` lists prompts, which are put before a text.

{_about(source)}"""


def for_wheel(source: Source, name: str, dim: int) -> str:
    """Writes the README of a wheel.

    Args:
        source: the model.
        name: the name of the Python package.
        dim: the number of dimensions of a vector.
    """
    return f"""# {source.name}

An encoder of texts with ternary weights: vectors of {dim} floats. It needs NumPy and tokenizers, and no PyTorch.

```python
from {name} import encode

vectors = encode(["a cat in a tree", "a dog by the river"])  # float32 [2, {dim}]
```

From the shell, `{name} "a cat in a tree"` prints a vector as a line of JSON; without texts it reads them from stdin, a
line each. `python -m {name} --check` compares vectors with those that were computed when this package was made.

{_about(source)}"""


def licence_files(folder: Path) -> Iterator[Path]:
    """Yields the files of licences in a model's folder that are no links to other places, sorted by name."""
    for path in sorted(path for path in folder.iterdir() if _LICENCE.fullmatch(path.name)):
        if path.is_file() and contained(folder, path) and path.stat().st_size <= _LARGEST:
            yield path


def _about(source: Source) -> str:
    licence = source.licence or "not stated in the model's card"
    return f"""Licence: {licence}.

Content hash: `{source.digest}`, as `ternarize inspect` prints it for the packed model. Made by ternarize {__version__}.
"""
