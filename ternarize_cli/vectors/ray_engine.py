"""Encodes the shards of a `vector_folder` with the workers of a Ray cluster (extra `ray`).

A dataset of shard numbers goes through a pool of actors, each with the model loaded. An actor reads the rows of its
shards from the source, encodes them, and writes them to the folder in the format of any other job. So the folder does
not depend on who wrote it, and a later run resumes from it. Ray restarts a lost worker and gives its shard to another;
a shard counts only when it is whole on the disk. Workers on other machines must see the model, the source and the
folder under the same paths.
"""

import importlib.util
import logging
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from ternarize_cli.data.corpora import Corpus, Skipped, open_corpus, unique
from ternarize_cli.data.texts import STDIN
from ternarize_cli.errors import InputError, TernarizeError, UnavailableError, counted
from ternarize_cli.progress import Track, silent
from ternarize_cli.vectors.encode import EncoderOptions, open_model
from ternarize_cli.vectors.vector_folder import VectorRecord
from ternarize_cli.vectors.vector_shards import PendingShard, ShardsReport, cut, encode_shard, open_shards

__all__ = ["encode_with_ray", "require_ray"]

_PATIENCE = 10.0  # seconds


def require_ray() -> None:
    """Checks that Ray is installed.

    Raises:
        UnavailableError: the package `ray` is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise UnavailableError("--engine ray needs the package ray", hint="pip install 'ternarize-cli[ray]'")


def encode_with_ray(
    source: str,
    folder: Path,
    record: VectorRecord,
    *,
    encoder: EncoderOptions,
    workers: int,
    gpus: float = 0,
    address: str | None = None,
    skip_bad: bool = False,
    track: Track = silent,
) -> tuple[ShardsReport, Skipped]:
    """Encodes the missing shards of a folder on all workers.

    Args:
        source: path of the corpus, as `corpora.open_corpus` takes it.
        folder: the folder of shards, as `vector_shards.encode_to_folder` takes it.
        record: what all shards of the folder have in common.
        encoder: settings of the workers' encoders; `threads` must not be None.
        workers: number of actors.
        gpus: number of GPUs for each actor; may be a fraction.
        address: address of a running cluster, such as auto or ray://head:10001; None starts one on this machine for
            this run.
        skip_bad: skip rows that can't be read.
        track: reports progress after each finished shard.

    Returns:
        A report of what was encoded, and the rows of the source that were skipped.

    Raises:
        UnavailableError: Ray is not installed, or there is no cluster at `address`.
        DataError: two rows of the source have the same id.
        InputError: the source is stdin, or this machine has fewer GPUs than the workers need.
        TernarizeError: a worker failed.
    """
    require_ray()
    if source == STDIN:
        raise InputError("workers can't read this stdin", hint="write it to a file that all of them see")
    if address is not None:
        _check_reachable(address)
    elif workers * gpus > _gpus_here():  # Ray would wait for more of them
        raise InputError(
            f"{counted(workers, 'worker')} need {workers * gpus:g} GPUs, and this machine has {_gpus_here()}",
            hint="fewer --workers, or --device cpu",
        )
    count, skipped = _count(source, record.kind, skip_bad)
    numbers = -(-count // record.shard_size)
    files = open_shards(folder, record)
    worker = {
        "source": str(Path(source).resolve()) if Path(source).exists() else source,
        "folder": str(folder.resolve()),
        "record": record,
        "encoder": encoder,
        "skip_bad": skip_bad,
    }
    # Ray warns of its own settings, and prints the state of workers to stdout, where results belong
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        rows = _run(numbers, workers, encoder.threads or 1, gpus, address, track, worker)
    files.remove_from(numbers)
    new = [n for n in rows if n]
    return ShardsReport(len(new), sum(new), len(rows) - len(new)), skipped


def _gpus_here() -> int:
    import torch

    return torch.cuda.device_count()


def _check_reachable(address: str) -> None:
    """Refuses an address where nothing listens, which Ray would try for minutes. `auto` and `local` are left to Ray."""
    host, _, port = address.partition("://")[2].partition(":") if "://" in address else address.partition(":")
    if not port:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except (OSError, ValueError) as e:
        raise UnavailableError(
            f"there is no Ray cluster at {address}: {e}", hint="ray start --head, or no --ray-address"
        ) from e


def _run(
    numbers: int,
    workers: int,
    threads: int,
    gpus: float,
    address: str | None,
    track: Track,
    worker: dict[str, Any],
) -> list[int]:
    """Runs the actors; returns how many rows of each shard were encoded, in the order in which shards were finished."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    # one CPU more than the actors hold, for the tasks that hand out shard numbers
    local: dict[str, Any] = {"num_cpus": workers * threads + 1, "include_dashboard": False} if address is None else {}
    started = not ray.is_initialized()
    try:
        if started:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, ValueError, RuntimeError) as e:
        raise UnavailableError(
            f"there is no Ray cluster at {address}: {e}", hint="ray start --head, or no --ray-address"
        ) from e
    try:
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        done = (
            ray.data.range(numbers, override_num_blocks=numbers)
            .map_batches(
                _Worker,
                fn_constructor_kwargs=worker,
                batch_size=1,
                compute=ActorPoolStrategy(size=workers),
                num_cpus=threads,
                num_gpus=gpus,
            )
            .iter_rows()
        )
        return [int(row["rows"]) for row in track(done, "encoding shards", numbers)]
    except ray.exceptions.RayError as e:
        cause = getattr(e, "cause", None) or e
        raise TernarizeError(f"a worker failed: {type(cause).__name__}: {' '.join(str(cause).split())[:300]}") from e
    finally:
        if started:
            ray.shutdown()


class _Worker:
    """An actor with one encoder and one stream through the source, restarted when an earlier shard is wanted."""

    def __init__(self, source: str, folder: str, record: VectorRecord, encoder: EncoderOptions, skip_bad: bool) -> None:
        self._source, self._record, self._skip_bad = source, record, skip_bad
        self._encode = open_model(record.model_path, record.kind, encoder, role="document").encode
        self._shards = self._cut()
        self._files = open_shards(Path(folder), record)
        self._next = 0

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"rows": np.array([self._do(int(number)) for number in batch["id"]])}

    def _cut(self) -> Iterator[PendingShard]:
        kind = self._record.kind
        corpus = open_corpus(self._source, skip_bad=self._skip_bad, documents=True, reads=lambda: (kind,))
        return cut(corpus.items, self._record.shard_size)

    def _do(self, wanted: int) -> int:
        """Encodes a shard; returns how many rows were encoded, 0 if the shard was finished already."""
        if wanted < self._next:
            self._shards, self._next = self._cut(), 0
        for shard in self._shards:
            self._next = shard.number + 1
            if shard.number == wanted:
                return len(shard.rows) if encode_shard(self._encode, self._files, self._record, shard) else 0
        raise TernarizeError(f"the source no longer has a shard {wanted}")


def _count(source: str, kind: str, skip_bad: bool) -> tuple[int, Skipped]:
    """Counts the rows of the source; returns their number and the rows that were skipped.

    Raises:
        DataError: two rows have the same id.
    """

    def opened() -> Corpus:
        return open_corpus(source, skip_bad=skip_bad, documents=True, reads=lambda: (kind,))

    corpus = opened()
    if corpus.kind == "image" and not skip_bad:
        return corpus.count or 0, corpus.skipped
    return sum(1 for _ in unique(corpus.items, corpus.name, lambda: opened().items)), corpus.skipped
