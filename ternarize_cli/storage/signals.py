"""Makes SIGTERM and SIGHUP end a command as Ctrl-C does, with clean-up.

`listen` makes these signals raise `Ended`, a KeyboardInterrupt, in the main thread, so that code that cleans up after
Ctrl-C cleans up after them too. A command then exits with 128 plus the signal's number, as is usual in shells: 130,
143, 129. A signal that was ignored when the process began stays ignored (`nohup`), and forked processes are still
killed by these signals.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer, current_thread, main_thread
from types import FrameType
from typing import Any

__all__ = ["Ended", "ending", "exit_code", "listen", "noted", "received"]

_ENDING = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Windows has no SIGHUP."""
_SOON = 0.01  # seconds
_received: int | None = None


class Ended(KeyboardInterrupt):
    """Is raised when SIGTERM or SIGHUP asks this process to end.

    Attributes:
        number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


def ending(number: int) -> KeyboardInterrupt:
    """Makes the exception for a signal: Python's own for SIGINT, `Ended` for others."""
    return KeyboardInterrupt() if number == signal.SIGINT else Ended(number)


def exit_code(error: KeyboardInterrupt) -> int:
    """Returns the exit code of a command that a signal ended: 128 plus the signal's number."""
    return 128 + (error.number if isinstance(error, Ended) else signal.SIGINT)


@contextmanager
def listen() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP raise `Ended` while the body runs; a signal that the process ignores stays ignored.

    Ctrl-C (SIGINT) raises KeyboardInterrupt, as without this function. `received` returns the last of these signals. A
    signal that comes in a `__del__`, where Python drops exceptions, is sent again a moment later.
    """
    global _received
    process = os.getpid()
    _received = None

    def end(number: int, frame: FrameType | None) -> None:
        global _received
        if os.getpid() == process or number == signal.SIGINT:
            _received = number
            raise ending(number)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def again(dropped: Any) -> None:
        if not isinstance(dropped.exc_value, KeyboardInterrupt) or os.getpid() != process or _received is None:
            hook(dropped)
            return
        number = _received
        resend = Timer(_SOON, lambda: os.kill(process, number) if sys.unraisablehook is again else None)
        resend.daemon = True
        resend.start()

    ours = [n for n in _ENDING if signal.getsignal(n) is signal.SIG_DFL]
    hook, sys.unraisablehook = sys.unraisablehook, again
    try:
        with _handled([n for n in (signal.SIGINT,) if signal.getsignal(n) is signal.default_int_handler] + ours, end):
            yield
    finally:
        sys.unraisablehook = hook
        _received = None


def received() -> int | None:
    """Returns, in the body of `listen`, the number of the last signal that came there; None if none came.

    The exception of a signal may be hidden by another one: a signal that comes during a library's own clean-up, such as
    between taking a lock and noting that it is taken, can make that clean-up fail with an error of its own.
    """
    return _received


@contextmanager
def noted() -> Iterator[Callable[[], int | None]]:
    """Yields a function that returns the number of the signal that came: SIGINT, SIGTERM or SIGHUP; None if none came.

    While the body runs, the first signal is only noted. The second raises KeyboardInterrupt or `Ended`.
    """
    came: int | None = None

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came is not None:
            raise ending(number)
        came = number

    numbers = [n for n in (signal.SIGINT, *_ENDING) if callable(signal.getsignal(n))]
    with _handled(numbers, note):
        yield lambda: came


@contextmanager
def _handled(numbers: list[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if current_thread() is not main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
