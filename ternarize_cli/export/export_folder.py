"""What the folder of an export ends with: README.md, the licences, and export.json.

export.json says what was written, with which versions, what `--check` has measured, and under `digests` the sha256 of
every other file but README.md, whose text its owner may change. By these digests a damaged export is known, since the
formats of others have no place for ours.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ternarize_cli.errors import CheckpointError, quoted, shown
from ternarize_cli.storage.bounds import read_object
from ternarize_cli.storage.digests import sha256

__all__ = ["EXPORT", "README", "check_digests", "complete"]

EXPORT = "export.json"
README = "README.md"
_AGAIN = "export the model again"
_READ = (".onnx", ".onnx_data", ".xml", ".bin", ".gguf", ".safetensors", ".json", ".txt", ".model")
"""Endings of the files that a runtime, or a library on top of it, may read."""


def complete(folder: Path, facts: Mapping[str, Any], readme: str, licences: Mapping[str, bytes]) -> dict[str, Any]:
    """Writes the last files of an export.

    Args:
        folder: the folder, which has all other files by now.
        facts: what export.json says, with values of JSON.
        readme: the text of README.md.
        licences: the licences by the names of their files.

    Returns:
        The facts, with the digests.
    """
    for name, text in licences.items():
        (folder / name).write_bytes(text)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    facts = {**facts, "digests": {name: sha256(folder / name) for name in names}}
    (folder / EXPORT).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (folder / README).write_text(readme, "utf-8")
    return facts


def check_digests(folder: Path, names: Collection[str]) -> None:
    """Compares the files of an export with the digests in its export.json.

    Args:
        folder: the folder of the export.
        names: the relative paths of the files in it, which must be regular files.

    Raises:
        CheckpointError: export.json is damaged or has no digests; or a file is missing, is not the one that was
            written, or was added to those that runtimes read.
    """
    digests = read_object(folder / EXPORT).get("digests")
    if not isinstance(digests, dict) or not digests:
        raise CheckpointError(f"{folder / EXPORT} has no digests of the files beside it", hint=_AGAIN)
    if missing := sorted(digests.keys() - set(names)):
        raise CheckpointError(f"{folder} lacks {shown(missing[0])}, which {EXPORT} lists", hint=_AGAIN)
    for name in names:
        path = folder / name
        if name in digests and sha256(path) != digests[name]:
            raise CheckpointError(f"{path} is damaged or was changed: its sha256 is not that in {EXPORT}", hint=_AGAIN)
        if name not in digests and path.suffix in _READ and name != EXPORT:
            raise CheckpointError(f"{path} was added after the export", hint=f"remove {quoted(path)}, or {_AGAIN}")
