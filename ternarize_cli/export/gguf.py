"""The format gguf: a folder with a model for llama.cpp and what is built on it, such as Ollama and LM Studio.

    NAME.gguf       the model, with its tokenizer and pooling
    export.json     what was written, with which versions, and what `--check` has measured
    README.md       how it is used, and which prompts its texts need
    LICENSE…        the licences of the model and of ternarize

Weights are the packed model's, exactly (`gguf_blocks`). llama.cpp rounds activations to int8 in its own way: for every
32 inputs, or for every 256 in products with TQ2_0. Its GELU is the approximation by tanh.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ternarize_cli import __version__
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.encoders.modalities import modalities_of
from ternarize_cli.errors import InputError, UnavailableError
from ternarize_cli.export import card, check
from ternarize_cli.export.companions import check_encoder
from ternarize_cli.export.export_folder import complete
from ternarize_cli.export.formats import Export, register
from ternarize_cli.export.gguf_architectures import architecture_of, refuse
from ternarize_cli.export.gguf_runtime import LlamaModel
from ternarize_cli.export.gguf_tensors import writer_of
from ternarize_cli.export.gguf_vocabulary import add_vocabulary
from ternarize_cli.export.licences import licence_texts
from ternarize_cli.export.options import ExportOptions
from ternarize_cli.export.source import Source
from ternarize_cli.model_folder.model_kind import require_kind
from ternarize_cli.storage.files import atomic_folder, check_output

__all__ = ["Gguf", "write_file"]

_RUNTIME, _MODULE = "llama-cpp-python", "llama_cpp"
_POOLING = {"mean": "MEAN", "cls": "CLS", "lasttoken": "LAST"}
"""The package's names of poolings, by those of sentence-transformers."""


@register
class Gguf:
    """Writes a folder for llama.cpp."""

    name = "gguf"
    options = frozenset({"bits", "check", "texts", "min_cosine"})

    def write(
        self, source: Source, output: Path, options: ExportOptions, *, force: bool, say: Callable[[str], None]
    ) -> Export:
        """Writes the folder.

        Args:
            source: the model.
            output: the folder to write.
            options: the options, of which only `bits` and those of the check may be set.
            force: replace a folder that exists.
            say: is told what is written when all arguments have been checked.

        Raises:
            InputError: an option has a value that can't be used, or the model gives no vectors.
            UnavailableError: llama.cpp can't run the model, the package gguf is not installed, or llama-cpp-python is
                not and `min_cosine` is set.
            OutputError, OutputExistsError: the output can't be written, or exists and `force` is false.
        """
        _check_options(options)
        require_kind(source.folder, "encoder")
        if modalities_of(source.folder) != {"text"}:
            raise refuse("it reads images, and a GGUF file is written of encoders of texts")
        source.files()  # raises if a file is a link to a place outside the folder
        texts, licences = check.texts_of(options, source.folder), licence_texts(source.folder)
        encoder: Any = load_encoder(source.folder, backend="reference", device="cpu")
        check_encoder(encoder, source.folder, "gguf", pooled=True)
        check_output(output, force=force, inputs=[source.folder])
        writer, types = _describe(source, encoder, options.bits)
        say(f"writing {output} …")
        if "Q4_0" in types and options.bits == 2:
            say(f"{types['Q4_0']} of {sum(types.values())} linears take 4 bits a weight: no type of 2 bits fits them")
        with atomic_folder(output, force=force, inputs=[source.folder]) as folder:
            path = folder / f"{source.name}.gguf"
            write_file(writer, path)
            facts = _facts(source, encoder, path, writer.arch, types)
            runtime = check.Runtime(
                _RUNTIME, partial(LlamaModel, path), "install a newer llama-cpp-python", module=_MODULE
            )
            facts["check"] = check.run_check(source.folder, runtime, texts, options, say)
            facts = complete(folder, facts, _readme(source, facts), licences)
        return check.exported(output, facts, options)


def write_file(writer: Any, path: Path) -> None:
    """Writes what a `gguf.GGUFWriter` holds.

    Raises:
        OSError: the file can't be written.
    """
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _check_options(options: ExportOptions) -> None:
    """Checks `bits`, and that the libraries that are needed are installed.

    Raises:
        InputError: `bits` is neither 2 nor 4.
        UnavailableError: a library is not installed.
    """
    if options.bits not in (2, 4):
        raise InputError(f"--bits {options.bits}: GGUF has types of 2 and of 4 bits for codes", hint="--bits 2")
    if find_spec("gguf") is None:
        raise UnavailableError("--to gguf needs the package gguf", hint="pip install 'ternarize-cli[gguf]'")
    if options.min_cosine is not None and find_spec(_MODULE) is None:
        raise UnavailableError(f"--min-cosine: {_RUNTIME} is not installed", hint=f"pip install {_RUNTIME}")


def _describe(source: Source, encoder: Any, bits: int) -> tuple[Any, dict[str, int]]:
    """Makes the writer of a model: its tensors, sizes, tokenizer and pooling; and counts the types of its linears.

    Raises:
        UnavailableError: llama.cpp can't run the model.
    """
    import gguf

    first, (pooling, behind) = encoder[0], _behind(encoder)
    architecture_of(first.auto_model.config)
    writer, types = writer_of(first.auto_model, bits=bits, behind=behind)
    if getattr(first, "do_lower_case", False) and not _lowers(first.tokenizer):
        raise refuse("its texts are lower-cased before they are tokenised (do_lower_case)")
    add_vocabulary(writer, first.tokenizer, first.auto_model.get_input_embeddings().weight.shape[0])
    writer.add_name(source.name)
    if source.licence is not None:
        writer.add_license(source.licence)
    writer.add_pooling_type(gguf.PoolingType[_POOLING[pooling]])
    return writer, types


def _lowers(tokenizer: Any) -> bool:
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer is not None and normalizer.normalize_str("A") == "a"


def _behind(encoder: Any) -> tuple[str, list[Any]]:
    """Returns the pooling of a model, and its modules Dense.

    Raises:
        UnavailableError: llama.cpp does not pool like that, or has no such module.
    """
    kinds = [type(module).__name__ for module in encoder][1:]
    if re.fullmatch("Pooling( Dense)*( Normalize)?", " ".join(kinds)) is None:
        raise refuse(f"its modules behind the transformer are {', '.join(kinds) or 'none'}")
    mode = encoder[1].pooling_mode
    if mode not in _POOLING:
        raise refuse(f"it pools by {mode}, and llama.cpp by {', '.join(_POOLING)}")
    return mode, [module for module in encoder if type(module).__name__ == "Dense"]


def _facts(source: Source, encoder: Any, path: Path, architecture: str, types: dict[str, int]) -> dict[str, Any]:
    return {
        "content_hash": source.digest,
        "file": path.name,
        "architecture": architecture,
        "pooling": encoder[1].pooling_mode,
        "normalised": any(type(module).__name__ == "Normalize" for module in encoder),
        "linears": types,
        "limit": encoder.max_seq_length,
        "prompts": {name: prompt for name, prompt in encoder.prompts.items() if prompt},
        "default_prompt_name": encoder.default_prompt_name,
        "versions": {"ternarize": __version__, "gguf": version("gguf")},
    }


def _readme(source: Source, facts: Mapping[str, Any]) -> str:
    """Writes the README of a folder for llama.cpp.

    Args:
        source: the model.
        facts: what the folder's export.json holds.
    """
    found = facts["check"]
    near = card.nearness(found, "Both round activations to int8, in their own ways.")
    if found.get("tokens_differ"):
        near += f" **Its tokenizer makes other tokens of {found['tokens_differ']} of these texts.**"
    types = ", ".join(f"{count} `{kind}`" for kind, count in facts["linears"].items())
    normalised = "The model's vectors have length 1" if facts["normalised"] else "The model does not normalise vectors"
    prompts = f"```json\n{json.dumps(facts['prompts'], indent=2)}\n```\n" if facts["prompts"] else ""
    asked = f"\nTexts need a prompt, which the program puts in front of them:\n\n{prompts}" if prompts else ""
    return f"""{card.front_matter(source, "gguf")}# {source.name}

An encoder of texts with {source.weights}, for llama.cpp and programs on top of it.

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

{card.about(source)}"""
