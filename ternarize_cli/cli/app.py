"""Defines the application `ternarize`: registers its commands, reads the settings file, and prints errors."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ternarize_cli import __version__
from ternarize_cli.cli import streams
from ternarize_cli.cli.failures import Failure, debugging, explained
from ternarize_cli.cli.help import Commands
from ternarize_cli.errors import is_panic, panicked
from ternarize_cli.storage import signals

__all__ = ["app"]


def _fail(failure: Failure) -> typer.Exit:
    streams.tell("error: " + failure.message.replace("\n", "\\n"))  # the message may name a stranger's file
    if failure.hint:
        streams.tell(f"  try: {failure.hint}")
    return typer.Exit(failure.code)


def _interrupted(error: KeyboardInterrupt) -> Failure:
    return Failure(str(error) or "interrupted", None, signals.exit_code(error))


def _hide_environment(command: Any) -> None:
    """Leaves environment variables out of the help of each option: the epilog says how they are named."""
    for parameter in command.params:
        parameter.show_envvar = False
        if parameter.name in ("version", "install_completion", "show_completion") and hasattr(command, "commands"):
            parameter.allow_from_autoenv = False
    for child in getattr(command, "commands", {}).values():
        _hide_environment(child)


class _Group(TyperGroup):
    """Turns an exception of a command into an error and a hint on stderr and an exit code.

    With TERNARIZE_DEBUG=1 the exception is raised, so that Python prints its traceback.
    """

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        _hide_environment(self)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _hide_environment(self)  # once more: typer has added the options of completion since
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            streams.flush()
            return result
        except (typer.Exit, typer.Abort, typer.TyperException):
            raise
        except KeyboardInterrupt as e:
            raise _fail(_interrupted(e)) from e
        except Exception as e:
            if number := signals.received():  # a signal came during a library's own clean-up, which then failed
                raise _fail(_interrupted(signals.ending(number))) from e
            if isinstance(e, BrokenPipeError) and streams.is_unread(sys.stdout):
                streams.silence(sys.stdout)  # `ternarize … | head`: the reader has ended, which is no failure
                raise typer.Exit(0) from e
            if debugging():
                raise
            raise _fail(explained(e)) from e
        except BaseException as e:
            if debugging() or not is_panic(e):
                raise
            raise _fail(explained(panicked(e))) from e


app = Commands(
    cls=_Group,
    no_args_is_help=True,
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
    """Makes a list of one value that a settings file gives to an option which takes several."""
    if hasattr(command, "commands"):
        return {name: _lists(values.get(name, {}), sub) for name, sub in command.commands.items()}
    several = {p.name for p in command.params if getattr(p, "multiple", False)}
    return {k: [v] if k in several and not isinstance(v, list) else v for k, v in values.items()}


def _options(command: Any) -> Any:
    """Returns the set of a command's option names, or, for a group, a dict from each of its commands to its names."""
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
    from ternarize_cli.cli.settings import check_guarded, default_map, read_settings, unknown_variables

    for name, meant in unknown_variables(os.environ, _options(ctx.command)).items():
        streams.tell(f"note: nothing reads the variable {name}" + (f"; do you mean {meant}?" if meant else ""))
    path, content = read_settings(config)
    if path is not None and config is None:
        check_guarded(content, str(path))
    if path is not None:
        ctx.default_map = _lists(default_map(content, _options(ctx.command), str(path)), ctx.command)


def _register() -> None:
    from ternarize_cli.cli import (
        bench,
        compress,
        convert,
        demo,
        distill,
        doctor,
        encode,
        evaluate,
        export,
        index,
        inspect,
        pack,
        publish,
        serve,
    )

    for module in (
        compress,
        convert,
        distill,
        pack,
        bench,
        evaluate,
        index,
        encode,
        serve,
        export,
        publish,
        inspect,
        doctor,
        demo,
    ):
        module.register(app)


_register()
