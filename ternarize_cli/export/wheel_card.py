"""The README of a wheel, and how the package in it is used."""

from typing import NamedTuple

from ternarize_cli.export.card import about
from ternarize_cli.export.source import Source
from ternarize_cli.runtime import Classifier, Encoder, Reranker

__all__ = ["Usage", "readme", "usage_of"]


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
        code += f'\nvector = encode("a text")  # float32 [{model.dim}]'
        names = ("Encoder", "encode", *(("encode_images",) if "image" in model.reads else ()))
        return Usage(what, names, code, f'`{name} "a cat in a tree"` prints a vector')
    code = f"from PIL import Image\nfrom {name} import encode_images\n\n"
    code += f'vectors = encode_images([Image.open("cat.png")])  # float32 [1, {model.dim}]'
    return Usage(what, ("Encoder", "encode_images"), code, f"`{name} cat.png` prints a vector")


def readme(source: Source, usage: Usage, name: str) -> str:
    """Writes the README of a wheel.

    Args:
        source: the model.
        usage: how its package is used.
        name: the name of the package.
    """
    return f"""# {source.name}

{usage.what[0].upper()}{usage.what[1:]}, with {source.weights}. It runs on CPUs, without PyTorch.

```python
{usage.code}
```

From the shell, {usage.command}, as a line of JSON.
Without arguments, each line of stdin is taken. `{name} --check` compares the model's files with their digest, and
results with those that were computed when this package was made.

With the extra `serve` (`pip install '{name}[serve]'`), `{name} --serve` starts a server, which speaks the protocols of
OpenAI and of text-embeddings-inference. If the environment variable TERNARIZE_API_KEY is set, it answers only those
who send that key.

{about(source)}"""
