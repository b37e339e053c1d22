"""What the card of a compressed model says of the run: its stages, their data, how long they took, and the machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ternarize_cli.compress.card import cell
from ternarize_cli.distill.result import setback
from ternarize_cli.errors import counted
from ternarize_cli.measuring import machine
from ternarize_cli.pipeline.recipe import RECIPE, Recipe

__all__ = ["described"]


def described(
    recipe: Recipe, converted: Mapping[str, Any], distilled: Mapping[str, Any] | None, packed: Mapping[str, Any]
) -> str:
    """Writes the run as Markdown.

    Args:
        recipe: what was made.
        converted, distilled, packed: the facts of the stages, as `job` returns them; None: nothing was trained.
    """
    data = ", ".join(f"`{_name(source)}`" for source in recipe.data)
    tokens = "" if converted["tokens"] is None else f", {converted['tokens']:,} tokens"
    rows = [
        ("calibrate", f"{counted(converted['samples'], converted['kind'])}{tokens}", converted["seconds"]),
        *([] if distilled is None else [("distill", _trained(distilled), distilled["seconds"])]),
        ("pack", f"{packed['codec']}, {packed['bytes_packed']:,} bytes of weights", packed["seconds"]),
    ]
    return "\n".join(
        [
            f"`ternarize compress` did the whole way, with {data}. No labels were used. [`{RECIPE}`]({RECIPE}) beside",
            "this card has all choices, and the digests of model and data; it repeats the run:",
            "",
            "```sh",
            f"ternarize compress --recipe {RECIPE} -o again",
            "```",
            "",
            "| stage | with | took |",
            "|---|---|---:|",
            *(f"| {name} | {cell(text)} | {_duration(seconds)} |" for name, text, seconds in rows),
            "",
            f"Machine: {_machine()}.",
        ]
    )


def _trained(facts: Mapping[str, Any]) -> str:
    measure = "correlation with" if facts["scores"] else "cosine to"
    ended = "" if facts["until"] is None else f", until {facts['until']:g} or {facts['budget']}"
    worse = ", worse than before" if setback(facts["cosine_before"], facts["cosine_after"]) else ""
    return (
        f"{counted(facts['steps'], 'step')}, {counted(facts['texts'], 'input')}{ended}; {measure} the original on "
        f"{counted(facts['held_out'], 'held-out input')}: "
        f"{facts['cosine_before']:.4f} → {facts['cosine_after']:.4f}{worse}"
    )


def _name(source: str) -> str:
    """Names a source of data without its folder, which is nobody else's business; a data set of the hub in full."""
    return (Path(source).name if Path(source).expanduser().exists() else source).replace("`", "'") or "data"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def _machine() -> str:
    facts = machine.facts()
    names = [f"{facts['cpu']}, {counted(facts['usable_cores'], 'core')}", *(gpu["name"] for gpu in facts["gpus"])]
    libraries = (f"{name} {facts['versions'][name]}" for name in ("torch", "transformers", "ternarize"))
    return cell("; ".join([*names, ", ".join(libraries)]))
