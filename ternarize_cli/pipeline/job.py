"""Runs the stages of a recipe, each by the function behind its command, unless an earlier run has finished it."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ternarize_cli import __version__
from ternarize_cli.compress.session import convert, pack
from ternarize_cli.distill.options import BUDGETS, DistillOptions, Progress, Training
from ternarize_cli.distill.session import distill
from ternarize_cli.distill.training_checkpoint import has_checkpoint
from ternarize_cli.pipeline.recipe import Recipe
from ternarize_cli.pipeline.stages import Stages
from ternarize_cli.progress import Track
from ternarize_cli.storage.files import partial_path

__all__ = ["Job", "Step"]

Step = Callable[[str], AbstractContextManager[None]]
"""Makes a context manager that is entered around a stage, from the stage's title."""
_MAY_DIFFER = (*BUDGETS, "until", "save_every")
"""What may differ between a training and its continuation."""


class Job:
    """A run of a recipe.

    Args:
        recipe: what is made, with the digests of what is read.
        stages: the folder of the stages.
        step: is entered around each stage that runs.
        track: progress.
    """

    def __init__(self, recipe: Recipe, stages: Stages, step: Step, track: Track) -> None:
        self._recipe, self._stages, self._step, self._track = recipe, stages, step, track
        self._digests: dict[str, str] = {}

    def convert(self) -> dict[str, Any]:
        """Makes the ternary checkpoint, calibrated on the data; returns facts for the card."""
        recipe, options = self._recipe, self._recipe.options
        trimmed = options.trim_vocabulary
        settings = asdict(options.converting())
        key = {
            **self._read(*recipe.data, *trimmed),
            "tool": __version__,
            "scheme": asdict(options.scheme()),
            "options": {name: settings[name] for name in ("skip", "keep_dense", "seed", "bits")}
            | {"trim": list(trimmed)},
            "calibration": [options.calibration_samples, options.calibration_tokens],
        }

        def make(folder: Path) -> Mapping[str, Any]:
            report = convert(
                recipe.model,
                folder,
                options.scheme(),
                calibration=options.calibration(recipe.data),
                options=options.converting(),
                force=True,
                track=self._track,
            )
            data = report.artifact.calibration
            assert data is not None
            return {
                "linears": len(report.layers),
                "samples": data.samples,
                "kind": data.kind,
                "tokens": data.tokens,
                "notes": list(report.notes),
            }

        return self._run("ternary", f"convert: {options.made_levels} weights, calibrated on the data", key, make)

    def distill(
        self, training: Training, on_step: Callable[[Progress], None], warn: Callable[[str], None]
    ) -> dict[str, Any]:
        """Trains the checkpoint against the original; returns the fields of the report."""
        recipe, options = self._recipe, self._recipe.options
        settings = asdict(training)
        key = {
            **self._read(*recipe.data),
            "student": self._digests["ternary"],
            "training": settings,
            "samples": options.samples,
        }
        begun = key | {"training": {name: value for name, value in settings.items() if name not in _MAY_DIFFER}}

        def make(folder: Path) -> Mapping[str, Any]:
            same = self._stages.goes_on("distilled", begun)
            report = distill(
                self._stages.path("ternary"),
                recipe.data,
                folder,
                teacher=recipe.model,
                training=training,
                options=DistillOptions(
                    samples=options.samples,
                    resume=same and has_checkpoint(partial_path(folder)),
                    device=options.device,
                    threads=options.threads,
                ),
                force=True,
                on_step=on_step,
                say=warn,
                track=self._track,
            )
            return {**asdict(report), "training_seconds": report.seconds}

        until = "" if training.until is None else f" at most, until the held-out cosine is {training.until:g},"
        return self._run("distilled", f"distill: {training.budget}{until} against the original", key, make)

    def pack(self, stage: str) -> dict[str, Any]:
        """Packs the checkpoint of a stage; returns the fields of the report, but for the artifact."""
        options = self._recipe.options
        key = {"student": self._digests[stage], "codec": options.codec, "tool": __version__}

        def make(folder: Path) -> Mapping[str, Any]:
            report = pack(
                self._stages.path(stage),
                folder,
                codec=options.codec,
                check=not options.no_check,
                force=True,
                track=self._track,
            )
            facts = {name: value for name, value in vars(report).items() if name != "artifact"}
            return {**facts, "codec": report.artifact.codec}

        return self._run("packed", "pack: codes of a few bits", key, make)

    def _run(
        self, name: str, title: str, key: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Runs a stage unless it is finished; its digest is part of the keys of the stages after it."""
        facts = self._stages.finished(name, key)
        with self._step(title if facts is None else f"{title}: finished by an earlier run"):
            facts = facts or self._stages.run(name, key, make)
        self._digests[name] = facts["digest"]
        return facts

    def _read(self, *sources: str) -> dict[str, Any]:
        """Returns what a stage reads: the model, and names and digests of data."""
        found = self._recipe.digests
        return {"model": found["model"], "data": [found[source] for source in sources]}
