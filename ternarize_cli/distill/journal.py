"""Records a run: metrics.jsonl during the run, and a section of the model card at its end."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ternarize_cli import __version__
from ternarize_cli.compress import card
from ternarize_cli.distill.options import Progress
from ternarize_cli.errors import DataError
from ternarize_cli.storage.bounds import lines_of, parse_json

__all__ = ["METRICS", "Journal", "read_metrics"]

METRICS = "metrics.jsonl"
_LINES = 2000


class Journal:
    """Appends readings to metrics.jsonl: about 2,000 at most over a run, and all with held-out metrics."""

    def __init__(self, folder: Path, resumed_at: int) -> None:
        """Opens the journal, and drops readings of an earlier run after the step at which it is resumed."""
        path = folder / METRICS
        kept = [line for line in read_metrics(path) if line["step"] <= resumed_at] if resumed_at else []
        path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._path = path
        self._next = 0.0
        self._looked: tuple[float | None, float | None] | None = None

    def add(self, progress: Progress) -> None:
        """Writes a reading, if one is due."""
        looked = progress.cosine, progress.agreement
        if progress.done < self._next and looked == self._looked:
            return
        self._next = progress.done + 1 / _LINES
        self._looked = looked
        values = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in asdict(progress).items()}
        del values["chosen"]  # the same at every step, and part of the record
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(values) + "\n")

    @staticmethod
    def finish(partial: Path, made: Path, record: Mapping[str, Any]) -> None:
        """Puts the metrics into the folder of the trained model, and the run's numbers into its card."""
        (partial / METRICS).rename(made / METRICS)
        card.write(made, "distill", _described(record))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads the readings of a metrics.jsonl, up to a line that is none, such as one that a kill cut off."""
    if not path.is_file():
        return []
    lines = []
    with path.open("rb") as stream:
        for line in lines_of(stream, str(path), DataError):
            try:
                values = parse_json(line, str(path), error=DataError)
            except DataError:
                break
            if not isinstance(values, dict) or not isinstance(values.get("step"), int):
                break
            lines.append(values)
    return lines


def _described(record: Mapping[str, Any]) -> str:
    losses = ", ".join(f"{name} × {weight:g}" for name, weight in record["losses"].items())
    peak = record["learning_rate"]
    less = "".join(f" ({levels} linears {share * peak:.3g})" for levels, share in record["shares"].items())
    return "\n".join(
        [
            f"It was distilled from `{record['teacher']}` by ternarize {__version__}, without labels:",
            "",
            f"- data: {record['training_texts']:,} texts or images from "
            + ", ".join(f"`{Path(path).name or path}`" for path in record["data"]),
            f"- {record['texts']:,} inputs in {record['steps']:,} steps",
            f"- recipe `{record['recipe']}`: {losses}; peak learning rate {peak:g}{less}; seed {record['seed']}",
            f"- on {record['held_out']} held-out inputs: cosine to the teacher {record['cosine_before']:.4f} → "
            f"{record['cosine_after']:.4f}, rank correlation of similarities {record['agreement_before']:.4f} → "
            f"{record['agreement_after']:.4f}",
        ]
    )
