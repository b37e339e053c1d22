"""recipe.toml: everything that decides what `ternarize compress` makes, in a file that people can read and repeat.

    version = 1
    model = "owner/name@COMMIT"
    data = ["texts.txt"]
    minutes = 10.0                  # an option of `compress`, under its own name; those at their defaults are left out
    sts = ["pairs.csv"]

    [digests]                       # of what was read: a run that finds other files says so
    model = "64 hex digits"
    "texts.txt" = "64 hex digits"

A recipe may be a stranger's: it can set options by name and nothing else, and none of `OF_THE_MACHINE`. Paths are
relative to the working folder, as on the command line.
"""

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ternarize_cli import __version__
from ternarize_cli.data.starter import is_starter, starter_texts
from ternarize_cli.errors import SettingsError, named, reason, shown
from ternarize_cli.pipeline.options import OF_THE_MACHINE, CompressOptions
from ternarize_cli.storage.bounds import read_bytes
from ternarize_cli.storage.digests import json_digest, sha256, tree_hash

__all__ = ["RECIPE", "Recipe", "digest_of", "read_recipe"]

RECIPE = "recipe.toml"
_VERSION = 1
_LONGEST = 1 << 20
_OPTIONS = {option.name: option for option in fields(CompressOptions)}


@dataclass(frozen=True)
class Recipe:
    """What is compressed, with which data, and how.

    Attributes:
        model: a folder, a hub id or `package:NAME`.
        data: files, folders or hub data sets to calibrate and distill with.
        options: all other choices.
        digests: sha256 of the model ("model") and of each file or folder that was read.
    """

    model: str
    data: tuple[str, ...]
    options: CompressOptions = field(default_factory=CompressOptions)
    digests: Mapping[str, str] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """Lists the options that are not at their defaults, without those of the machine."""
        given = {name: getattr(self.options, name) for name in _OPTIONS if name not in OF_THE_MACHINE}
        return {name: value for name, value in given.items() if value != _OPTIONS[name].default}

    def text(self) -> str:
        """Writes the recipe as TOML."""
        values = {"version": _VERSION, "model": self.model, "data": self.data, **self.settings()}
        return "\n".join(
            [
                f"# Written by ternarize {__version__}. `ternarize compress --recipe {RECIPE} -o DIR` repeats the run.",
                "# Paths are relative to the folder where the command runs.",
                *_lines(values),
                "",
                "[digests] # sha256 of what was read",
                *_lines(self.digests),
                "",
            ]
        )


def read_recipe(path: Path) -> Recipe:
    """Reads a recipe, which may be somebody else's.

    Raises:
        SettingsError: the file is missing, longer than 1 MB or no TOML; or it has a key that is none of a recipe's, or
            a value of another type than the key's.
        InputError: an option has a value that it does not take.
    """
    try:
        content = tomllib.loads(read_bytes(path, limit=_LONGEST, error=SettingsError).decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as e:
        raise SettingsError(f"{path} is not valid TOML: {reason(e)}", hint="fetch the recipe again") from e
    version, model, data = (content.pop(key, None) for key in ("version", "model", "data"))
    digests = content.pop("digests", {})
    if version != _VERSION:
        raise SettingsError(
            f"{path} is no recipe that this version reads: version is {shown(version)}, not {_VERSION}",
            hint="pip install -U ternarize-cli, or see the guide on `ternarize compress`",
        )
    if not isinstance(model, str) or not model:
        raise SettingsError(f"{path}: model is {shown(model)}, not the name of a model", hint='model = "owner/name"')
    if not _is_strings(data) or not data:
        raise SettingsError(f"{path}: data is {shown(data)}, not a list of names", hint='data = ["texts.txt"]')
    if not isinstance(digests, dict) or not _is_strings(list(digests.values())):
        raise SettingsError(f"{path}: [digests] holds something else than digests", hint="leave the table out")
    for key, value in content.items():
        _check(key, value, path)
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    return Recipe(model, tuple(data), CompressOptions(**values), digests)


def _check(key: str, value: object, path: Path) -> None:
    """Checks that a key of a recipe is an option's, and that its value is of the option's type."""
    if key in OF_THE_MACHINE:
        raise SettingsError(
            f"{path} sets {key}, which is not taken from a recipe",
            hint=f"--{key.replace('_', '-')} on the command line",
        )
    if key not in _OPTIONS:
        near = get_close_matches(key, _OPTIONS, 1)
        raise SettingsError(
            f"{path}: `ternarize compress` has no option {named(key)}",
            hint=f"do you mean {near[0]}?" if near else "ternarize compress --help",
        )
    default = _OPTIONS[key].default
    hint = get_type_hints(CompressOptions)[key]
    kinds = tuple(kind for kind in (get_args(hint) or (hint,)) if kind is not type(None))
    named_values = tuple(chain.from_iterable(get_args(kind) for kind in (hint, *kinds) if get_origin(kind) is Literal))
    if named_values:
        right = any(type(value) is type(one) and value == one for one in named_values)
        what = f"one of {', '.join(map(str, named_values))}"
    elif default == ():
        right, what = _is_strings(value), "a list of strings"
    elif isinstance(default, bool):
        right, what = isinstance(value, bool), "true or false"
    elif str in kinds:
        right, what = isinstance(value, str), "a string"
    else:
        right, what = isinstance(value, int | float) and not isinstance(value, bool), "a number"
    if not right:
        raise SettingsError(f"{path}: {key} is {shown(value)}, not {what}", hint="ternarize compress --help")


def _is_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _lines(values: Mapping[str, Any]) -> Iterable[str]:
    """Writes keys and values of TOML, whose strings, numbers and lists are those of JSON."""
    for key, value in values.items():
        bare = key if key.replace("_", "").isalnum() and key.isascii() else _json(key)
        yield f"{bare} = {_json(value)}"


def _json(value: object) -> str:
    listed = list(value) if isinstance(value, tuple) else value
    return json.dumps(listed, ensure_ascii=False).replace("\x7f", "\\u007f")


def digest_of(source: str) -> str:
    """Computes the sha256 of a file, of the files in a folder, or of the texts of `starter`.

    Returns:
        The digest; of a data set of the hub, its name.
    """
    if is_starter(source):
        return json_digest({"texts": starter_texts(source)})
    path = Path(source).expanduser()
    if path.is_dir():
        return tree_hash(path, lambda relative: not any(part.startswith(".") for part in relative.parts))
    return sha256(path) if path.is_file() else source
