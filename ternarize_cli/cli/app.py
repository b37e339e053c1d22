"""The application: its commands, the settings file, and what an error looks like."""

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ternarize_cli import __version__
from ternarize_cli.errors import TernarizeError

__all__ = ["app"]


def _debugging() -> bool:
    return os.environ.get("TERNARIZE_DEBUG", "") not in ("", "0")


def _fail(message: str, hint: str | None, code: int) -> typer.Exit:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"  try: {hint}", file=sys.stderr)
    return typer.Exit(code)


def _hide_environment(command: Any) -> None:
    """One sentence below the help says how options are set in the environment; a line for each would drown it."""
    for parameter in command.params:
        parameter.show_envvar = False
        if parameter.name == "version":
            parameter.allow_from_autoenv = False
    for child in getattr(command, "commands", {}).values():
        _hide_environment(child)


class _Group(TyperGroup):
    """Turns errors into a few lines on stderr and an exit code; TERNARIZE_DEBUG=1 shows the traceback."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        _hide_environment(self)

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a reader that has gone is noticed here, not while Python shuts down
            return result
        except (typer.Exit, typer.Abort, typer.TyperException):
            raise
        except TernarizeError as e:
            if _debugging():
                raise
            raise _fail(str(e), e.hint, e.exit_code) from e
        except KeyboardInterrupt as e:
            raise _fail("interrupted", None, 130) from e
        except BrokenPipeError as e:  # `ternarize … | head`: the reader has seen enough, and nothing failed
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from e
        except OSError as e:
            if _debugging():
                raise
            where = f": {e.filename}" if e.filename else ""
            hint = "free some space or write elsewhere" if e.errno == errno.ENOSPC else None
            raise _fail(f"{e.strerror or e}{where}", hint, 1) from e
        except Exception as e:
            if _debugging():
                raise
            text = " ".join(str(e).split())
            raise _fail(
                f"unexpected {type(e).__name__}: {text[:300]}",
                "run again with TERNARIZE_DEBUG=1 for the traceback, and report it",
                1,
            ) from e


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # Rich help pages cost 0.2 s of imports
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "TERNARIZE"},
    help="Give any encoder ternary weights: convert, distill, pack, then bench, eval, index and encode with it.",
    epilog="Every option can also be set as TERNARIZE_COMMAND_OPTION or in ternarize.toml.",
)


def _show_version(value: bool) -> None:
    if value:
        print(f"ternarize {__version__}")
        raise typer.Exit


def _lists(values: dict[str, Any], command: Any) -> dict[str, Any]:
    """A settings file may give one value to an option that takes several."""
    if hasattr(command, "commands"):
        return {name: _lists(values.get(name, {}), sub) for name, sub in command.commands.items()}
    several = {p.name for p in command.params if getattr(p, "multiple", False)}
    return {k: [v] if k in several and not isinstance(v, list) else v for k, v in values.items()}


def _options(command: Any) -> Any:
    """The option names of a command, or of each command of a group, as `settings.default_map` wants them."""
    if hasattr(command, "commands"):
        return {name: _options(sub) for name, sub in command.commands.items()}
    return {p.name for p in command.params if p.param_type_name == "option" and p.name not in ("help", "force")}


@app.callback()
def _root(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", envvar="TERNARIZE_CONFIG", help="Settings file; default: ./ternarize.toml if it exists."
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    from ternarize_cli.settings import default_map, read_settings

    path, content = read_settings(config)
    if path is not None:
        ctx.default_map = _lists(default_map(content, _options(ctx.command), str(path)), ctx.command)


def _register() -> None:
    from ternarize_cli.cli import bench, convert, demo, distill, doctor, encode, evaluate, index, inspect, pack

    for module in (convert, distill, pack, bench, evaluate, index, encode, inspect, doctor, demo):
        module.register(app)


_register()
