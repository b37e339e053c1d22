"""A cache of scores.

MTEB's own cache knows a local model only by its name, but a score depends on more. Here the name of an entry is a
sha256 over everything that decides the score, as canonical JSON:

    the model      content hash of its files, backend, kind of device
    the task       name, kind, sha256 or revision of the data, seed, limits
    the run        prompts, perturbation, and other settings of the caller
    the machine    architecture, instruction set or GPU
    the code       versions of MTEB, torch, transformers, sentence-transformers, and the source of this package

So an entry never has to be invalidated: after any change, the name is another. Batch size and threads do not count,
although they change the last digits of a vector.

    FOLDER/<key>.npz     header: UTF-8 JSON of the score's numbers and texts, as bytes
                         values, gold, vectors, queries, documents: arrays, if the score has them

JSON and npz both keep a float64 to the last bit, neither runs code when it is read (no pickles), and the checksums of
the zip format show a damaged file, which counts as absent. Entries appear whole or not at all, and entries that other
users could have written are refused (`cache_folder`).
"""

import hashlib
import json
import logging
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import ternarize_cli
from ternarize_cli.errors import TernarizeError
from ternarize_cli.evaluation.samples import Samples, Score, Sides
from ternarize_cli.storage.arrays import read_npz
from ternarize_cli.storage.bounds import parse_json
from ternarize_cli.storage.cache_folder import cache_folder, check_own, keep_file
from ternarize_cli.storage.digests import tree_hash

__all__ = ["ScoreCache", "score_key"]

_LOG = logging.getLogger(__name__)

_LIBRARIES = ("mteb", "torch", "transformers", "sentence-transformers", "scikit-learn", "numpy")


def score_key(
    *, model: str, backend: str, device: str, task: str, kind: str, data: str, seed: int, **settings: object
) -> str:
    """Computes the name of a score: 64 hex digits, which differ if any argument differs.

    Args:
        model: content hash of the model's files.
        backend: the backend that runs the model: "auto", a kernel, or a rival such as "openvino-int8".
        device: torch's name of the device.
        task, kind: name and type of the task.
        data: sha256 of the task's data, or the revision of a data set.
        seed: seed of the task's splits and draws.
        settings: limits, prompts, perturbation and all else that decides the score; values of JSON's types.
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
    """Scores in a folder, one file each; the folder is made when the first score is put."""

    def __init__(self, folder: Path | None = None) -> None:
        """Uses `folder`; None means `scores` in the user's cache (`storage.cache_folder`).

        Raises:
            InputError: the cache exists, and other users can write to it.
        """
        self.folder = cache_folder("scores") if folder is None else folder
        self._told = False

    def get(self, key: str) -> Score | None:
        """Reads a score, equal to the last bit to the one that was put; None if it is missing or damaged.

        Raises:
            InputError: the file or its folder belongs to another user, or other users can write to it.
        """
        if not all(check_own(path) for path in (self.folder, self._path(key))):
            return None
        try:
            arrays = read_npz(self._path(key), TernarizeError, ["header"], ["values", "gold", "vectors", *Sides.NAMES])
            header = parse_json(arrays.pop("header").tobytes(), key, error=TernarizeError)
            statistic = header.pop("statistic")
            samples = Samples(statistic, arrays["values"], arrays.get("gold")) if statistic else None
            sides = Sides(*(arrays[name] for name in Sides.NAMES)) if Sides.NAMES[0] in arrays else None
            return Score(**header, samples=samples, vectors=arrays.get("vectors"), sides=sides)
        except (TernarizeError, KeyError, TypeError, AttributeError):
            return None

    def put(self, key: str, score: Score) -> bool:
        """Stores a score. If it can't be written, logs this once and returns False, so that an evaluation goes on.

        Raises:
            InputError: the folder exists, and other users can write to it.
        """
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
            **(vars(score.sides) if score.sides else {}),
        }
        found = {name: array for name, array in arrays.items() if array is not None}
        try:
            keep_file(self._path(key), lambda stream: np.savez(stream, **found))
        except OSError as e:
            if not self._told:
                _LOG.warning("scores can't be stored in %s, and are computed in every run: %s", self.folder, e.strerror)
            self._told = True
            return False
        return True

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npz"
