"""Starts busy processes beside a measurement: the programs that share a rented machine, or a server's other work.

A neighbour counts, touches no memory, and has the priority of the process that started it. It ends with the body of
`busy_neighbours`. If the process that started it is killed or crashes, the neighbour finds that it has another parent,
and ends, too: it looks every few milliseconds.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["busy_neighbours"]

_PROGRAM = """
import os, sys
print(flush=True)
while os.getppid() == int(sys.argv[1]):
    for _ in range(100_000):
        pass
"""


@contextmanager
def busy_neighbours(count: int) -> Iterator[list[int]]:
    """Keeps `count` processes busy while the body runs; yields their process ids once all of them run."""
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(os.getpid())]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            started.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            )
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        yield [process.pid for process in started]
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
