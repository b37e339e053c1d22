"""Two forward passes over all calibration batches at once, stopped at every linear.

Layer-by-layer calibration wants, at each linear, what the original computes there and what the model that is ternary
up to there feeds into it, over all the data, before either goes on. Usually that is had by running the model block by
block, which takes knowing each architecture's blocks, or by running it again from the start for every layer. Here the
forward passes are coroutines (greenlets), two for each batch: the *teacher* computes what the model always computed,
the *student* what has become of it. Every linear to be calibrated hands its input to the loop that drives them and
waits there; the loop has all inputs at once, decides on the codes, and gives each student its output. So any model
goes through in one pass, whatever its blocks look like, and memory holds one place's activations of every batch.

Both passes run the same modules; embedding tables differ, as the student's are rounded.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from ternarize_cli.errors import CheckpointError

__all__ = ["Stop", "drive", "intercepted", "trace"]


@dataclass(eq=False)
class Stop:
    """A forward pass that waits in a module.

    Attributes:
        name: the name of the module.
        value: the module's input `[..., in]`.
        output: the output `[..., out]` of a linear in a teacher's pass; None for a norm and in a student's pass.
    """

    name: str
    value: Tensor
    output: Tensor | None = None


class _Pass(greenlet):  # type: ignore[misc]
    def __init__(self, run: Callable[[], Any], *, student: bool) -> None:
        super().__init__(run)
        self.student = student


@contextmanager
def intercepted(
    linears: Mapping[str, nn.Module], norms: Mapping[str, nn.Module], tables: Mapping[nn.Module, Callable[..., Tensor]]
) -> Iterator[None]:
    """Makes modules wait when a pass driven by `drive` reaches them.

    Args:
        linears: modules by name whose output in a student's pass is what the driver sends.
        norms: modules by name whose input the driver may change in place.
        tables: embeddings, each with a function that a student's pass applies to the rows that were looked up.
    """
    patched = [*linears.values(), *norms.values(), *tables]
    for name, module in linears.items():
        module.forward = _waiting_linear(name, module.forward)
    for name, module in norms.items():
        module.forward = _waiting_norm(name, module.forward)
    for module, rounded in tables.items():
        module.forward = _rounded_table(module.forward, rounded)
    try:
        yield
    finally:
        for module in patched:
            del module.forward  # the class's own shows again


def _waiting_linear(name: str, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(*args: Tensor, **kwargs: Tensor) -> Tensor:
        here = getcurrent()
        (x,) = (*args, *kwargs.values())
        if not isinstance(here, _Pass):
            return original(x)
        if here.student:
            result: Tensor = here.parent.switch(Stop(name, x))
            return result
        output = original(x)
        here.parent.switch(Stop(name, x, output))
        return output

    return forward


def _waiting_norm(name: str, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        here = getcurrent()
        if isinstance(here, _Pass):
            here.parent.switch(Stop(name, x))
        return original(x, *args, **kwargs)

    return forward


def _rounded_table(original: Callable[..., Tensor], rounded: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(ids: Tensor) -> Tensor:
        here = getcurrent()
        rows = original(ids)
        return rounded(rows) if isinstance(here, _Pass) and here.student else rows

    return forward


def drive(
    run: Callable[[Any], object],
    batches: Sequence[Any],
    at: Callable[[str, list[Stop], list[Stop]], list[Tensor] | None],
) -> None:
    """Runs the teacher and the student passes of all batches from stop to stop.

    Args:
        run: the forward pass over one batch.
        batches: the arguments of `run`, one for each pass.
        at: called at each stop with the module's name, the teachers' stops and the students' stops, one for each batch.
            It returns the students' outputs if the module is a linear, and None if it is a norm.

    Raises:
        CheckpointError: the passes do not go through the same modules in the same order.
    """
    teachers = [_Pass(partial(run, batch), student=False) for batch in batches]
    students = [_Pass(partial(run, batch), student=True) for batch in batches]
    taught = [one.switch() for one in teachers]
    learnt = [one.switch() for one in students]
    while isinstance(taught[0], Stop):
        stops = [*taught, *learnt]
        names = {stop.name if isinstance(stop, Stop) else "the end" for stop in stops}
        if len(names) > 1:
            where = ", ".join(sorted(names))
            raise CheckpointError(
                f"this model can't be calibrated: not all data goes the same way through it ({where})",
                hint="leave such modules out with --skip, or convert without --calibrate",
            )
        outputs = at(names.pop(), taught, learnt)
        del stops
        for i, one in enumerate(teachers):
            taught[i] = one.switch()
        for i, one in enumerate(students):
            learnt[i] = one.switch(outputs[i] if outputs is not None else None)


def trace(
    run: Callable[[Any], object], batch: Any, output: Callable[[Stop], Tensor | None], limit: int | None = None
) -> list[Stop]:
    """Runs one pass and collects its stops, in order.

    Args:
        run: the forward pass over one batch.
        batch: the argument of `run`.
        output: gives the output of a linear for its stop; what it gives for a norm is not used.
        limit: the number of stops after which the pass is given up; None runs it to its end.
    """
    stops: list[Stop] = []
    one = _Pass(partial(run, batch), student=True)
    stop = one.switch()
    while isinstance(stop, Stop):
        stops.append(stop)
        if len(stops) == limit:
            one.throw()  # unwinds the pass
            break
        stop = one.switch(output(stop))
    return stops
