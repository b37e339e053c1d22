"""Serves the model of a wheel over HTTP, as `ternarize serve` does. Needs the wheel's extra `serve`."""

import os
from dataclasses import replace

from ternarize_cli.export.carried.place import FOLDER, PACKAGE, reading
from ternarize_cli.serve.options import ServeOptions
from ternarize_cli.serve.server import serve

__all__ = ["run"]


def run(host: str, port: int) -> None:
    """Serves until a signal comes. If TERNARIZE_API_KEY is set, only requests with that key are answered.

    Args:
        host: the address to listen on.
        port: the port; 0 takes a free one.

    Raises:
        InputError: the address, the port or the key can't be used.
        CheckpointError: a file of the model is missing or damaged.
        UnavailableError: the compiled library is missing or can't be loaded.
        KeyboardInterrupt: a second signal came, and requests were left unanswered.
    """
    options = replace(ServeOptions(host=host, port=port), api_key=os.environ.get("TERNARIZE_API_KEY"))
    with reading():
        serve({PACKAGE.name: FOLDER}, options, ready=lambda url, models: print(f"listening on {url}", flush=True))
