"""Serves the model of a wheel over HTTP, as `ternarize serve` does. Needs the wheel's extra `serve`."""

import os
from dataclasses import replace

from ternarize_cli.export.carried.place import FOLDER, PACKAGE
from ternarize_cli.serve.options import ServeOptions
from ternarize_cli.serve.server import serve

__all__ = ["run"]


def run(host: str, port: int) -> None:
    """Serves until a signal comes; clients send the key in TERNARIZE_API_KEY if that is set.

    Args:
        host: the address to listen on.
        port: the port; 0 takes a free one.

    Raises:
        InputError: the address or the key can't be used.
        UnavailableError: the model can't run here.
    """
    options = replace(ServeOptions(host=host, port=port), api_key=os.environ.get("TERNARIZE_API_KEY"))
    serve({PACKAGE.name: FOLDER}, options, ready=lambda url, models: print(f"listening on {url}", flush=True))
