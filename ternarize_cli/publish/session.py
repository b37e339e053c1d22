"""`publish` as Python users call it, and `ternarize publish`: checks a folder, and uploads it in one commit."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ternarize_cli.compress.card import addressed
from ternarize_cli.encoders import hub
from ternarize_cli.errors import InputError, TernarizeError, UnavailableError, counted, quoted, reason, shown
from ternarize_cli.export.card import HERE
from ternarize_cli.export.export_folder import EXPORT
from ternarize_cli.publish.contents import contents_of
from ternarize_cli.publish.options import PublishOptions

__all__ = ["Published", "publish"]

_CARD = "README.md"


@dataclass(frozen=True)
class Published:
    """What was uploaded, or would be.

    Attributes:
        repo: the hub id.
        files: path in the repository → bytes.
        url: the address of the commit or pull request; None after a dry run.
        others: files that the repository had before and that stay.
    """

    repo: str
    files: Mapping[str, int]
    url: str | None = None
    others: tuple[str, ...] = ()


def publish(
    folder: str | Path,
    repo: str,
    options: PublishOptions | None = None,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> Published:
    """Uploads a packed model, a ternary checkpoint or an export to the Hugging Face hub, in one commit.

        ternarize.publish("my-packed", "me/my-model-ternary", ternarize.PublishOptions(private=True))

    The code in the uploaded card names the repository, where that in the folder's card names the folder. The token is
    that of `hf auth login` or of HF_TOKEN.

    Args:
        folder: the folder.
        repo: the hub id, such as "owner/name"; made if it is missing.
        options: how; None: `PublishOptions()`.
        say: is told what goes on.

    Raises:
        CheckpointError: the folder is damaged, or is nothing that ternarize made, or holds a link to a place outside.
        InputError: the folder holds a file that does not belong to it, the hub id can't be one, there is no token or
            it is refused, or `private` is set and the repository is public.
        UnavailableError: HF_HUB_OFFLINE is set.
        TernarizeError: the hub can't be reached, or refuses the files.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token

    options, folder = options or PublishOptions(), Path(folder).expanduser()
    target = _target(repo, options.revision)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}", hint="ternarize publish DIR OWNER/NAME")
    contents = contents_of(folder)
    card = _card(contents, target.name)
    sizes = {name: len(card) if name == _CARD else path.stat().st_size for name, path in contents.items()}
    if options.dry_run:
        return Published(target.name, sizes)
    if constants.is_offline_mode():
        raise UnavailableError(
            "HF_HUB_OFFLINE is set, so nothing can be uploaded", hint="unset HF_HUB_OFFLINE, or use --dry-run"
        )
    token = get_token()
    if token is None:
        raise InputError("there is no token for the hub here", hint="hf auth login, or set HF_TOKEN")
    api = HfApi(token=token, library_name="ternarize")
    with _explained(target.name, token):
        name = target.name
        if not options.create_pr:
            say(f"making {name}, if it is not there yet …")
            name = api.create_repo(name, private=options.private or None, exist_ok=True).repo_id
        known = api.model_info(name)
        if options.private and not known.private:
            raise InputError(
                f"{name} exists already and is public", hint="make it private on its page, or another name"
            )
        if options.revision is not None and not options.create_pr:
            api.create_branch(name, branch=options.revision, exist_ok=True)
        say(f"uploading {counted(len(contents), 'file')}, {sum(sizes.values()):,} bytes …")
        card = _card(contents, name)
        done = api.create_commit(
            name,
            [CommitOperationAdd(one, card if one == _CARD else path) for one, path in contents.items()],
            commit_message=options.message or "Upload with ternarize",
            revision=options.revision,
            create_pr=options.create_pr,
        )
    before = {file.rfilename for file in known.siblings or ()} - {".gitattributes"}
    return Published(name, sizes, done.pr_url or done.commit_url, tuple(sorted(before - contents.keys())))


def _target(repo: str, revision: str | None) -> hub.HubModel:
    """Reads the hub id, and checks the branch.

    Raises:
        InputError: the text is no hub id, names a revision, or the branch can't be one.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        found = hub.parse(repo)
        hub.parse(f"{found.name}@{revision or 'main'}")
        validate_repo_id(found.name)
    except (TernarizeError, HFValidationError) as e:
        raise InputError(
            f"{shown(repo)} with the branch {shown(revision or 'main')} can't be a place on the hub",
            hint="ternarize publish DIR OWNER/NAME --revision BRANCH",
        ) from e
    if found.revision is not None:
        raise InputError(f"{repo} names a revision", hint=f"{found.name} --revision {found.revision}")
    return found


def _card(contents: Mapping[str, Path], repo: str) -> bytes:
    """Reads the card, with the name of the repository in its code; empty if there is none."""
    if _CARD not in contents:
        return b""
    content = contents[_CARD].read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return content
    if EXPORT in contents:
        return text.replace(f"({HERE}", f'("{repo}"').encode()
    return addressed(text, repo).encode()


@contextmanager
def _explained(repo: str, token: str) -> Iterator[None]:
    """Says in our words why the hub takes nothing; no message holds the token."""
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    again = f"ternarize publish DIR {quoted(repo)}"
    try:
        yield
    except TernarizeError:
        raise
    except HfHubHTTPError as e:
        code = e.response.status_code if e.response is not None else None
        said = reason(e).replace(token, "…")
        if code == 401 and not isinstance(e, RepositoryNotFoundError):
            raise InputError("the hub does not take the token", hint=f"hf auth login, then: {again}") from None
        if code == 403:
            raise InputError(
                f"the token may not write to {repo}",
                hint="a token of the role write, from huggingface.co/settings/tokens; or --create-pr",
            ) from None
        if isinstance(e, RepositoryNotFoundError) or code == 404:
            raise InputError(
                f"there is no repository {repo} that the token can see",
                hint=f"check the name; without --create-pr it is made: {again}",
            ) from None
        raise TernarizeError(f"the hub refuses the upload to {repo}: {said}", hint=f"later again: {again}") from None
    except Exception as e:  # of whichever library speaks to the hub
        said = f"{type(e).__name__}: {reason(e)}".replace(token, "…")
        is_network = isinstance(e, OSError) or type(e).__module__.startswith("httpx")
        what = "the hub can't be reached" if is_network else f"the upload to {repo} failed"
        raise TernarizeError(f"{what}: {said}", hint=f"look at the network and HF_ENDPOINT, then: {again}") from None
