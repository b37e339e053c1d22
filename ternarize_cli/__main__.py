"""`ternarize` and `python -m ternarize_cli`."""

import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command line; ends the process with the exit codes listed in `ternarize_cli.errors`."""
    try:
        from ternarize_cli.cli.app import app

        app(prog_name="ternarize")
    except KeyboardInterrupt:  # before or after the application itself listens for one
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
