"""Defines `ternarize publish`, which uploads a model or an export to the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

from ternarize_cli.cli.derived import derived
from ternarize_cli.cli.options import Json, Quiet
from ternarize_cli.cli.output import Output
from ternarize_cli.errors import quoted
from ternarize_cli.publish.options import PublishOptions

__all__ = ["register"]


def _publish(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A packed model, a ternary checkpoint, or an export with export.json.")
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="The hub id, owner/name; made if it is missing.")],
    *,
    options: PublishOptions,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Upload a model or an export to the Hugging Face hub.

    All files come in one commit. The folder is checked first: damaged files, links to outside, pickles, hidden files
    and access tokens are refused. The token is that of `hf auth login` or of HF_TOKEN.
    """
    from ternarize_cli import publish

    out = Output(json_mode=json, quiet=quiet)
    done = publish(folder, repo, options, say=out.note)
    rows = [(name, f"{size:,}") for name, size in done.files.items()]
    total = sum(done.files.values())
    out.table(done.repo, ["file", "bytes"], [*rows, ("all", f"{total:,}")])
    if done.others:
        out.note(f"{done.repo} had other files, which stay: {', '.join(done.others[:20])}")
    if options.dry_run:
        out.text(f"nothing was sent: without --dry-run these files go to {done.repo}")
        out.hint(f"ternarize publish {quoted(folder)} {quoted(repo)}")
    else:
        out.text(f"published {done.url}")
    files = [{"path": name, "bytes": size} for name, size in done.files.items()]
    out.result(
        {
            "repo": done.repo,
            "dry_run": options.dry_run,
            "url": done.url,
            "bytes": total,
            "files": files,
            "others": list(done.others),
        }
    )


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("publish")(derived(_publish))
