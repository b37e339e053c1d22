"""The options of `ternarize publish`."""

from dataclasses import dataclass
from typing import Annotated

from ternarize_cli.storage.command_option import Option, plain_signature

__all__ = ["PublishOptions"]


@plain_signature
@dataclass(frozen=True)
class PublishOptions:
    """How a folder goes onto the hub.

    Attributes:
        private: make a new repository private; one that exists must be private already.
        create_pr: open a pull request instead of changing the branch; the repository must exist.
        revision: the branch; it is made if it is missing. None: main.
        message: the title of the commit; None: one that names ternarize.
        dry_run: check everything that can be checked here, and send nothing.
    """

    private: Annotated[bool, Option("Make a new repository private.")] = False
    create_pr: Annotated[bool, Option("Open a pull request instead of changing the branch.")] = False
    revision: Annotated[str | None, Option("The branch, made if it is missing; default: main.", metavar="BRANCH")] = (
        None
    )
    message: Annotated[str | None, Option("The title of the commit.", metavar="TEXT")] = None
    dry_run: Annotated[bool, Option("Send nothing; list the files and their bytes. Needs no token.")] = False
