"""Records which model made some vectors, and how. Vector folders and indexes both hold this record.

The record names the model's folder, so that a search can open the model by itself. An index may come from anybody,
though, and then that path can't be trusted. So the path carries a seal: an HMAC-SHA256 of model, path and content
hash under a key in this user's cache (`is_sealed`). A path whose seal does not fit was not recorded by this user, and
is opened unasked only if it is in the folder of the index or in the working folder (`is_near`).
"""

import hashlib
import hmac
import os
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from ternarize_cli.errors import InputError
from ternarize_cli.storage.cache_folder import cache_folder, check_own, keep_file

__all__ = ["Origin"]

_KEY, _KEY_BYTES = "path.key", 32


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The model that made some vectors, and the settings it was used with.

    Attributes:
        model: MODEL as the user typed it.
        model_path: the folder that MODEL stood for.
        model_sha256: content hash of that folder, in hexadecimal.
        kind: "text" or "image".
        normalized: whether the vectors were scaled to length 1, which makes the inner product the cosine.
        document_prompt, query_prompt: names of the model's prompts.
        path_seal: the seal of `model_path`; empty if there was no cache to keep a key in.
    """

    model: str
    model_path: str
    model_sha256: str
    kind: str
    normalized: bool
    document_prompt: str | None
    query_prompt: str | None
    path_seal: str = field(default="", compare=False)

    @property
    def origin(self) -> dict[str, Any]:
        """The fields of `Origin` alone, to be copied into another record of these vectors."""
        return {one.name: getattr(self, one.name) for one in fields(Origin)}

    def sealed(self) -> Self:
        """A copy of this record with this user's seal."""
        key = _key(make=True)
        return self if key is None else replace(self, path_seal=self._seal(key))

    def is_sealed(self) -> bool:
        """Whether this user's ternarize recorded the model's path."""
        key = _key(make=False)
        given = self.path_seal.encode(errors="surrogatepass")
        return key is not None and hmac.compare_digest(self._seal(key).encode(), given)

    def is_near(self, folder: Path) -> bool:
        """Whether the model's folder lies in the folder of the vectors or in the working folder.

        Args:
            folder: the folder of the vectors or the index.
        """
        try:
            named = Path(self.model_path)
            target, places = named.resolve(), (folder.resolve(), Path.cwd())
            there = named.is_absolute() and target.is_dir()
        except (OSError, ValueError, RuntimeError):  # an impossible path, such as a link to itself
            return False
        return there and any(place in target.parents for place in places if place != place.parent)

    def _seal(self, key: bytes) -> str:
        text = "\0".join((self.model, self.model_path, self.model_sha256))
        return hmac.new(key, text.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()


def _key(*, make: bool) -> bytes | None:
    """Reads this user's key, or makes one if `make`; None if there is no key and none can be made."""
    with suppress(OSError, InputError):
        path = cache_folder("indexes") / _KEY
        if make and not check_own(path):
            keep_file(path, lambda stream: stream.write(os.urandom(_KEY_BYTES)))
        if check_own(path):
            found = path.read_bytes()
            return found if len(found) == _KEY_BYTES else None
    return None
