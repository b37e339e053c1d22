"""Chooses the files of a folder that go onto the hub, and refuses a folder that holds anything else.

What was uploaded once can be downloaded for ever, so nothing goes along by accident. A folder is a packed model or a
ternary checkpoint, whose files are checked as before they are opened (`checkpoint.validate`), or an export with
export.json, by whose digests they are checked (`export_folder`). Every file in it must be known:

    model_files             configs, tokenizer, weights, modules
    cards                   README.md, licences, recipe.toml, distillation.json, metrics.jsonl, pictures
    of exports              export.json, *.onnx, *.gguf, and *.xml with its *.bin
"""

import os
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from ternarize_cli.encoders import checkpoint
from ternarize_cli.errors import CheckpointError, InputError, quoted
from ternarize_cli.export.export_folder import EXPORT, check_digests
from ternarize_cli.model_folder.model_files import contained, model_files
from ternarize_cli.storage.bounds import require_regular

__all__ = ["contents_of"]

_CARDS = (
    *("README.md", "LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "recipe.toml", "distillation.json", "metrics.jsonl"),
    *("*.png", "*.jpg", "*.svg", "*.webp"),
)
_OF_EXPORTS = (EXPORT, "*.onnx", "*.onnx_data", "*.gguf", "*.xml")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
_TEXTS = (".md", ".json", ".jsonl", ".toml", ".txt", ".svg")
_LONGEST_TEXT = 4 << 20
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")


def contents_of(folder: Path) -> Mapping[str, Path]:
    """Checks a folder, and lists its files by their paths in the repository, sorted.

    Args:
        folder: a packed model, a ternary checkpoint, or an export.

    Raises:
        CheckpointError: the folder is none of these; a file is damaged, or is a link to a place outside.
        InputError: the folder holds a pickle, a hidden file, an access token, or a file of another kind; or it is an
            export as a wheel or for C.
    """
    is_export = (folder / EXPORT).is_file()
    if not is_export:
        _check_model(folder)
    known = {name for name in model_files(folder) if not name.endswith(_PICKLES)}
    names = dict.fromkeys(sorted(_below(folder)))
    for name in names:
        path = folder / name
        if not contained(folder, path):
            raise CheckpointError(
                f"{path} is a link to a place outside the folder, and is not uploaded",
                hint=f"if it belongs to the model, publish a copy: cp -rL {quoted(folder)} COPY",
            )
        require_regular(path)
        if any(part.startswith(".") for part in Path(name).parts):
            raise InputError(f"{path} is hidden, and does not belong to a model", hint=f"remove {quoted(path)}")
        _check_kind(path, name in known, is_export=is_export)
        _check_token(path)
    if is_export:
        check_digests(folder, names)
    return {name: folder / name for name in names}


def _check_model(folder: Path) -> None:
    """Checks a folder without export.json.

    Raises:
        CheckpointError: it is no model that ternarize made, or a file of it is damaged.
        InputError: it holds wheels, or is an export for C.
    """
    if any(folder.glob("*.whl")):
        raise InputError(
            f"{folder} holds wheels, which belong into a package index: the hub offers no model in them",
            hint=f"twine upload {quoted(folder)}/*.whl; publish the packed model that they were made from",
        )
    if (folder / "ternarize.h").is_file():
        raise InputError(
            f"{folder} is an export for C, with a library for one platform, which nobody should load from the hub",
            hint="publish the packed model that it was made from; ternarize export --to c makes the folder again",
        )
    if not (folder / "config.json").is_file() or checkpoint.artifact_of(folder) is None:
        raise CheckpointError(
            f"{folder} is neither a model that ternarize made nor an export with {EXPORT}",
            hint="publish a folder that compress, convert, distill, pack or export wrote",
        )
    checkpoint.validate(folder, always_verify=True)


def _below(folder: Path) -> Iterator[str]:
    """Yields the relative paths of all files below a folder; links to folders count as files."""
    for where, folders, names in os.walk(folder):
        links = [name for name in folders if Path(where, name).is_symlink()]
        for name in (*names, *links):
            yield Path(where, name).relative_to(folder).as_posix()


def _check_kind(path: Path, is_of_model: bool, *, is_export: bool) -> None:
    allowed = (*_CARDS, *_OF_EXPORTS) if is_export else _CARDS
    if is_of_model or any(fnmatchcase(path.name, pattern) for pattern in allowed):
        return
    if is_export and path.suffix == ".bin" and path.with_suffix(".xml").is_file():
        return  # the weights of a model of OpenVINO
    if path.suffix in _PICKLES:
        raise InputError(f"{path} is a pickle, which can run code where it is loaded", hint=f"remove {quoted(path)}")
    raise InputError(
        f"{path} is no file that a model or an export of ternarize has", hint=f"move {quoted(path)} elsewhere"
    )


def _check_token(path: Path) -> None:
    """Checks that a text holds no access token of the hub."""
    if path.suffix not in _TEXTS or path.stat().st_size > _LONGEST_TEXT:
        return
    if _TOKEN.search(path.read_bytes()):
        raise InputError(f"{path} holds an access token of the hub", hint="remove it, and revoke the token")
