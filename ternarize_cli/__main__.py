"""`ternarize` and `python -m ternarize_cli`."""

from ternarize_cli.cli.app import app

__all__ = ["main"]


def main() -> None:
    """Runs the command line; ends the process with the exit codes listed in `ternarize_cli.errors`."""
    app(prog_name="ternarize")


if __name__ == "__main__":
    main()
