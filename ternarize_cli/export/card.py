"""Writes the README of an export: how it is used, its licences, and which model it is."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ternarize_cli import __version__
from ternarize_cli.compress.card import metadata_of
from ternarize_cli.compress.card_file import read_card
from ternarize_cli.export.licences import OURS
from ternarize_cli.export.source import Source
from ternarize_cli.runtime import Classifier, Encoder, Reranker

__all__ = [
    "Usage",
    "for_c",
    "for_compressed_tensors",
    "for_dense",
    "for_gguf",
    "for_onnx",
    "for_openvino",
    "for_wheel",
    "front_matter",
    "usage_of",
]

_PROMPTED = """A prompt is left to the program: `config.json` lists the prompts, and one is put in front of a text
before the text is tokenised. `default_prompt_name` there names the one for texts of no special kind; null: none.
"""
_BARE = "The model has no prompts: a text is tokenised as it is.\n"
_SPLITS = """This model reads a special token in a text, such as `[SEP]`, as plain text. The file can't say so: set
`encode_special_tokens` of the tokenizer to true.
"""


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


def for_c(source: Source, facts: Mapping[str, Any], named: str) -> str:
    """Writes the README of a folder for C.

    Args:
        source: the model.
        facts: what the folder's config.json holds.
        named: the name of the library's file.
    """
    return f"""# {source.name}

An encoder of texts with ternary weights, for programs in C: ids of tokens to vectors of {facts["dimensions"]} floats.

```sh
cc example.c -L. -lternarize -Wl,-rpath,'$ORIGIN' -o example
echo "101 7592 102" | ./example model.tz
```

`ternarize.h` describes the functions of `{named}`, which needs the C library and nothing else.
`model.tz` holds the weights.

`tokenizer.json` makes ids of texts, with the library tokenizers or another that reads such files. It adds special
tokens, pads nothing, and cuts a text to the {facts["limit"]:,} tokens that the model reads, special tokens included.
{_SPLITS if facts["split_special_tokens"] else ""}{_PROMPTED if any(facts["prompts"].values()) else _BARE}
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
        code += f'\nvector = encode("a text")  # float32 [{model.dim}]'
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
Without arguments, each line of stdin is taken. `{name} --check` compares the model's files with their digest, and
results with those that were computed when this package was made.

With the extra `serve` (`pip install '{name}[serve]'`), `{name} --serve` starts a server, which speaks the protocols of
OpenAI and of text-embeddings-inference. If the environment variable TERNARIZE_API_KEY is set, it answers only those
who send that key.

{_about(source)}"""


def for_onnx(source: Source, facts: Mapping[str, Any]) -> str:
    """Writes the README of a folder for ONNX Runtime.

    Args:
        source: the model.
        facts: what the folder's export.json holds.
    """
    if "pixel_values" in facts["inputs"]:
        opened = """import onnxruntime

session = onnxruntime.InferenceSession("onnx/model.onnx")"""
        where = "transformers.js finds"
    else:
        opened = _in_sentence_transformers("onnx")
        where = "text-embeddings-inference, fastembed and transformers.js find"
    return f"""{front_matter(source, "onnx")}# {source.name}

An encoder with ternary weights, for ONNX Runtime. `onnx/model.onnx` {_gives(facts)}

```python
{opened}
```

{where} the file where it is, too. Its products are `MatMulNBits` of {facts["bits"]} bits,
which ONNX Runtime 1.32 has. {_nearness(facts["check"], "Both round activations to int8, in their own ways.")}

{_about(source)}"""


def for_openvino(source: Source, facts: Mapping[str, Any]) -> str:
    """Writes the README of a folder for OpenVINO.

    Args:
        source: the model.
        facts: what the folder's export.json holds.
    """
    if "pixel_values" in facts["inputs"]:
        opened = """import openvino

model = openvino.Core().compile_model("openvino/openvino_model.xml", "CPU")"""
    else:
        opened = _in_sentence_transformers("openvino")
    rounds = "OpenVINO rounds activations to int8 in its own way, or not at all: the processor decides."
    return f"""{front_matter(source, "openvino")}# {source.name}

An encoder with ternary weights, for OpenVINO. `openvino/openvino_model.xml` {_gives(facts)}

```python
{opened}
```

Codes of weights have {facts["bits"]} bits, which the CPU plugin of OpenVINO 2026.4 multiplies as they are.
{_nearness(facts["check"], rounds)}

{_about(source)}"""


def for_gguf(source: Source, facts: Mapping[str, Any]) -> str:
    """Writes the README of a folder for llama.cpp.

    Args:
        source: the model.
        facts: what the folder's export.json holds.
    """
    found = facts["check"]
    if "unchecked" in found:
        near = f"It was not compared with the packed model: {found['unchecked']}."
    else:
        near = f"""In {found["runtime"]}, the vectors of {found["count"]} texts have a mean cosine of
{found["mean_cosine"]:.4f} to the packed model's, the lowest {found["lowest_cosine"]:.4f}. Both round activations to
int8, in their own ways."""
        if found["tokens_differ"]:
            near += f" **Its tokenizer makes other tokens of {found['tokens_differ']} of these texts.**"
    types = ", ".join(f"{count} `{kind}`" for kind, count in facts["linears"].items())
    normalised = "The model's vectors have length 1" if facts["normalised"] else "The model does not normalise vectors"
    prompts = "".join(f"- {name}: `{prompt}`\n" for name, prompt in facts["prompts"].items())
    asked = f"\nTexts need a prompt, which the program puts in front of them:\n\n{prompts}" if prompts else ""
    return f"""{front_matter(source, "gguf")}# {source.name}

An encoder of texts with ternary weights, for llama.cpp and programs on top of it.

```sh
llama-server -m {facts["file"]} --embeddings
```

```python
from llama_cpp import Llama

model = Llama("{facts["file"]}", embedding=True)
vectors = model.embed(["a text", "another one"], normalize={facts["normalised"]})
```

Its linears have the types {types}. Pooling is `{facts["pooling"]}`. {normalised}; normalising is left to the
program: llama-server does it, `Llama.embed` does it when asked. A text may have {facts["limit"]} tokens.
{asked}
{near}

{_about(source)}"""


def for_dense(source: Source, facts: Mapping[str, Any]) -> str:
    """Writes the README of a dense checkpoint.

    Args:
        source: the model.
        facts: what the folder's export.json holds.
    """
    costs = facts["rounding"]
    exact = "exactly" if not costs["linears"] else f"rounded by {costs['linears']:.2%} of their length at most"
    others = "Everything else is as it was" if not costs["others"] else "Other tensors are rounded"
    if costs["others"]:
        others += f" by {costs['others']:.2%} at most"
    return f"""{front_matter(source)}# {source.name}

An encoder with ternary weights, multiplied out to {facts["dtype"]}: an ordinary checkpoint of transformers, for tools
that know nothing of ternary weights. Its linears have the packed model's values {exact}.
{others}. Activations are not rounded, as if it had been converted with `--activations 16`.

{_opened(facts)}

{_about(source)}"""


def for_compressed_tensors(source: Source, facts: Mapping[str, Any]) -> str:
    """Writes the README of a checkpoint for compressed-tensors.

    Args:
        source: the model.
        facts: what the folder's export.json holds.
    """
    scales = "a row" if facts["group_size"] is None else f"{facts['group_size']} inputs"
    return f"""{front_matter(source, "compressed-tensors")}# {source.name}

An encoder with ternary weights, for transformers with the library compressed-tensors
(`pip install compressed-tensors`). Its linears are integers of {facts["bits"]} bits (`pack-quantized`) with a scale
for {scales}: the packed model's values, exactly. Embedding tables are float16. Activations are not rounded, as if the
model had been converted with `--activations 16`. The library expands the codes when the model is loaded.

{_opened(facts)}

{_about(source)}"""


def _opened(facts: Mapping[str, Any]) -> str:
    """Shows how a checkpoint is opened, and what its check has found."""
    found = facts["check"]
    if "unchecked" in found:
        near = f"It was not compared with the packed model: {found['unchecked']}."
    else:
        near = f"""In {found["runtime"]}, {found["count"]} {found["inputs"]} have a mean cosine of
{found["mean_cosine"]:.4f} to the packed model with activations as they are, the lowest {found["lowest_cosine"]:.4f}."""
    return f"""```python
from transformers import AutoModel

model = AutoModel.from_pretrained(FOLDER)
```

sentence-transformers opens the folder, too, if it has modules.json. {near}"""


def _in_sentence_transformers(backend: str) -> str:
    return f"""from sentence_transformers import SentenceTransformer

model = SentenceTransformer(FOLDER, backend="{backend}")"""


def _gives(facts: Mapping[str, Any]) -> str:
    given, made = (", ".join(f"`{name}`" for name in facts[key]) for key in ("inputs", "outputs"))
    return f"takes {given}\nand gives {made}."


def _nearness(found: Mapping[str, Any], rounds: str) -> str:
    """Says what the check has found; `rounds` says why vectors differ."""
    if "unchecked" in found:
        return f"It was not compared with the packed model: {found['unchecked']}."
    return f"""In {found["runtime"]}, the vectors of {found["count"]} {found["inputs"]} have a mean cosine of
{found["mean_cosine"]:.4f} to the packed model's, the lowest {found["lowest_cosine"]:.4f}. {rounds}"""


def _about(source: Source) -> str:
    licence = source.licence or "not stated in the model's card"
    return f"""Licence of the model: {licence}. The code that runs it is ternarize's, under the MIT License, whose text
is in `{OURS}`.

Content hash, as `ternarize inspect` prints it for the packed model:
`{source.digest}`. Made by ternarize {__version__}.
"""
