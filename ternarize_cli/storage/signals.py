"""Signals that end a command: SIGTERM and SIGHUP clean up as Ctrl-C does.

`listen` makes them raise `Ended` in the main thread, a KeyboardInterrupt, so that whatever cleans up after Ctrl-C
cleans up after them. A command then ends with 128 and the signal's number, as shells say it: 130, 143, 129. What was
ignored when the process began stays ignored (`nohup`), and processes that were forked die of these signals as they
always did.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

__all__ = ["Ended", "ending", "exit_code", "listen", "noted", "received"]

_ENDING = (signal.SIGTERM, signal.SIGHUP)
_received: int | None = None


class Ended(KeyboardInterrupt):
    """A signal asked this process to end.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


def ending(number: int) -> KeyboardInterrupt:
    """What to raise for a signal: Python's own exception for SIGINT, `Ended` for others."""
    return KeyboardInterrupt() if number == signal.SIGINT else Ended(number)


def exit_code(error: KeyboardInterrupt) -> int:
    """What a command ends with: 128 and the signal's number."""
    return 128 + (error.number if isinstance(error, Ended) else signal.SIGINT)


@contextmanager
def listen() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP raise `Ended` while the body runs, except those that are ignored.

    Ctrl-C raises KeyboardInterrupt as ever. Each of the three is remembered (`received`).
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

    ours = [n for n in _ENDING if signal.getsignal(n) is signal.SIG_DFL]
    with _handled([n for n in (signal.SIGINT,) if signal.getsignal(n) is signal.default_int_handler] + ours, end):
        yield


def received() -> int | None:
    """The number of the last signal that came while `listen` listened; None if none did.

    An exception that a signal raises may arrive as another one: where it falls into a library's own clean-up, such as
    between taking a lock and noting that it is taken, what fails there hides it.
    """
    return _received


@contextmanager
def noted() -> Iterator[Callable[[], int | None]]:
    """Yields what tells which signal came, None if none did: Ctrl-C, or one that `listen` listens for.

    While the body runs the first one only is noted; the second one ends the process at once, as without this.
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
