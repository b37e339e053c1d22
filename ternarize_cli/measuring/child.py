"""Runs functions in a process of its own, for a library that spoils the process in which it runs.

    Child ──(function, arguments)───────▶ stdin  ┌ python -m ternarize_cli.measuring.child
          ◀──(failure, result, seconds)── stdout ┘

All is pickled, so functions belong to modules, which the new process imports: it begins with nothing of this one.
`multiprocessing` would import the user's script there, too, and most scripts are not written for that. The process ends
when its stdin does: when its `Child` is deleted, or when this process ends, in whatever way.

The new process measures the seconds of a call. What else passes here until the result arrives is left out of
`timing.working_time`, so that benchmarks time the function and not the way to it.
"""

import contextlib
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import IO, Any

from ternarize_cli.errors import TernarizeError, reason
from ternarize_cli.measuring import timing

__all__ = ["Child", "serve"]

_PATIENCE = 2.0
"""Seconds for which a process whose streams are closed may go on, before it is killed."""
_HINT = "compare without it; if a signal ended it, memory may have been short"


class Child:
    """A process that waits for calls; `name` is what messages call it.

    Its standard streams are not those of this process: libraries may print there what they like.
    """

    def __init__(self, name: str) -> None:
        self._name, self._said = name, tempfile.TemporaryFile()  # noqa: SIM115 (`_close` closes it)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],  # -P: no modules from the working folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=True,  # Ctrl-C is for this process, whose end is the other one's
        )
        self._close = weakref.finalize(self, _close, self._process, self._said)
        self._begun = self._ended = 0  # calls

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls `function(*arguments)` in the process; returns the result.

        Raises:
            TernarizeError: the function raised an exception, or the process has ended.
        """
        begun = time.perf_counter()
        result, seconds = self._received(self._send(function, arguments))
        timing.leave_out(time.perf_counter() - begun - seconds)
        return result

    def begin(self, function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        """Starts a call, and returns a function that waits for its result, perhaps in another thread.

        So the process finds its next call waiting when it has computed a result, which it sends meanwhile. Results come
        in the order of the calls: to wait for one gives up those of earlier calls that were not waited for. One thread
        at a time may wait. The seconds are not left out of `timing.working_time`.

        Raises:
            TernarizeError: the process has ended; the returned function raises what `call` raises.
        """
        number = self._send(function, arguments)
        return lambda: self._received(number)[0]

    def _send(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
        """Begins a call, and returns its number."""
        stdin, _ = _pipes(self._process)
        with self._open():
            pickle.dump((function, arguments), stdin)
            stdin.flush()
            self._begun += 1
        return self._begun

    def _received(self, number: int) -> tuple[Any, float]:
        """Waits for the result of the call with a number; returns it, and the seconds that the function took."""
        _, stdout = _pipes(self._process)
        if number <= self._ended:
            raise RuntimeError("the result of this call was taken or given up: results come in the order of the calls")
        failure, result, seconds = None, None, 0.0
        while self._ended < number:
            with self._open():
                failure, result, seconds = pickle.load(stdout)
                self._ended += 1
        if failure is not None:
            raise TernarizeError(f"{self._name} failed: {failure}", hint=_HINT)
        return result, seconds

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        """Raises TernarizeError if the process has ended; ends it if what happens inside is interrupted."""
        try:
            yield
        except (OSError, ValueError, EOFError, pickle.UnpicklingError) as e:
            raise TernarizeError(f"the process of {self._name} ended: {self._fate()}", hint=_HINT) from e
        except BaseException:  # an interrupt: the result of this call would be taken for that of the next one
            self._close()
            raise

    def _fate(self) -> str:
        if not self._close.alive:
            return "it was interrupted"
        code = _end(self._process)
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").split("\n")
        told = [line for line in lines if line.strip()]
        return f"signal {-code}" if code < 0 else told[-1][:200] if told else f"code {code}"


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def _close(process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
    for stream in (*_pipes(process), said):
        with contextlib.suppress(OSError):
            stream.close()
    _end(process)


def _end(process: subprocess.Popen[bytes]) -> int:
    """Waits for the end of the process and kills it if it does not come; returns the exit code."""
    try:
        return process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def serve() -> None:
    """Answers the calls that come by stdin until it ends, and ends the process then, in the middle of a call, too."""
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no reply

    def read() -> None:
        try:
            while True:
                requests.put(pickle.load(sys.stdin.buffer))
        except EOFError:
            os._exit(0)
        except Exception as e:
            print(reason(e), file=sys.stderr, flush=True)
            os._exit(1)

    made: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def send() -> None:  # a long reply waits until it is read, and the next call does not
        while True:
            replies.write(made.get())
            replies.flush()

    for work in (read, send):
        threading.Thread(target=work, daemon=True).start()
    while True:
        function, arguments = requests.get()
        try:
            begun = time.perf_counter()
            result = function(*arguments)
            reply = pickle.dumps((None, result, time.perf_counter() - begun))
        except BaseException as e:  # sys.exit() too, which would wait for the thread that reads
            reply = pickle.dumps((reason(e), None, 0.0))
        made.put(reply)


if __name__ == "__main__":
    serve()
