"""Which kernels a GPU backend took at the shapes of a run, as `kernels.gpu.tuning` measured them on this card."""

from collections.abc import Mapping

from ternarize_cli.engines.baselines import Forward, ModelForward
from ternarize_cli.kernels.gpu import tuning
from ternarize_cli.measuring import gpu

__all__ = ["choices_of", "notes"]

_FEW = 8


def choices_of(forward: Forward) -> dict[str, str]:
    """Question → the fastest way, of the questions that came up in this process: `int8 16 x 768 -> 768` → its kernel.

    Args:
        forward: of a backend; where it has no kernels to choose from, there are none.
    """
    if not isinstance(forward, ModelForward):
        return {}
    asked = [choices.made for choices in gpu.reachable(forward.model, tuning.Choices)]
    made = {key: str(way) for each in asked for key, way in each.items()}
    return {f"{kind} {rows} x {i} -> {o}": made[kind, rows, i, o] for kind, rows, i, o in sorted(made)}


def notes(choices: Mapping[str, Mapping[str, str]], ran: Mapping[str, str]) -> list[str]:
    """A sentence for each backend that chose; `ran`: what each candidate really is. Only a few choices are listed."""
    return [
        f"{name if name == ran[name] else f'{name} ({ran[name]})'} took the fastest of several kernels for "
        f"each {_listed(made)}"
        for name, made in choices.items()
        if made
    ]


def _listed(made: Mapping[str, str]) -> str:
    if len(made) > _FEW:
        return f"of {len(made)} products: --json lists them under choices"
    listed = "; ".join(f"{question}: {way}" for question, way in made.items())
    return f"product (rows x inputs -> outputs): {listed}"
