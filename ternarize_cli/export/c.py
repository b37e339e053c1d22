"""The format c: a folder with a C header, a library that runs by itself, and the weights of a text encoder.

    ternarize.h        the functions of the library
    libternarize.so    the library (macOS: libternarize.dylib)
    model.tz           the weights, in the library's layout (weights_file.py)
    tokenizer.json     the tokenizer, for the program that makes ids of texts
    example.c          a program that encodes ids
    config.json        sizes, pooling and prompts, for programs

A program gives ids of tokens and gets vectors, which equal those of `ternarize_cli.runtime` on this processor bit for
bit; with a module Dense that has a tanh, up to its last bits.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from ternarize_cli.errors import UnavailableError, quoted
from ternarize_cli.export import card
from ternarize_cli.export.formats import Export, register
from ternarize_cli.export.libraries import find_library, parse_platform
from ternarize_cli.export.options import ExportOptions
from ternarize_cli.export.source import Source
from ternarize_cli.export.weights_file import write_weights
from ternarize_cli.format.block import Block
from ternarize_cli.model_folder.model_kind import require_kind
from ternarize_cli.runtime import native
from ternarize_cli.runtime.blocks import Blocks, norm_weights
from ternarize_cli.runtime.encoder import Encoder
from ternarize_cli.runtime.modules import read_modules
from ternarize_cli.runtime.native.library import library
from ternarize_cli.runtime.packed_file import FileSource
from ternarize_cli.runtime.positions import rotary_turns
from ternarize_cli.runtime.text_blocks import open_text
from ternarize_cli.storage.files import atomic_folder

__all__ = ["C", "weights_of"]

_WHEEL = "ternarize export --to wheel"
_MOST_POSITIONS = 1 << 15
"""The most tokens of a text whose rotary cosines and sines are written; a model that reads more reads so many in C."""


@register
class C:
    """Writes a folder for programs in C, and in languages that call C."""

    name = "c"
    options = frozenset({"platform", "library"})

    def write(self, source: Source, output: Path, options: ExportOptions, *, force: bool) -> Export:
        """Writes the folder.

        Raises:
            UnavailableError: the model is no text encoder that the runtime runs, or there is no library for the
                platform.
            OutputError, OutputExistsError: the output can't be written, or exists and `force` is false.
        """
        require_kind(source.folder, "encoder")
        platform = parse_platform(options.platform)
        code = find_library(platform, options.library)
        named = "libternarize.dylib" if platform.system == "macosx" else "libternarize.so"
        encoder = Encoder(source.folder)
        weights, limit = weights_of(encoder, source.artifact.block[""])
        facts = _facts(source, encoder, limit)
        with atomic_folder(output, force=force, inputs=[source.folder]) as folder:
            (folder / "model.tz").write_bytes(weights)
            (folder / named).write_bytes(code)
            (folder / named).chmod(0o755)
            (folder / "ternarize.h").write_bytes(_header().read_bytes())
            shutil.copyfile(Path(__file__).with_name("example.c"), folder / "example.c")
            shutil.copyfile(source.files()["tokenizer.json"], folder / "tokenizer.json")
            (folder / "config.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", "utf-8")
            (folder / "README.md").write_text(card.for_c(source, facts, named), "utf-8")
            for path in card.licence_files(source.folder):
                shutil.copyfile(path, folder / path.name)
        files = {path: path.stat().st_size for path in sorted(output.iterdir())}
        compiled = "cc example.c -L. -lternarize -Wl,-rpath,'$ORIGIN' -o example"
        return Export(files, f"cd {quoted(output)} && {compiled}", facts)


def weights_of(encoder: Encoder, block: Block) -> tuple[bytes, int]:
    """Makes the file of weights of a text encoder.

    Args:
        encoder: the encoder.
        block: the description of its blocks.

    Returns:
        The content of the file, and the most tokens of a text.

    Raises:
        UnavailableError: the encoder reads something other than texts, or leaves the tokens of prompts out of pooling.
    """
    given = block.embeddings
    if given is None or encoder.reads != {"text"}:
        raise UnavailableError(
            f"{encoder.folder} reads more than texts, and --to c writes text encoders only", hint=_WHEEL
        )
    modules = read_modules(encoder.folder)
    if modules.pooling is not None and not modules.pooling.includes_prompt and any(modules.prompts.values()):
        raise UnavailableError(
            f"{encoder.folder} leaves the tokens of prompts out of pooling, which the functions for C don't know",
            hint=_WHEEL,
        )
    file = open_text(encoder.folder).file
    source = FileSource(file, block)
    turned = any(kind.rotary is not None for kind in block.kinds)
    limit = min(encoder.limit, _MOST_POSITIONS) if turned else encoder.limit
    turns = [None if kind.rotary is None else rotary_turns(kind.rotary, limit) for kind in block.kinds]
    prepared = Blocks(library(), source).prepared(turns, limit)
    names = [name for name in (given.words, given.types, given.positions) if name is not None]
    tables = [file.table(name, block.width) for name in names]
    embedded = norm_weights(source, None, "embeddings", block.width)
    return write_weights(prepared, block, tables, embedded, modules, encoder.dim), limit


def _facts(source: Source, encoder: Encoder, limit: int) -> dict[str, Any]:
    return {
        "name": source.name,
        "dimensions": encoder.dim,
        "limit": limit,
        "prompts": dict(encoder.prompts),
        "default_prompt_name": encoder.default_prompt_name,
        "similarity": encoder.similarity,
        "license": source.licence,
        "content_hash": source.digest,
    }


def _header() -> Path:
    found = (Path(folder) / "ternarize.h" for folder in native.__path__)
    return next(path for path in found if path.is_file())
