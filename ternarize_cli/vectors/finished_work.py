"""Keeps the finished shards of a long encoding run safe against a kill at any moment.

Encoding is a pure function of the model and the texts, so it is cut into numbered shards: shard i is rows
`[i * size, (i + 1) * size)` of the corpus. A shard is one or more files and a record with their digests:

    000012.npy                data; the suffix names its format
    __records__/000012.json   {"files": {".npy": "sha256…"}, …}, with a digest of itself (`checksummed`)

Arrow, pandas and the library `datasets` pass over a folder of such a name when they read all files of a folder.
A file gets its name only when it is whole and synced, and the record is written after all files. So a record without
whole files, or half a record, never counts as finished work. Each shard has a record of its own, so that processes on
many machines can write to one folder without talking to each other.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from ternarize_cli.errors import DataError
from ternarize_cli.storage.bounds import read_bytes, require_regular
from ternarize_cli.storage.checksummed import checked, with_checksum
from ternarize_cli.storage.digests import sha256
from ternarize_cli.storage.whole_files import put_file, sweep

__all__ = ["RECORDS", "ShardFiles"]

RECORDS = "__records__"
"""The name of the folder of records."""

_SUFFIX = re.compile(r"\.[a-z]{2,10}")


class ShardFiles:
    """Writes and reads the shards in `folder`, which is made if it is missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def path(self, shard: int, suffix: str) -> Path:
        """Path of the file of a shard that has this suffix; its record has the suffix `.json`."""
        return (self.folder / RECORDS if suffix == ".json" else self.folder) / f"{shard:06d}{suffix}"

    def put(self, shard: int, contents: Mapping[str, Callable[[IO[bytes]], None]], **record: Any) -> None:
        """Writes the files of a shard, and then its record.

        Args:
            shard: number of the shard.
            contents: for each suffix, a function that writes the file to an open stream.
            record: fields of the record besides the digests of the files.
        """
        digests = {suffix: put_file(self.path(shard, suffix), write) for suffix, write in contents.items()}
        self.amend(shard, {"files": digests, **record})

    def amend(self, shard: int, record: dict[str, Any]) -> None:
        """Replaces the record of a finished shard, and leaves its files."""
        (self.folder / RECORDS).mkdir(exist_ok=True)
        text = with_checksum(record).encode()
        put_file(self.path(shard, ".json"), lambda stream: stream.write(text))

    def record(self, shard: int) -> dict[str, Any] | None:
        """The record of a finished shard; None if it is missing, or the record or a file has changed since."""
        try:
            found = checked(read_bytes(self.path(shard, ".json"), error=DataError).decode())
            whole = all(self._is_whole(shard, suffix, digest) for suffix, digest in found["files"].items())
        except (DataError, OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        return found if whole else None

    def _is_whole(self, shard: int, suffix: str, digest: str) -> bool:
        if not _SUFFIX.fullmatch(suffix):  # a damaged record may name any path
            return False
        path = self.path(shard, suffix)
        require_regular(path, DataError)
        return sha256(path) == digest

    def remove(self, shard: int) -> None:
        """Deletes a shard: first its record, then its files."""
        for path in (self.path(shard, ".json"), *self.folder.glob(f"{shard:06d}.*")):
            path.unlink(missing_ok=True)

    def remove_from(self, end: int, part: tuple[int, int] = (1, 1)) -> None:
        """Deletes the shards from number `end` on, which a longer corpus has left.

        Args:
            end: the first number that is too large.
            part: (i, n) deletes every n-th shard only, beginning with the i-th: the part of one job of n.
        """
        for number in self.numbers():
            if number >= end and number % part[1] == part[0] - 1:
                self.remove(number)

    def numbers(self) -> list[int]:
        """Numbers of the shards that have a record, whether it is whole or not."""
        return sorted(int(path.stem) for path in (self.folder / RECORDS).glob("*.json") if path.stem.isdigit())

    def sweep(self) -> None:
        """Removes partial files that killed jobs have left; partial files of running jobs stay."""
        sweep(self.folder)
        sweep(self.folder / RECORDS)
