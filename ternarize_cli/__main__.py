"""`ternarize` and `python -m ternarize_cli`."""

import os
import sys

from ternarize_cli.cli import streams
from ternarize_cli.storage import signals

__all__ = ["main"]

_SLEEPS = ("encode", "index")
"""Commands whose threads sleep while they wait; the others train, or measure rivals as their users run them."""


def main() -> None:
    """Runs the command line; ends the process with the exit codes listed in `ternarize_cli.errors`."""
    streams.prepare()
    if sys.argv[1:2] and sys.argv[1] in _SLEEPS:  # OpenMP reads this when torch loads it
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    code: object = 1
    try:
        with signals.listen():
            code = _run()
            if code == 130 and (number := signals.received()):  # while options were parsed: all interrupts are one
                code = 128 + number
    except KeyboardInterrupt as e:  # before or after the application itself listens for one
        streams.tell(f"error: {e or 'interrupted'}")
        code = signals.exit_code(e)
    if code:  # what failed once fails again while Python shuts down, as without memory, and the user knows
        sys.unraisablehook = lambda _: None
    sys.exit(code)  # type: ignore[arg-type]


def _run() -> object:
    """The exit code of the application, also where it can't be loaded."""
    try:
        try:
            from ternarize_cli.cli.app import app

            app(prog_name="ternarize")
        except SystemExit as e:
            if isinstance(
                e.__context__, BrokenPipeError
            ):  # `ternarize --help | head`, which the parser calls a failure
                streams.silence(sys.__stdout__)
                return 0
            streams.flush()
            return e.code
        return 0
    except Exception as e:
        from ternarize_cli.cli.failures import debugging, explained

        if debugging():
            raise
        failure = explained(e)
        streams.tell(f"error: {failure.message}" + (f"\n  try: {failure.hint}" if failure.hint else ""))
        return failure.code


if __name__ == "__main__":
    main()
