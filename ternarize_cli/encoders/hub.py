"""Models of the Hugging Face hub: how users name them, and how their files come here.

    owner/name                               the newest revision of its branch main
    owner/name@REVISION                      a branch, a tag or a commit
    https://huggingface.co/owner/name        pasted addresses, also of hf.co and of the server that HF_ENDPOINT names
    https://huggingface.co/owner/name/tree/REVISION

A downloaded model lies in the local cache as models--OWNER--NAME/snapshots/COMMIT, from which `origin_of` tells where a
folder is from.

Plans need names, dtypes and shapes of tensors, and no values. For them `headers_only` fetches the configs, and of each
safetensors file the header; it makes a file with this header and a hole of the right size for the values.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from ternarize_cli.errors import InputError, ModelNotFoundError, shown
from ternarize_cli.storage.bounds import read_object
from ternarize_cli.storage.views import new_view, origin

__all__ = [
    "HubModel",
    "download",
    "headers_only",
    "is_headers_only",
    "mark_headers_only",
    "origin_of",
    "parse",
    "pinned",
]

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*){0,8}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_SMALL = ["*.json", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*"]
_WEIGHTS = "*.safetensors"
_without_values: set[Path] = set()


@dataclass(frozen=True)
class HubModel:
    """A model of the hub.

    Attributes:
        name: its hub id, such as "owner/name".
        revision: a branch, a tag or a commit; None: the branch main.
    """

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        """Writes the model as users name it: `owner/name` or `owner/name@REVISION`."""
        return f"{self.name}@{self.revision}" if self.revision else self.name


def parse(text: str) -> HubModel:
    """Reads a hub id, with or without a revision, or a pasted address.

    Raises:
        ModelNotFoundError: the text is neither, names a data set, a space, a file or another server, or the revision
            is none that a repository can have.
    """
    model = _of_address(text) or HubModel(*text.split("@", 1)) if text else HubModel("")
    if not _NAME.fullmatch(model.name):
        raise ModelNotFoundError(
            f"there is no folder {text}", hint="check the path; a hub id looks like owner/name or owner/name@revision"
        )
    if model.revision is not None and (not _REVISION.fullmatch(model.revision) or len(model.revision) > 200):
        raise ModelNotFoundError(
            f"{shown(model.revision)} is no revision of a model", hint=f"a branch, tag or commit: {model.name}@main"
        )
    return model


def pinned(model: str, revision: str | None) -> str:
    """Writes a hub id and a revision as one text, which `parse` reads; returns the model's text if `revision` is None.

    Raises:
        InputError: the model is a folder or a package, or its text names a revision already.
        ModelNotFoundError: the text is no hub id, or the revision is none that a repository can have.
    """
    if revision is None:
        return model
    if model.startswith("package:") or Path(model).expanduser().exists():
        raise InputError(f"--revision belongs to a hub id, and {model} is none", hint="leave --revision out")
    found = parse(model)
    if found.revision is not None:
        raise InputError(f"{model} names a revision already", hint="leave --revision out")
    return str(parse(f"{found.name}@{revision}"))


def _of_address(text: str) -> HubModel | None:
    """Reads a pasted address; None for a text that is no address."""
    known = (*_HOSTS, urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc)
    bare = text.partition("/")[0].lower() in _HOSTS
    if not bare and not text.lower().startswith(("http://", "https://")):
        return None
    address = urlsplit(f"https://{text}" if bare else text)
    parts = [unquote(part) for part in address.path.split("/") if part]
    if address.netloc.lower() not in known:
        raise ModelNotFoundError(
            f"{text} is no address of the hub", hint="a model's is https://huggingface.co/owner/name"
        )
    at = next((i for i in (2, 1) if parts[i : i + 1] == ["tree"]), len(parts))
    named, rest = parts[:at], parts[at + 1 :]
    if not 1 <= len(named) <= 2 or len(rest) > 1 or named[0] in ("datasets", "spaces", "collections"):
        raise ModelNotFoundError(
            f"{text} is not the address of a model",
            hint="https://huggingface.co/owner/name, or …/owner/name/tree/REVISION",
        )
    return HubModel("/".join(named), rest[0] if rest else None)


def download(model: HubModel, *, allow_pickle: bool = False) -> Path:
    """Takes a model from the local cache, or downloads it; returns its folder there.

    Args:
        model: what to download.
        allow_pickle: also download `pytorch_model.bin` files.

    Raises:
        ModelNotFoundError: there is no such model or revision, it needs a login, or the hub can't be reached and the
            cache does not hold it.
    """
    return _snapshot(model, [*_SMALL, _WEIGHTS, *(["*.bin"] if allow_pickle else [])])


def headers_only(model: HubModel, *, allow_pickle: bool = False) -> Path:
    """Makes a folder with a model's configs, and weights files whose tensors have names, dtypes and shapes, but zeros.

    A model is downloaded whole instead where that can't be done: it is quantised already, so that its values are
    checked; it may be pickled (`allow_pickle`); it has no safetensors files; or the hub can't be reached, and the local
    cache may hold it.

    Raises:
        ModelNotFoundError: as `download`.
        CheckpointError: config.json is damaged.
    """
    from huggingface_hub import HfApi

    small = _snapshot(model, _SMALL)
    pinned = HubModel(model.name, small.name)
    quantised = (small / "config.json").is_file() and "quantization_config" in read_object(small / "config.json")
    try:
        listed = HfApi().model_info(model.name, revision=small.name, files_metadata=True).siblings or []
    except Exception:  # of whichever library speaks to the hub
        listed = []
    sizes = {file.rfilename: file.size for file in listed if file.rfilename.endswith(".safetensors") and file.size}
    if (
        allow_pickle
        or quantised
        or not sizes
        or any(".." in PurePosixPath(name).parts or name.startswith("/") for name in sizes)
    ):
        return download(pinned, allow_pickle=allow_pickle)
    view = new_view(small)
    shutil.copytree(small, view, ignore=_large, dirs_exist_ok=True)
    try:
        for name, size in sizes.items():
            _write_header(pinned, name, size, view / name)
    except Exception:  # the hub's libraries raise errors of many kinds; a damaged file is told of when it is here
        return download(pinned, allow_pickle=allow_pickle)
    mark_headers_only(view)
    return view


def _large(folder: str, names: list[str]) -> list[str]:
    """Lists the files of a folder that are no configs: a snapshot holds whatever was downloaded before."""
    return [n for n in names if not Path(folder, n).is_dir() and not any(fnmatchcase(n, p) for p in _SMALL)]


def mark_headers_only(folder: Path) -> None:
    """Notes that the tensors in a folder have the names, dtypes and shapes of its model's, and not the values."""
    _without_values.add(folder)


def is_headers_only(folder: Path) -> bool:
    """Whether a folder, or the folder that it is a view of, was marked as one without the values of weights."""
    return not _without_values.isdisjoint((folder, origin(folder)))


def _write_header(model: HubModel, name: str, size: int, path: Path) -> None:
    """Writes a sparse safetensors file of `size` bytes with the header of a file of the hub."""
    from huggingface_hub import HfApi

    found = HfApi().parse_safetensors_file_metadata(model.name, name, revision=model.revision)
    header = {
        key: {"dtype": t.dtype, "shape": t.shape, "data_offsets": t.data_offsets} for key, t in found.tensors.items()
    }
    text = json.dumps(
        {**({"__metadata__": found.metadata} if found.metadata else {}), **header},
        ensure_ascii=False,
        separators=(",", ":"),
    ).encode()
    length = size - 8 - max((t.data_offsets[1] for t in found.tensors.values()), default=0)
    if len(text) > length:
        raise ValueError(f"the header of {name} does not fit into its {length} bytes")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as stream:
        stream.write(length.to_bytes(8, "little") + text.ljust(length))
        stream.truncate(size)


def origin_of(folder: Path) -> HubModel | None:
    """Tells from which model, at which commit, a folder in the local hub cache is; None for any other folder."""
    for path in (place := origin(folder), *place.parents):
        kind, *name = path.parent.parent.name.split("--")
        if path.parent.name == "snapshots" and kind == "models" and name and _COMMIT.fullmatch(path.name):
            return HubModel("/".join(name), path.name)
    return None


def _snapshot(model: HubModel, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    with _explained(model):
        return Path(snapshot_download(model.name, revision=model.revision, allow_patterns=patterns))


@contextmanager
def _explained(model: HubModel) -> Iterator[None]:
    """Says in our words why the hub gives no model."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, short = model.name, model.name.rpartition("/")[2]
    revision = f" --revision {model.revision}" if model.revision else ""
    try:
        yield
    except GatedRepoError as e:
        raise ModelNotFoundError(
            f"{name} is gated on the hub", hint="accept its terms there, then: hf auth login"
        ) from e
    except RevisionNotFoundError as e:
        raise ModelNotFoundError(
            f"{name} has no revision {model.revision!r} on the hub",
            hint=f"leave it out: {name}; or see its branches there",
        ) from e
    except (RepositoryNotFoundError, HFValidationError) as e:
        raise ModelNotFoundError(
            f"{name!r} is neither a folder here nor a model on the hub",
            hint="check the spelling; for a private model: hf auth login",
        ) from e
    except (LocalEntryNotFoundError, OSError) as e:
        raise ModelNotFoundError(
            f"'{model}' is no folder here, it is not in the local hub cache, and the hub can't be reached",
            hint=f"where there is a network: hf download {name}{revision} --local-dir {short}\n"
            f"       then, here: ternarize … ./{short}  (or copy HF_HOME over)",
        ) from e
