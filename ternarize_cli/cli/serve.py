"""Defines `ternarize serve`, an embedding server."""

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ternarize_cli.cli.derived import derived
from ternarize_cli.cli.options import Json, Quiet
from ternarize_cli.errors import InputError, UnavailableError, counted
from ternarize_cli.serve.options import ServeOptions

if TYPE_CHECKING:
    from ternarize_cli.serve.models import Served

__all__ = ["register"]

_KEY = "TERNARIZE_API_KEY"
_NEEDED = ("httptools", "orjson", "uvicorn")


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("serve")(derived(_serve))


def _serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL…",
            help="Packed models: folders, hub ids, or package:NAME. Clients call a model by the last part of its name, "
            "or by NAME if it is given as NAME=MODEL.",
        ),
    ],
    *,
    options: ServeOptions,
    index: Annotated[
        Path | None,
        typer.Option("--index", metavar="DIR", help="Answer /search and /documents from an index of texts."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Serve packed models over HTTP.

    The API is that of OpenAI and of text-embeddings-inference. Needs the extra `serve`, but not
    PyTorch. Texts of many requests share a pass of the model. SIGTERM and Ctrl-C answer every
    request that has come, and then end the server. GET /docs describes the API.
    """
    from ternarize_cli.cli.output import Output
    from ternarize_cli.encoders.loading import resolve

    out = Output(json_mode=json, quiet=quiet)
    if options.api_key is None and os.environ.get(_KEY) == "":  # the option parser takes it for one that is not set
        raise InputError(f"{_KEY} is empty, and everybody could ask the server", hint=f"set it, or unset {_KEY}")
    named = dict(_named(model) for model in models)
    if len(named) < len(models):
        raise InputError("two models have one name", hint="ternarize serve NAME=MODEL OTHER=MODEL")
    folders = {name: resolve(model) for name, model in named.items()}
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UnavailableError(f"the server needs {', '.join(missing)}", hint="pip install 'ternarize-cli[serve]'")

    from ternarize_cli.serve.server import serve

    opened = None
    if index is not None:
        from ternarize_cli.serve.index_folder import IndexFolder

        opened = IndexFolder(index, folders, options.threads)

    def ready(url: str, served: "list[Served]") -> None:
        for model in served:
            out.note(model.summary)
        if opened is not None:
            out.note(f"{index}: {counted(opened.count, 'document')}")
        out.text(f"listening on {url}")
        out.result({"url": url, "models": [model.name for model in served]})
        sys.stdout.flush()

    serve(folders, options, index=opened, ready=ready)


def _named(model: str) -> tuple[str, str]:
    """Returns the name that clients call a model by, and the model: of `NAME=MODEL`, or of MODEL alone."""
    name, equals, rest = model.partition("=")
    if equals and name and "/" not in name:
        return name, rest
    return re.split(r"[/:]", model.rstrip("/"))[-1] or model, model
