"""The format c: a folder with a C header, a library that runs by itself, and the weights of a text encoder.

    ternarize.h        the functions of the library
    libternarize.so    the library (macOS: libternarize.dylib)
    model.tz           the weights, in the library's layout (weights_file.py)
    tokenizer.json     the tokenizer as the runtime sets it, for the program that makes ids of texts
    example.c          a program that encodes ids
    config.json        sizes and prompts, for programs
    LICENSE…           the licences of the model and of ternarize

A program gives ids of tokens and gets vectors, which equal those of `ternarize_cli.runtime` on this processor bit for
bit; with a module Dense that has a tanh, up to its last bits.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ternarize_cli.errors import UnavailableError, quoted
from ternarize_cli.export import card
from ternarize_cli.export.formats import Export, register
from ternarize_cli.export.libraries import find_library, parse_platform
from ternarize_cli.export.licences import licence_texts
from ternarize_cli.export.options import ExportOptions
from ternarize_cli.export.source import Source
from ternarize_cli.export.weights_file import write_weights
from ternarize_cli.format.block import Block
from ternarize_cli.model_folder.model_kind import kind_of, require_kind
from ternarize_cli.runtime import native
from ternarize_cli.runtime.blocks import Blocks, norm_weights
from ternarize_cli.runtime.encoder import Encoder
from ternarize_cli.runtime.modules import read_modules
from ternarize_cli.runtime.native.library import library
from ternarize_cli.runtime.packed_file import FileSource, PackedFile, packed_artifact
from ternarize_cli.runtime.positions import rotary_turns
from ternarize_cli.runtime.tensor_file import open_tensors
from ternarize_cli.runtime.tokenizing import TextTokenizer, read_tokenizer
from ternarize_cli.runtime.transformer_settings import read_settings
from ternarize_cli.storage.bounds import read_object
from ternarize_cli.storage.files import atomic_folder, check_output

__all__ = ["C", "weights_of"]

_MOST_POSITIONS = 1 << 15
"""The most tokens of a text whose rotary cosines and sines are written; a model that reads more reads so many in C."""


_PROMPTED = """A prompt is left to the program: `config.json` lists the prompts, and one is put in front of a text
before the text is tokenised. `default_prompt_name` there names the one for texts of no special kind; null: none.
"""
_BARE = "The model has no prompts: a text is tokenised as it is.\n"
_SPLITS = """This model reads a special token in a text, such as `[SEP]`, as plain text. The file can't say so: set
`encode_special_tokens` of the tokenizer to true.
"""


@register
class C:
    """Writes a folder for programs in C, and in languages that call C."""

    name = "c"
    options = frozenset({"platform", "library"})

    def write(
        self, source: Source, output: Path, options: ExportOptions, *, force: bool, say: Callable[[str], None]
    ) -> Export:
        """Writes the folder.

        Args:
            source: the model.
            output: the folder to write.
            options: the options, of which only the platform and its library may be set.
            force: replace a folder that exists.
            say: is told what is written when all arguments have been checked.

        Raises:
            InputError: there is no such platform, or the library is another's.
            CheckpointError: a file is damaged, or is a link to a place outside the model's folder.
            UnavailableError: the model is no text encoder that the runtime runs, or there is no library for the
                platform.
            OutputError, OutputExistsError: the output can't be written, or exists and `force` is false.
        """
        _check_head(source.folder)
        source.files()  # raises if a file is a link to a place outside the folder
        platform = parse_platform(options.platform)
        code = find_library(platform, options.library)
        named = "libternarize.dylib" if platform.system == "macosx" else "libternarize.so"
        licences = licence_texts(source.folder)
        check_output(output, force=force, inputs=[source.folder])
        encoder = Encoder(source.folder)
        _check_parts(encoder)
        weights, limit = weights_of(encoder, source.artifact.block[""])
        config = read_object(source.folder / "config.json")
        tokenizer = read_tokenizer(source.folder, config, read_settings(source.folder, config), limit)
        facts = _facts(source, encoder, tokenizer)
        say(f"writing {output} …")
        with atomic_folder(output, force=force, inputs=[source.folder]) as folder:
            (folder / "model.tz").write_bytes(weights)
            (folder / named).write_bytes(code)
            (folder / named).chmod(0o755)
            (folder / "ternarize.h").write_bytes(_header().read_bytes())
            shutil.copyfile(Path(__file__).with_name("example.c"), folder / "example.c")
            (folder / "tokenizer.json").write_text(tokenizer.definition(), "utf-8")
            (folder / "config.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", "utf-8")
            (folder / "README.md").write_text(_readme(source, facts, named), "utf-8")
            for name, text in licences.items():
                (folder / name).write_bytes(text)
        files = {path: path.stat().st_size for path in sorted(output.iterdir())}
        compiled = "cc example.c -L. -lternarize -Wl,-rpath,'$ORIGIN' -o example"
        return Export(files, f"cd {quoted(output)} && {compiled}", facts)


def weights_of(encoder: Encoder, block: Block) -> tuple[bytes, int]:
    """Makes the file of weights of a text encoder.

    Args:
        encoder: the encoder, which reads texts only.
        block: the description of its blocks.

    Returns:
        The content of the file, and the most tokens of a text.
    """
    given, folder = block.embeddings, encoder.folder
    assert given is not None
    described = read_object(folder / "config.json")["quantization_config"]
    file = PackedFile(open_tensors(folder), packed_artifact(described, str(folder)))
    source = FileSource(file, block)
    turned = any(kind.rotary is not None for kind in block.kinds)
    limit = min(encoder.limit, _MOST_POSITIONS) if turned else encoder.limit
    turns = [None if kind.rotary is None else rotary_turns(kind.rotary, limit) for kind in block.kinds]
    prepared = Blocks(library(), source).prepared(turns, limit)
    names = [name for name in (given.words, given.types, given.positions) if name is not None]
    tables = [file.table(name, block.width) for name in names]
    embedded = norm_weights(source, None, "embeddings", block.width)
    return write_weights(prepared, block, tables, embedded, read_modules(folder), encoder.dim), limit


def _check_head(folder: Path) -> None:
    """Checks that a model has no head that gives scores.

    Raises:
        UnavailableError: the model has a head that gives scores.
        CheckpointError: the model is a sparse encoder, or a config is damaged.
    """
    if kind_of(folder) == "cross-encoder":
        raise UnavailableError(
            f"{folder} has a head that gives scores, and --to c writes encoders of texts only", hint=_as_wheel(folder)
        )
    require_kind(folder, "encoder")


def _check_parts(encoder: Encoder) -> None:
    """Checks that an encoder does nothing that the functions for C don't know.

    Raises:
        UnavailableError: the encoder reads images, or leaves the tokens of prompts out of pooling.
    """
    folder = encoder.folder
    if encoder.reads != {"text"}:
        raise UnavailableError(
            f"{folder} reads images, and --to c writes encoders of texts only", hint=_as_wheel(folder)
        )
    pooling = read_modules(folder).pooling
    if pooling is not None and not pooling.includes_prompt and any(encoder.prompts.values()):
        raise UnavailableError(
            f"{folder} leaves the tokens of prompts out of pooling, which the functions for C don't know",
            hint=_as_wheel(folder),
        )


def _as_wheel(folder: Path) -> str:
    return f"ternarize export {quoted(folder)} --to wheel"


def _facts(source: Source, encoder: Encoder, tokenizer: TextTokenizer) -> dict[str, Any]:
    return {
        "name": source.name,
        "dimensions": encoder.dim,
        "limit": tokenizer.limit,
        "split_special_tokens": _splits(tokenizer),
        "prompts": dict(encoder.prompts),
        "default_prompt_name": encoder.default_prompt_name,
        "similarity": encoder.similarity,
        "license": source.licence,
        "content_hash": source.digest,
    }


def _splits(tokenizer: TextTokenizer) -> bool:
    """Returns whether special tokens that are written in a text are read as plain text, which no file can say."""
    made = Tokenizer.from_str(tokenizer.definition())
    special = [token.content for token in made.get_added_tokens_decoder().values() if token.special]
    return [text.ids for text in tokenizer(special)] != [text.ids for text in made.encode_batch(special)]


def _header() -> Path:
    found = (Path(folder) / "ternarize.h" for folder in native.__path__)
    return next(path for path in found if path.is_file())


def _readme(source: Source, facts: Mapping[str, Any], named: str) -> str:
    """Writes the README of a folder for C.

    Args:
        source: the model.
        facts: what the folder's config.json holds.
        named: the name of the library's file.
    """
    return f"""# {source.name}

An encoder of texts with {source.weights}, for programs in C: ids of tokens to vectors of {facts["dimensions"]} floats.

```sh
cc example.c -L. -lternarize -Wl,-rpath,'$ORIGIN' -o example
echo "101 7592 102" | ./example model.tz
```

`ternarize.h` describes the functions of `{named}`, which needs the C library and nothing else.
`model.tz` holds the weights.

`tokenizer.json` makes ids of texts, with the library tokenizers or another that reads such files. It adds special
tokens, pads nothing, and cuts a text to the {facts["limit"]:,} tokens that the model reads, special tokens included.
{_SPLITS if facts["split_special_tokens"] else ""}{_PROMPTED if any(facts["prompts"].values()) else _BARE}
{card.about(source)}"""
