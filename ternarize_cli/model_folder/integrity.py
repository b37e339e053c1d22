"""The digest of a packed model, which shows that its files are still those that were packed.

Damage that breaks no syntax, such as a flipped bit in a scale, gives a model that runs and computes something else. So
`pack` writes into config.json, as `quantization_config.digest`, the sha256 of every file that decides what the model
computes (`model_files`), and the sha256 of config.json itself without this key:

    "digest": {"config": "9f86d0…", "files": {"1_Pooling/config.json": "60303a…", "model.safetensors": "fd61a0…", …}}

Opening the model computes these again, in one pass over its bytes. The digest shows damage, not forgery: whoever
changes a file can write a new digest. An author can publish the content hash that `ternarize inspect` prints.

A ternary checkpoint has no digest, since every `save_pretrained` of a training run would invalidate it. A packed model
that transformers saved again, or one of format version 1, has none either. These open with a note that they could not
be verified. TERNARIZE_VERIFY=0 skips the pass, with a note.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ternarize_cli.errors import CheckpointError, FormatError
from ternarize_cli.model_folder.model_files import is_snapshot, model_files
from ternarize_cli.storage.bounds import read_json
from ternarize_cli.storage.digests import json_digest, sha256

__all__ = ["note_once", "seal", "state_of", "verify", "verifying"]

_CONFIG = "config.json"
_verified: dict[Path, object] = {}
_noted: set[str] = set()


def verifying() -> bool:
    """Whether digests are verified; they are unless the environment variable TERNARIZE_VERIFY is 0."""
    return os.environ.get("TERNARIZE_VERIFY", "1") != "0"


def note_once(text: str, *, kind: str | None = None) -> None:
    """Logs a warning of this package, each text once a process. It goes to stderr if logging is not configured.

    Args:
        text: the warning.
        kind: the warning is logged only if none with this kind was; None compares the texts.
    """
    if (kind or text) not in _noted:
        _noted.add(kind or text)
        logging.getLogger("ternarize_cli").warning("note: %s", text)


def seal(folder: Path) -> None:
    """Writes the digest of a packed model into its config.json. Call it when all files of the model are in place."""
    path = folder / _CONFIG
    config = read_json(path)
    config["quantization_config"].pop("digest", None)
    files = {name: sha256(folder / name) for name in model_files(folder) if name != _CONFIG}
    config["quantization_config"]["digest"] = {"config": json_digest(config), "files": files}
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def verify(folder: Path, *, always: bool = False) -> None:
    """Compares the files of a packed model with its digest.

    A folder that was verified in this process and has not been written to since is not read again.

    Args:
        folder: a packed model.
        always: verify even if TERNARIZE_VERIFY is 0.

    Raises:
        FormatError: a file has changed, is missing, or was added; the message names it. Files may be missing from a
            snapshot in a hub cache, which holds only the files that were downloaded.
    """
    if not always and not verifying():
        note_once(f"{folder} is opened without verifying its digest (TERNARIZE_VERIFY=0)")
        return
    config = read_json(folder / _CONFIG)
    digest = config["quantization_config"].pop("digest", None)
    if digest is None:
        note_once(
            f"{folder} has no digest (an earlier version packed it, or another tool saved it again), so it is opened "
            "unverified; `ternarize pack` of its checkpoint writes a digest"
        )
        return
    wanted = _parsed(digest, folder)
    names = [name for name in model_files(folder) if name != _CONFIG]
    state = [(name, state_of(folder / name)) for name in [_CONFIG, *names]]
    if _verified.get(folder.resolve()) == state:
        return
    hint = "if it is damaged, fetch it again; to change it, change the checkpoint and pack that again"
    if json_digest(config) != digest["config"]:
        raise FormatError(f"{folder / _CONFIG} is not what was packed: its digest differs", hint=hint)
    for name in names:
        if name not in wanted:
            raise FormatError(f"{folder / name} was added after the model was packed", hint=f"remove the file; {hint}")
    missing = sorted(wanted.keys() - set(names))
    if missing and not is_snapshot(folder):
        raise FormatError(f"{folder / missing[0]} is missing; it was there when the model was packed", hint=hint)
    for name in names:
        if sha256(folder / name) != wanted[name]:
            raise FormatError(f"{folder / name} is not what was packed: its sha256 differs", hint=hint)
    _verified[folder.resolve()] = state


def _parsed(digest: Any, folder: Path) -> Mapping[str, str]:
    files = digest.get("files") if isinstance(digest, dict) else None
    if not isinstance(files, dict) or not all(isinstance(d, str) for d in (*files.values(), digest.get("config"))):
        raise FormatError(
            f"{folder / _CONFIG}: quantization_config.digest is no object with `config` and `files`",
            hint="pack the model again",
        )
    return files


def state_of(path: Path) -> tuple[int, int, int]:
    """Size in bytes, time of change and inode of a file, which change when it is written to or replaced."""
    try:
        found = path.stat()
    except OSError as e:
        raise CheckpointError(f"{path} can't be read: {e.strerror}") from e
    return found.st_size, found.st_mtime_ns, found.st_ino
