"""Reads `ternarize.toml`, whose values are weaker than flags and TERNARIZE_* variables, and stronger than defaults.

The option parser knows flags, variables and defaults; this module passes it the file as its default map. The file has a
table for each command, and keys that several commands share may stand above the tables:

    seed = 7                      # for every command that has --seed
    [convert]
    rule = "absmean"              # ternarize convert --rule
    [index.build]
    factory = "HNSW32"            # ternarize index build --factory

In the environment the same values are TERNARIZE_SEED, TERNARIZE_CONVERT_RULE, TERNARIZE_INDEX_BUILD_FACTORY.

A `ternarize.toml` that is found in the working directory may have come with somebody else's files, so it can't set
options that loosen safety (GUARDED); a file that --config or TERNARIZE_CONFIG names can.
"""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ternarize_cli.errors import SettingsError

__all__ = ["FILE_NAME", "GUARDED", "check_guarded", "default_map", "read_settings", "unknown_variables"]

FILE_NAME = "ternarize.toml"
GUARDED = frozenset({"allow_pickle", "host", "ray_address"})
"""Options that let files of others run code, or send data to a machine: pickles, and a Ray cluster."""

_VARIABLES = "API_KEY BACKEND CACHE CONFIG DEBUG DEVICE NATIVE_ISA NO_HOOK RUNTIME SEED THREADS TUNE VERIFY".split()


def read_settings(path: Path | None) -> tuple[Path | None, dict[str, Any]]:
    """Reads the settings file `path`; None stands for `ternarize.toml` in the working directory, if it exists.

    Returns:
        The path of the file that was read, or None, and its content.

    Raises:
        SettingsError: `path` is missing, or the file can't be read or is no TOML.
    """
    if path is None:
        path = Path(FILE_NAME)
        if not path.is_file():
            return None, {}
    try:
        return path, tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as e:
        raise SettingsError(f"the settings file {path} can't be read: {e}") from e
    except tomllib.TOMLDecodeError as e:
        raise SettingsError(f"{path} is not valid TOML: {e}") from e


def check_guarded(content: Mapping[str, Any], where: str) -> None:
    """Checks that no table of a settings file which the user did not name sets an option of GUARDED.

    Args:
        content: the parsed file, or one of its tables.
        where: the name of the file, or of file and table, in messages.

    Raises:
        SettingsError: an option of GUARDED is set, and not to false.
    """
    for key, value in content.items():
        option = _option(key)
        if option in GUARDED and value is not False:
            flag = f"--{option.replace('_', '-')}"
            raise SettingsError(
                f"{where} sets {key}, which is not taken from a file that merely lies in the working folder",
                hint=f"{flag} on the command line, or --config {FILE_NAME}",
            )
        if isinstance(value, dict):
            check_guarded(value, f"{where} [{key}]")


def default_map(
    content: Mapping[str, Any], commands: Mapping[str, Mapping[str, Any] | set[str]], where: str
) -> dict[str, Any]:
    """Turns the file's content into the option parser's default map.

    Args:
        content: the parsed file, or one of its tables.
        commands: for each command the set of its option names, with underscores for dashes; for a group of commands a
            mapping of this kind.
        where: the name of the file, or of file and table, in messages.

    Raises:
        SettingsError: the file has a key that is no option, a table that is no command, or a command that is no table.
    """
    shared = {_option(k): v for k, v in content.items() if not isinstance(v, dict) and k not in commands}
    known = _all_options(commands)
    for key in shared:
        if key not in known:
            raise SettingsError(f"{where}: no command has an option {key!r}", hint=_known(sorted(known)))
    result: dict[str, Any] = {}
    for name, options in commands.items():
        table = content.get(name, {})
        if not isinstance(table, dict):
            raise SettingsError(f"{where}: {name} must be a table", hint=f"[{name}] on a line of its own")
        if not isinstance(options, set):
            result[name] = default_map({**_shared_for(shared, options), **table}, options, f"{where} [{name}]")
            continue
        values = {_option(k): v for k, v in table.items()}
        for key in values:
            if key not in options:
                raise SettingsError(
                    f"{where} [{name}]: ternarize {name} has no option {key!r}", hint=_known(sorted(options))
                )
        result[name] = {k: v for k, v in shared.items() if k in options} | values
    for key, value in content.items():
        if isinstance(value, dict) and key not in commands:
            raise SettingsError(f"{where}: there is no command {key!r}", hint=_known(sorted(commands)))
    return result


def unknown_variables(
    environment: Iterable[str], commands: Mapping[str, Mapping[str, Any] | set[str]]
) -> dict[str, str | None]:
    """Finds variables that begin as ours do and that nothing reads.

    Args:
        environment: the names of all variables.
        commands: as `default_map` takes it.

    Returns:
        For each such name the one that was probably meant; None if none is like it.
    """
    known = {f"TERNARIZE_{name}" for name in _VARIABLES}
    known |= {f"TERNARIZE_{name.upper()}" for name in _paths(commands)}
    ours = (name for name in environment if name.startswith("TERNARIZE_") and name not in known)
    return {name: next(iter(get_close_matches(name, known, 1, 0.8)), None) for name in sorted(ours)}


def _paths(commands: Mapping[str, Mapping[str, Any] | set[str]]) -> Iterator[str]:
    for name, options in commands.items():
        for option in {*options, "force"} if isinstance(options, set) else _paths(options):
            yield f"{name}_{option}"


def _shared_for(shared: Mapping[str, Any], commands: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of the shared values that are options of at least one of `commands`."""
    known = _all_options(commands)
    return {k: v for k, v in shared.items() if k in known}


def _all_options(commands: Mapping[str, Mapping[str, Any] | set[str]]) -> set[str]:
    found: set[str] = set()
    for options in commands.values():
        found |= options if isinstance(options, set) else _all_options(options)
    return found


def _option(key: str) -> str:
    return key.replace("-", "_")


def _known(names: list[str]) -> str:
    return "known names: " + ", ".join(names)
