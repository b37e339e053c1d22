"""`distill`: self-taught distillation of a ternary student against its full-precision teacher.

`session` takes names of models and data, `loop` folders; `options` says what can be chosen. `data` reads texts or
images into a `training_corpus`, from which `batch_sampler` and `batches` draw; `trainer` runs the loop, and
`optimisation` a step of it, on the `losses` of the `student_teacher` pair; `training_checkpoint` and `journal` keep
what a run has done, and `result` what it leaves. The names below are loaded when they are used: `options` alone is
quick to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ternarize_cli.distill.data import Sources as Sources
    from ternarize_cli.distill.loop import distill as distill
    from ternarize_cli.distill.options import Progress as Progress
    from ternarize_cli.distill.options import Training as Training
    from ternarize_cli.distill.result import DistillReport as DistillReport

__all__ = ["DistillReport", "Progress", "Sources", "Training", "distill"]

_MODULES = {
    "DistillReport": "result",
    "Progress": "options",
    "Sources": "data",
    "Training": "options",
    "distill": "loop",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
