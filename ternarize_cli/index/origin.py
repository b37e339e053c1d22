"""Where vectors come from: the model that made them, and how. Vector folders and indexes record it alike.

The record names the model's folder, so that a search can open it without being told. An index may come from anybody,
though, and then that path is a stranger's word. So the path carries a seal: an HMAC-SHA256 of model, path and content
hash under a key that lies in this user's cache. A path whose seal does not fit was not recorded here, and is opened
only where the user is looking anyway (`is_own`).
"""

import hashlib
import hmac
import os
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from ternarize_cli.caches import cache_folder, check_own, keep_file
from ternarize_cli.errors import InputError

__all__ = ["Origin"]

_KEY, _KEY_BYTES = "path.key", 32


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What made some vectors.

    Attributes:
        model: MODEL as it was typed; model_path: the folder that it stood for; model_sha256: its content hash.
        kind: "text" or "image".
        normalized: whether the vectors were scaled to length 1, which makes the inner product the cosine.
        document_prompt, query_prompt: names of the model's prompts.
        path_seal: the seal of `model_path`; empty where there was no cache to keep a key in.
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
        """The fields above, for another record of the same vectors."""
        return {one.name: getattr(self, one.name) for one in fields(Origin)}

    def sealed(self) -> Self:
        """This record with a seal of this user."""
        key = _key(make=True)
        return self if key is None else replace(self, path_seal=self._seal(key))

    def is_own(self, folder: Path) -> bool:
        """Whether the model's path may be opened unasked.

        It may if this user's ternarize recorded it, or if it lies in the folder of the vectors, in the folder that
        holds that one, or in the working folder.

        Args:
            folder: of the vectors or the index.
        """
        key = _key(make=False)
        if key is not None and hmac.compare_digest(self._seal(key), self.path_seal):
            return True
        target, near = Path(self.model_path).resolve(), folder.resolve()
        return any(place in target.parents for place in (near, near.parent, Path.cwd()) if place != place.parent)

    def _seal(self, key: bytes) -> str:
        text = "\0".join((self.model, self.model_path, self.model_sha256))
        return hmac.new(key, text.encode(errors="surrogateescape"), hashlib.sha256).hexdigest()


def _key(*, make: bool) -> bytes | None:
    """This user's key; None if there is none, and none can be made."""
    with suppress(OSError, InputError):
        path = cache_folder("indexes") / _KEY
        if make and not check_own(path):
            keep_file(path, lambda stream: stream.write(os.urandom(_KEY_BYTES)))
        if check_own(path):
            found = path.read_bytes()
            return found if len(found) == _KEY_BYTES else None
    return None
