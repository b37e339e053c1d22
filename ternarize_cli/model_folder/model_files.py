"""Tells the files that belong to a model from other files in its folder.

    configs       config.json, modules.json, sentence_bert_config.json, config_sentence_transformers.json, …
    tokenizer     tokenizer.json, vocab.txt, merges.txt, *.model, …: the names that transformers' tokenizers read
    processor     preprocessor_config.json, processor_config.json, chat templates
    weights       model.safetensors, its shards and their index; pytorch_model.bin and its shards
    modules       the folders that modules.json names, with the files in them
    cards         README.md, licences, and the record of a distillation: copied, without effect on the model

Only these files are copied into a checkpoint or a packed model, and its digest covers all but the cards (`integrity`).
Other files of a folder are not copied.

A file is copied through a link only from the same folder, or, where the folder is in a snapshot of a hub cache, from
the blobs of that cache. Folders that are links are not entered.
"""

import os
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from ternarize_cli.errors import CheckpointError, named, quoted, shown
from ternarize_cli.storage.bounds import MAX_TOKENIZER, read_json, require_regular
from ternarize_cli.storage.views import origin

__all__ = ["contained", "copy_companions", "is_snapshot", "model_files", "module_folders"]

_CONFIGS = (
    *("config.json", "modules.json", "config_sentence_transformers.json", "sentence_*_config.json"),
    "generation_config.json",
)
_PROCESSOR = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "chat_template.*")
_TOKENIZER = (
    *(
        "tokenizer.json",
        "tokenizer.*.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "merges.txt",
    ),
    *("vocab*.txt", "vocab*.json", "*_vocab.json", "*.model", "*.spm", "*.tiktoken", "tekken.json", "bpe.codes"),
    *("dict.txt", "byte_maps.json", "emoji.json", "normalizer.json", "prophetnet.tokenizer", "word_*.json"),
)
_WEIGHTS = (
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json"),
)
_CARDS = ("README.md", "LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "distillation.json", "metrics.jsonl")
_MODULE = ("*.json", "*.txt", "*.model", "*.safetensors", "pytorch_model*.bin", "*.npz")
_TEMPLATES = ("chat_templates", "additional_chat_templates")
_DEEP = 3
"""The most levels of folders below a module's folder that are searched."""
_MOST = 10_000
"""The most files of a model."""


def module_folders(folder: Path) -> list[str]:
    """Lists the subfolders that modules.json names, each once, as relative paths; empty if there is no modules.json.

    Raises:
        CheckpointError: modules.json is damaged, or an entry lacks its path or type, or names a folder outside the
            model's.
    """
    path = folder / "modules.json"
    if not os.path.lexists(path):
        return []
    listed = read_json(path)
    if not isinstance(listed, list) or not all(isinstance(m, dict) for m in listed):
        raise CheckpointError(f"{path} is no list of modules", hint="fetch the file again")
    found: dict[str, None] = {}
    for number, module in enumerate(listed, start=1):
        for key in ("path", "type"):
            if key not in module:
                name = f" ({named(str(module['name']))})" if "name" in module else ""
                raise CheckpointError(
                    f'{path}: entry {number}{name} has no "{key}"',
                    hint="fetch the file again; each module has idx, name, path and type",
                )
        where = module["path"]
        if not isinstance(where, str) or not _stays_inside(where):
            raise CheckpointError(
                f"{path} names the folder {shown(where)}, which is not inside the model's folder",
                hint="fetch the whole model again; the paths of modules are relative, without ..",
            )
        if PurePosixPath(where).parts:
            found[str(PurePosixPath(where))] = None
    return list(found)


def _stays_inside(where: str) -> bool:
    """Whether a relative path stays inside the folder that it is relative to."""
    parts = PurePosixPath(where).parts
    return not where.startswith("/") and ".." not in parts and "\0" not in where and "\\" not in where


def model_files(folder: Path) -> list[str]:
    """Lists the files that decide what a model computes, as sorted relative paths with `/`, without the cards.

    Raises:
        CheckpointError: modules.json is damaged or names a folder that is a link or outside the model's; a file of the
            model is a pipe, a device or a socket.
    """
    return sorted(_found(folder, (*_CONFIGS, *_PROCESSOR, *_TOKENIZER, *_WEIGHTS)))


def copy_companions(source: Path, folder: Path) -> None:
    """Copies a model's files, except the encoder's config and weights. Copies contents only, no file modes.

    Pickled weights of modules, and files that do not belong to the model, are not copied.

    Args:
        source: a model folder.
        folder: an existing folder for the copies, which holds none of them yet.

    Raises:
        CheckpointError: a file of the model is a link to a place outside the folder, or is no regular file.
    """
    for name in sorted({*_found(source, (*_CONFIGS, *_PROCESSOR, *_TOKENIZER)), *_cards(source)}):
        if name == "config.json" or name.endswith((".bin", ".bin.index.json")):
            continue
        path = source / name
        if not contained(source, path):
            raise CheckpointError(
                f"{path} is a link to a place outside the model's folder, and is not copied",
                hint=f"if you trust it, use a copy with the files themselves: cp -rL {quoted(source)} COPY",
            )
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as stream, target.open("xb") as copy:
            while chunk := stream.read(1 << 20):
                copy.write(chunk)
    for where in module_folders(source):  # modules without files, such as Normalize, have a folder too
        (folder / where).mkdir(parents=True, exist_ok=True)


def is_snapshot(folder: Path) -> bool:
    """Whether a folder is in a snapshot of a hub cache, where files are links to blobs and some may be missing."""
    return _blobs(folder) is not None


def _blobs(folder: Path) -> Path | None:
    """Finds the folder of blobs of a snapshot: MODEL/blobs for MODEL/snapshots/REVISION/…."""
    for parent in origin(folder).parents:
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            return parent.parent / "blobs"
    return None


def _found(folder: Path, patterns: tuple[str, ...]) -> Iterator[str]:
    """Yields the files of a model folder and its modules whose names match `patterns`, and chat templates."""
    names = [*_entries(folder, "", patterns), *_of_modules(folder)]
    if len(names) > _MOST:
        raise CheckpointError(
            f"{folder} holds more than {_MOST:,} files of a model", hint="check that this is a model folder"
        )
    for name in names:
        require_regular(folder / name)
        yield name


def _of_modules(folder: Path) -> Iterator[str]:
    for where in _TEMPLATES:
        if _is_folder(folder / where):
            yield from _entries(folder, where, ("*.jinja",))
    for where in module_folders(folder):
        path = folder
        for part in PurePosixPath(where).parts:
            path = path / part
            if path.is_symlink():
                raise CheckpointError(
                    f"{path} is a link, where a module's folder belongs", hint="fetch the model again"
                )
        yield from _below(folder, where, _DEEP)


def _below(folder: Path, where: str, levels: int) -> Iterator[str]:
    if not _is_folder(folder / where):
        return
    yield from _entries(folder, where, _MODULE)
    if levels:
        for name in sorted(os.listdir(folder / where)):
            if not name.startswith("."):
                yield from _below(folder, f"{where}/{name}", levels - 1)


def _entries(folder: Path, where: str, patterns: tuple[str, ...]) -> Iterator[str]:
    """Yields names of files that match a pattern, with `where/` in front; leaves out folders and broken links."""
    prefix = f"{where}/" if where else ""
    for name in sorted(os.listdir(folder / where)):
        matching = not name.startswith(".") and any(fnmatchcase(name, pattern) for pattern in patterns)
        if matching and not os.path.isdir(path := folder / where / name) and os.path.exists(path):
            yield prefix + name


def _cards(folder: Path) -> Iterator[str]:
    """Yields cards that are regular files of at most MAX_TOKENIZER bytes in the folder."""
    for name in _entries(folder, "", _CARDS):
        path = folder / name
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_TOKENIZER and contained(folder, path):
            yield name


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder, and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def contained(folder: Path, path: Path) -> bool:
    """Whether a path leads to a file in the folder, or to a blob of the hub cache in which the folder is a snapshot.

    For a view (`storage.views`), files in the folder that it shows count, too.
    """
    target = path.resolve()
    allowed = (folder.resolve(), origin(folder), _blobs(folder))
    return any(place in target.parents for place in allowed if place is not None)
