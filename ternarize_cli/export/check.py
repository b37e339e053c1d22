"""Compares an export with its packed model, in the runtime that it was made for (`--check`; `nearness`)."""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ternarize_cli.data.texts import read_lines
from ternarize_cli.encoders import checkpoint
from ternarize_cli.encoders.modalities import modalities_of
from ternarize_cli.engines.baselines import Forward, require_baseline
from ternarize_cli.errors import GateMissedError, InputError, TernarizeError, UnavailableError, reason
from ternarize_cli.export.export_folder import README
from ternarize_cli.export.formats import Export
from ternarize_cli.export.nearness import Run, compare
from ternarize_cli.export.options import ExportOptions

__all__ = ["Runtime", "exported", "run_check", "texts_of"]

_LARGEST = 250_000_000
"""The most parameters of a model whose int8 is made for the check: more would take minutes, and gigabytes of disk."""


@dataclass(frozen=True)
class Runtime:
    """What runs an export.

    Attributes:
        library: the library's name on PyPI.
        open: opens the export; raises any error if the library can't run it.
        hint: what a user may do if it can't.
        module: the name by which the library is imported; None: its name on PyPI.
        rival: the name of the runtime's int8 of the multiplied-out model, which is timed beside the export; None for
            none.
        required: whether an export that an installed runtime can't open is refused; otherwise it stands unchecked,
            since newer versions elsewhere may open it.
        compare: compares the opened export with the packed model, given its folder and texts; None: as
            `nearness.compare` does.
    """

    library: str
    open: Callable[[], Run]
    hint: str
    _: KW_ONLY
    module: str | None = None
    rival: str | None = None
    required: bool = False
    compare: Callable[[Path, Any, list[str] | None], dict[str, Any]] | None = None


def texts_of(options: ExportOptions, folder: Path) -> list[str] | None:
    """Reads the texts of the check; None if it takes the built-in ones.

    Args:
        options: the options of the export.
        folder: the packed model's folder.

    Raises:
        InputError: an option of the check is set without it, or texts are given for a model that reads none.
        DataError: the file can't be read, or has no texts.
    """
    if not options.check and (options.texts is not None or options.min_cosine is not None):
        named = "--texts" if options.texts is not None else "--min-cosine"
        raise InputError(f"{named} is for the check, and --no-check leaves it out", hint="leave --no-check out")
    if options.texts is None:
        return None
    if "text" not in modalities_of(folder):
        raise InputError(f"{folder} reads images, and --texts are texts", hint="without --texts")
    return read_lines([options.texts])


def run_check(
    folder: Path, runtime: Runtime, texts: list[str] | None, options: ExportOptions, say: Callable[[str], None]
) -> dict[str, Any]:
    """Runs the check if it is wanted, and its runtime is installed.

    Args:
        folder: the packed model's folder.
        runtime: what runs the export.
        texts: as in `compare`.
        options: the options of the export.
        say: is told what is done, or why it is not.

    Returns:
        What export.json says of the check: `runtime` and what `compare` gives, or the reason, `unchecked`.

    Raises:
        UnavailableError: the runtime can't run the export, and is required to; or it is missing or can't run the
            export, and `options.min_cosine` is set.
    """
    if not options.check:
        return {"unchecked": "--no-check"}
    if find_spec(runtime.module or runtime.library) is None:
        why, hint = f"{runtime.library} is not installed", f"pip install {runtime.library}"
        if options.min_cosine is not None:
            raise UnavailableError(f"--min-cosine: {why}", hint=hint)
        say(f"{why}, so the export is unchecked: {hint}")
        return {"unchecked": why}
    named = f"{runtime.library} {version(runtime.library)}"
    try:
        run = runtime.open()
    except Exception as e:  # runtimes raise errors of their own classes, and plain ones
        why = f"{named} can't run it: {reason(e)}"
        if runtime.required or options.min_cosine is not None:
            raise UnavailableError(why, hint=runtime.hint) from e
        say(f"warning: the export is unchecked: {why}")
        return {"unchecked": why}
    say("comparing it with the packed model …")
    if runtime.compare is None:
        found = compare(folder, run, texts, _rival(folder, runtime.rival, say))
    else:
        found = runtime.compare(folder, run, texts)
    if differing := found.get("tokens_differ"):
        say(f"warning: {runtime.library} makes other tokens of {differing} of {found['count']} texts")
    return {"runtime": named} | found


def _rival(folder: Path, name: str | None, say: Callable[[str], None]) -> dict[str, Forward]:
    """Makes the int8 that is timed beside an export, by its name; nothing if it can't be made, or would take long."""
    if name is None or sum(parameter.numel() for parameter in checkpoint.skeleton(folder).parameters()) > _LARGEST:
        return {}
    try:
        return {name: require_baseline(name).build(folder, "cpu")}
    except TernarizeError as e:
        say(f"{name} is not timed: {e}")
        return {}


def _check_gate(found: Mapping[str, Any], least: float | None) -> None:
    """Checks the mean cosine that `compare` has measured against --min-cosine.

    Raises:
        GateMissedError: it is below `least`.
    """
    if least is not None and not found["mean_cosine"] >= least:
        raise GateMissedError(
            f"quality gate missed: the mean cosine to the packed model is {found['mean_cosine']:.4f} (lowest "
            f"{found['lowest_cosine']:.4f}, {found['count']} {found['inputs']}), and --min-cosine asks for {least}"
        )


def exported(output: Path, facts: Mapping[str, Any], options: ExportOptions) -> Export:
    """Describes an export that has been checked, and stands under its final name.

    Args:
        output: its folder.
        facts: what its export.json says.
        options: the options, of which `min_cosine` becomes the gate.
    """
    files = {path: path.stat().st_size for path in sorted(output.rglob("*")) if path.is_file()}
    gate = partial(_check_gate, facts["check"], options.min_cosine)
    return Export(files, f"{output}/{README} says how it is opened", facts, gate)
