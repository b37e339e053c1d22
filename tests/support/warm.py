"""Processes that begin with their imports done: forks of one that has imported PyTorch and what stands above it.

    with warm.shared().start("encode", model, "-") as process: ...

Tests of signals, kills and streams need a process for each command line, but not seven seconds of imports in each. A
server in a process of its own imports the libraries once, and forks for each call. It has nothing of ours but the hook
that torch calls; what it forks imports us as any other program does, and runs as `__main__`.

    test ──arguments, files──▶ server ──fork──▶ keeper ──fork──▶ the program
      ◀────────────── process id, then exit status ─┘

This shows nothing of how Python starts and shuts down: tests of that start Python.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any

__all__ = ["LIBRARIES", "Program", "Server", "shared"]

LIBRARIES = (
    *("torch", "transformers", "sentence_transformers", "accelerate", "datasets", "mteb", "faiss", "pyarrow.parquet"),
    *("sentence_transformers.sentence_transformer.modules", "transformers.models.bert.modeling_bert"),
    *("transformers.models.auto", "torch.utils.data", "safetensors.torch", "rich.progress", "typer.testing"),
)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Program:
    """A running program, with the part of `subprocess.Popen` that tests need; it is killed where its block ends.

    Attributes:
        pid: its process id.
        stdin, stdout, stderr: its streams, as UTF-8, unless they were given or are not wanted.
        returncode: None while it runs; negative after a signal.
    """

    def __init__(self, pid: int, status: int, streams: Iterable[IO[str] | None]) -> None:
        self.pid, self._status = pid, status
        self.stdin, self.stdout, self.stderr = streams
        self.returncode: int | None = None

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = os.waitstatus_to_exitcode(int(os.read(self._status, 100)))
            os.close(self._status)
        return self.returncode

    def wait(self, timeout: float = 120) -> int:
        if self.returncode is None and not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, text: str = "", timeout: float = 120) -> tuple[str, str]:
        """Writes to stdin and closes it, reads both other streams to their ends, and waits; kills what is too slow."""
        said = ["", ""]

        def read(i: int, stream: IO[str] | None) -> None:
            said[i] = stream.read() if stream is not None else ""

        readers = [threading.Thread(target=read, args=(i, s)) for i, s in enumerate((self.stdout, self.stderr))]
        guard = threading.Timer(timeout, self.kill)
        for thread in (*readers, guard):
            thread.start()
        if self.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.stdin.write(text)
                self.stdin.close()
        for thread in readers:
            thread.join()
        self.wait(timeout)
        guard.cancel()
        self.__exit__()
        return said[0], said[1]


class Server:
    """A process that has imported modules and forks.

    Args:
        modules: what it imports.
        environment: variables that some of them read while they are imported.
    """

    def __init__(self, modules: Iterable[str] = LIBRARIES, environment: Mapping[str, str] | None = None) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno()), *modules],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**(os.environ if environment is None else environment), "OMP_NUM_THREADS": "1"},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def close(self) -> None:
        self._control.close()
        self._process.wait()

    def start(
        self,
        *arguments: object,
        program: str | Path | None = None,
        stdin: IO[Any] | int | None = None,
        output: int = subprocess.PIPE,
        cwd: object = None,
        env: Mapping[str, str] | None = None,
        ignoring: signal.Signals | None = None,
    ) -> Program:
        """Runs `ternarize` with arguments, or Python code.

        Args:
            arguments: those of the command line, `sys.argv[1:]`.
            program: the code or the file to run in the place of `python -m ternarize_cli`.
            stdin: a file, PIPE or DEVNULL; as `output` by default.
            output: where stdout and stderr go: PIPE, each to one of its own, or DEVNULL.
            cwd: the working folder; this process's by default.
            env: the whole environment; this process's by default.
            ignoring: a signal that is ignored from the start, as `nohup` has it.
        """
        mine: list[IO[str] | None] = []
        theirs: list[int] = []
        for number, wanted in enumerate((output if stdin is None else stdin, output, output)):
            if wanted == subprocess.PIPE:
                ends = os.pipe()
                mine.append(
                    os.fdopen(ends[number == 0], "r" if number else "w", encoding="utf-8", errors="surrogateescape")
                )
                theirs.append(ends[number != 0])
            else:
                mine.append(None)
                theirs.append(os.open(os.devnull, os.O_RDWR) if isinstance(wanted, int) else os.dup(wanted.fileno()))
        status, done = os.pipe()
        request = {
            "arguments": [str(argument) for argument in arguments],
            "program": program if program is None else str(program),
            "is_file": isinstance(program, Path),
            "cwd": str(cwd or os.getcwd()),
            "environment": dict(os.environ if env is None else env),
            "ignored": ignoring,
        }
        socket.send_fds(self._control, [json.dumps(request).encode()], [*theirs, done])
        for descriptor in (*theirs, done):
            os.close(descriptor)
        first = os.read(status, 4)
        assert first, "the server of warm processes has ended"
        return Program(int.from_bytes(first, "little"), status, mine)

    def run(self, *arguments: object, input: str = "", timeout: float = 120, **options: Any) -> Any:
        """Runs as `start` does, to its end; returns what `subprocess.run` returns."""
        process = self.start(*arguments, **options)
        out, err = process.communicate(input, timeout)
        return subprocess.CompletedProcess(arguments, process.wait(), out, err)


@cache
def shared() -> Server:
    """The server of this process of pytest; it ends with it."""
    return Server()


def _serve(control: socket.socket) -> dict[str, Any]:
    """Forks for each request until the other end is closed; returns a request in the process that is to run it."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 4)
        if not message:
            os._exit(0)
        keeper = os.fork()
        if not keeper:
            break
        for descriptor in descriptors:
            os.close(descriptor)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are forgotten
    control.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, status = descriptors
    program = os.fork()
    if program:
        for descriptor in streams:
            os.close(descriptor)
        os.write(status, program.to_bytes(4, "little"))
        os.write(status, str(os.waitpid(program, 0)[1]).encode())
        os._exit(0)
    os.close(status)
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    return json.loads(message)  # type: ignore[no-any-return]


def _become(request: dict[str, Any]) -> None:
    """Makes of this process one that has just been started for a request."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    for number in _SIGNALS:
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number == request["ignored"] else usual)
    sys.stdin = sys.__stdin__ = os.fdopen(0, encoding="utf-8", closefd=False)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", encoding="utf-8", closefd=False)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = os.fdopen(  # type: ignore[misc]
        2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
    )
    sys.argv[1:] = request["arguments"]


def _run(request: dict[str, Any]) -> int:
    """Runs a request as `__main__`; returns the exit code that Python would end with."""
    code: object = 0
    try:
        program = request["program"]
        if program is None:
            runpy.run_module("ternarize_cli", run_name="__main__", alter_sys=True)
        elif request["is_file"]:
            sys.path.insert(0, os.path.dirname(program))
            runpy.run_path(program, run_name="__main__")
        else:
            exec(compile(program, "<warm>", "exec"), {"__name__": "__main__"})
    except SystemExit as e:
        code = e.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if isinstance(code, str):
        print(code, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as e:
            print(f"Exception ignored in: {stream!r}\n{e!r}", file=sys.stderr)
            return 120
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in sys.argv[2:]:
            importlib.import_module(name)
        gc.collect()
        gc.freeze()  # a collection in a fork would write to, and so copy, all that was imported
        request = _serve(socket.socket(fileno=int(sys.argv[1])))
    _become(request)
    os._exit(_run(request))  # the interpreter's own end would visit all that was imported
