"""Scores that need not be computed twice.

A score depends on more than the model's name, which is all that MTEB's own cache knows of a local model. Here the name
of an entry is a sha256 over everything that decides the score, as canonical JSON:

    the model      content hash of its files, backend, kind of device
    the task       name, kind, sha256 or revision of the data, seed, limits
    the run        prompts, perturbation, what else the caller names
    the machine    architecture, instruction set or GPU
    the code       versions of MTEB, torch, transformers, sentence-transformers, and the source of this package

So an entry never has to be invalidated: what changed has another name. Batch size and threads do not count, although
they move the last digits of a vector.

    FOLDER/<key>.npz     header: UTF-8 JSON of the score's numbers and words, as bytes
                         values, gold, vectors: the arrays there are

JSON and npz both keep a float64 to the last bit, neither runs code when it is read (no pickles), and the checksums of
the zip format tell a damaged file, which counts as absent. Entries appear whole or not at all (`files.atomic_file`).
"""

import hashlib
import json
import platform
import zipfile
import zlib
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import ternarize_cli
from ternarize_cli.errors import TernarizeError
from ternarize_cli.evaluation.samples import Samples, Score
from ternarize_cli.files import atomic_file, cache_folder, tree_hash

__all__ = ["ScoreCache", "score_key"]

_LIBRARIES = ("mteb", "torch", "transformers", "sentence-transformers", "scikit-learn", "numpy")


def score_key(
    *, model: str, backend: str, device: str, task: str, kind: str, data: str, seed: int, **settings: object
) -> str:
    """The name of a score: 64 hex digits that differ if anything named here differs.

    Args:
        model: content hash of its files.
        backend: what runs it: "auto", a kernel, or a rival such as "openvino-int8".
        device: torch's name for it.
        task, kind: name and type of the task.
        data: sha256 of its data, or the revision of a data set.
        seed: of the task's splits and draws.
        settings: limits, prompts, perturbation and whatever else decides the score; of JSON's types.
    """
    parts = {
        "model": model,
        "backend": backend,
        "task": task,
        "kind": kind,
        "data": data,
        "seed": seed,
        "settings": settings,
        "machine": _machine(device),
        "code": _code(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _machine(device: str) -> list[str]:
    import torch

    kind = torch.device(device).type
    chip = torch.cuda.get_device_name(device) if kind == "cuda" else torch.backends.cpu.get_cpu_capability()
    return [kind, platform.machine(), chip]


@cache
def _code() -> dict[str, str]:
    source = tree_hash(Path(ternarize_cli.__file__).parent, lambda path: "__pycache__" not in path.parts)
    return {"ternarize": source, **{name: version(name) for name in _LIBRARIES}}


class ScoreCache:
    """Scores in a folder, one file each; the folder is made when the first score comes."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` None: `scores` among what is kept (`files.cache_folder`)."""
        self.folder = cache_folder("scores") if folder is None else folder

    def get(self, key: str) -> Score | None:
        """The score, equal to the last bit to the one that was put; None if there is none or its file is damaged."""
        try:
            with self._path(key).open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            header = json.loads(arrays.pop("header").tobytes())
            statistic = header.pop("statistic")
            samples = Samples(statistic, arrays["values"], arrays.get("gold")) if statistic else None
            return Score(**header, samples=samples, vectors=arrays.get("vectors"))
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error):
            return None

    def put(self, key: str, score: Score) -> bool:
        """Keeps a score. False if it can't be written, or another process is writing it: an evaluation goes on."""
        samples = score.samples
        header = {
            "task": score.task,
            "metric": score.metric,
            "size": int(score.size),
            "value": float(score.value),
            "statistic": samples.statistic if samples else None,
        }
        arrays: dict[str, Any] = {
            "header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8),
            "values": samples.values if samples else None,
            "gold": samples.gold if samples else None,
            "vectors": score.vectors,
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(self._path(key), force=True) as partial, partial.open("wb") as file:
                np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
        except (OSError, TernarizeError):
            return False
        return True

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npz"
