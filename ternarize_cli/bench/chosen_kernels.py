"""Lists the kernels that a GPU backend chose for the shapes of a run (`kernels.gpu.tuning`)."""

from collections.abc import Mapping

from ternarize_cli.engines.baselines import Forward, ModelForward
from ternarize_cli.kernels.gpu import tuning
from ternarize_cli.measuring import gpu

__all__ = ["choices_of", "notes"]

_FEW = 8


def choices_of(forward: Forward) -> dict[str, str]:
    """Maps each product of this process, such as `int8 16 x 768 -> 768`, to the kernel that was fastest.

    Args:
        forward: the forward pass of a backend; the dict is empty if the backend has no kernels to choose from.
    """
    if not isinstance(forward, ModelForward):
        return {}
    asked = [choices.made for choices in gpu.reachable(forward.model, tuning.Choices)]
    made = {key: str(way) for each in asked for key, way in each.items()}
    return {f"{kind} {rows} x {i} -> {o}": made[kind, rows, i, o] for kind, rows, i, o in sorted(made)}


def notes(choices: Mapping[str, Mapping[str, str]], ran: Mapping[str, str]) -> list[str]:
    """Makes a sentence for each backend that chose kernels, with a few of the choices.

    Args:
        choices: for each candidate, its chosen kernels.
        ran: for each candidate, the backend that ran.
    """
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
