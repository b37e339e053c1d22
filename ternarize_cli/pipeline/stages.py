"""Tells which stages of a killed run are finished.

    .NAME.stages.partial/NAME.stages/
        stages.json       for each stage its key, its facts (with the content hash of what it wrote), and their digest
        ternary/          the calibrated checkpoint
        distilled/        the trained checkpoint; while it trains, .distilled.partial/ beside it
        packed/           the packed model, without what is said of the run and its scores

A stage's key is a digest of all that decides its result: what it reads, and its options. A stage counts as finished
if its key is the wanted one, its facts are those that were noted, and its folder holds what was written. So other data,
another model or another option than before repeat the stages that depend on them, and a damaged folder or entry
repeats its stage.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ternarize_cli.errors import OutputExistsError, TernarizeError
from ternarize_cli.storage import digests, files
from ternarize_cli.storage.bounds import read_object
from ternarize_cli.storage.workplace import discard, held

__all__ = ["Stages", "has_stages", "stages_of"]

_LEDGER = "stages.json"


class Stages:
    """The stages of a run, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries: dict[str, Any] = _entries(folder / _LEDGER)

    def path(self, name: str) -> Path:
        """Returns the folder that a stage writes."""
        return self._folder / name

    def run(self, name: str, key: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
        """Runs a stage and notes that it is finished.

        Args:
            name: the stage, which is also the name of its folder.
            key: all that decides what the stage writes, with values of JSON.
            make: writes the folder, which it may replace, and returns facts with values of JSON.

        Returns:
            The facts, with `seconds`, which the stage took, and `digest`, the content hash of the folder.
        """
        started = time.monotonic()
        facts = {**make(self.path(name)), "seconds": time.monotonic() - started}
        facts["digest"] = digests.content_hash(self.path(name))
        self._note(name, {"key": digests.json_digest(key), "facts": facts, "facts_digest": digests.json_digest(facts)})
        return facts

    def finished(self, name: str, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns the facts of a stage that was finished with a key; None if it was not, or either has changed."""
        entry, folder = self._entries.get(name), self.path(name)
        if not isinstance(entry, dict) or entry.get("key") != digests.json_digest(key):
            return None
        facts = entry.get("facts")
        if not isinstance(facts, dict) or entry.get("facts_digest") != digests.json_digest(facts):
            return None
        return facts if folder.is_dir() and facts.get("digest") == digests.content_hash(folder) else None

    def goes_on(self, name: str, key: Mapping[str, Any]) -> bool:
        """Notes that a stage which keeps its own checkpoints begins; returns whether these are of the same work.

        Removes checkpoints of other work.

        Args:
            name: the stage.
            key: all that decides whether its checkpoints can be used, with values of JSON.
        """
        wanted = digests.json_digest(key)
        same = bool(self._entries.get(f"{name} begun") == wanted)
        if not same:
            discard(self.path(name))
            self._note(f"{name} begun", wanted)
        return same

    def _note(self, name: str, entry: object) -> None:
        self._entries[name] = entry
        with files.atomic_file(self._folder / _LEDGER, force=True) as made:
            made.write_text(json.dumps(self._entries, indent=2) + "\n", encoding="utf-8")


@contextmanager
def stages_of(output: Path, *, resume: bool, force: bool) -> Iterator[Stages]:
    """Yields the stages of a run towards `output`; they stay if the body raises, and are removed after it.

    Args:
        output: the final folder.
        resume: go on from the stages that a killed run has left.
        force: remove what a killed run has left, if it is not resumed.

    Raises:
        OutputExistsError: a killed run has left stages, and neither `resume` nor `force` is set.
        InputError: the folder of the stages is or holds something that ternarize did not make.
        OutputError: another process compresses to `output`, or a stage can't be written.
    """
    with held(_place(output)) as place:
        left = (place.work / _LEDGER).exists()
        if left and resume:
            place.check_work()
        elif left and not force:
            raise OutputExistsError(
                f"an earlier run to {output} was stopped and left finished stages",
                hint="--resume goes on from them, --force starts anew",
            )
        else:
            files.remove(place.work)
            place.work.mkdir()
        try:
            yield Stages(place.work)
        except BaseException as e:
            if isinstance(e, TernarizeError):  # which may name a stage's folder
                e.args = (_naming(str(e), place.work, output),)
            if not (place.work / _LEDGER).exists():
                place.close()
            raise
        place.close()


def has_stages(output: Path) -> bool:
    """Returns whether a run towards `output` that was stopped has left stages to go on from."""
    return (files.partial_path(_place(output)) / _LEDGER).is_file()


def _place(output: Path) -> Path:
    return output.with_name(f"{output.name}.stages")


def _naming(text: str, work: Path, output: Path) -> str:
    """Names the output in a message in place of what lies in the folder of the stages, which nobody has seen."""
    return re.sub(rf"{re.escape(str(work))}/\S+", lambda _: str(output), text)


def _entries(path: Path) -> dict[str, Any]:
    """Reads the ledger; empty if it is missing or damaged, so that all stages run."""
    try:
        return read_object(path)
    except TernarizeError:
        return {}
