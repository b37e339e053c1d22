"""Finished work of a long encoding run, safe against a kill at any moment.

Encoding is a pure function of the model and the texts, so it is cut into numbered shards: shard i is rows
`[i * size, (i + 1) * size)` of the corpus, one `.npy` file, and one line of `manifest.jsonl` with its digest. The first
line of the manifest says what the shards are of; work on another corpus or model is never mixed in. A file appears
under its name only when it is whole and synced, and its line is written after it, so a line without a whole file (or
half a line) can't count as finished work.
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ternarize_cli.files import sha256

__all__ = ["ShardKey", "Shards"]

_MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class ShardKey:
    """What decides the vectors: shards with another key are of no use."""

    corpus_sha256: str
    model_sha256: str
    normalized: bool
    size: int


class Shards:
    """The shards of one run in `folder`, which is made if it is missing.

    Shards found there under the same key and with the right digest are `finished`; anything else is deleted.

    Attributes:
        finished: numbers of the shards that need no more work.
        discarded: whether there was work that could not be used.
    """

    def __init__(self, folder: Path, key: ShardKey) -> None:
        self._folder, self._size = folder, key.size
        self._manifest = folder / _MANIFEST
        folder.mkdir(exist_ok=True)
        written = self._lines()
        head = {"key": dataclasses.asdict(key)}
        self.discarded = bool(written) and written[0] != head
        usable = [] if self.discarded else [line for line in written[1:] if self._whole(line)]
        self.finished = {line["shard"] for line in usable}
        fresh = folder / "manifest.partial"
        fresh.write_text("".join(json.dumps(line) + "\n" for line in [head, *usable]), encoding="utf-8")
        fresh.replace(self._manifest)
        kept = {self._manifest, *(self.path(i) for i in self.finished)}
        for path in folder.iterdir():
            if path not in kept:
                path.unlink()

    def path(self, shard: int) -> Path:
        """Where shard's vectors are."""
        return self._folder / f"{shard:06d}.npy"

    def put(self, shard: int, vectors: np.ndarray) -> None:
        """Stores float32 `[rows, dim]` as a finished shard."""
        partial = self._folder / f"{shard:06d}.partial"
        with partial.open("wb") as stream:
            np.save(stream, vectors)
            stream.flush()
            os.fsync(stream.fileno())
        digest = sha256(partial)
        partial.replace(self.path(shard))
        with self._manifest.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"shard": shard, "rows": len(vectors), "sha256": digest}) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.finished.add(shard)

    def load(self, shard: int) -> np.ndarray:
        """A finished shard's vectors."""
        return np.load(self.path(shard))

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Some rows of the finished shards, by their numbers in rising order: float32 `[len(rows), dim]`."""
        shards = rows // self._size
        chosen = (np.load(self.path(i), mmap_mode="r")[rows[shards == i] - i * self._size] for i in np.unique(shards))
        return np.concatenate([np.asarray(part) for part in chosen])

    def _lines(self) -> list[dict]:
        """The manifest up to its first torn line."""
        lines: list[dict] = []
        if self._manifest.is_file():
            for text in self._manifest.read_text(encoding="utf-8").splitlines():
                try:
                    lines.append(json.loads(text))
                except json.JSONDecodeError:
                    break
        return lines

    def _whole(self, line: dict) -> bool:
        path = self.path(line["shard"])
        return path.is_file() and sha256(path) == line["sha256"]
