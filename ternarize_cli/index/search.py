"""Opens an index folder, answers queries from it, and checks it.

An index only makes sense with the model that made it, so the model's content hash is compared before the first query is
encoded: a model that was retrained, or another one of the same width, would give answers that look fine and are wrong.
The one exception is a student of that model: its vectors are made to lie where the teacher's do, so its queries can be
answered from documents that the teacher encoded, without encoding them again.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np

from ternarize_cli import files, models, vision
from ternarize_cli.errors import CheckpointError, DataError, InputError, ModelNotFoundError
from ternarize_cli.index.encode import text_folder
from ternarize_cli.index.encoders import TextEncoder
from ternarize_cli.index.format import DOCUMENTS, FAISS_INDEX, OFFSETS, IndexInfo, read_info

__all__ = ["KNOBS", "Hit", "Searcher", "check_index", "open_index", "set_knob"]

KNOBS = {"nprobe": "--nprobe", "efSearch": "--ef-search", "k_factor_rf": "--refine"}
"""What can be set of an index, by FAISS's names, and the flags for it."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer: `score` is the inner product, or the squared distance where the index's metric is "l2"."""

    query: str
    id: str
    score: float
    text: str


class Searcher:
    """An open index with its model.

    Args:
        folder: as `build_index` wrote it.
        model: MODEL instead of the recorded one: of the same content, or a student of it.
        asymmetric: take another model, too, if its vectors are as wide.
        settings: values for `KNOBS` other than those that `index tune` chose: nprobe, clusters that an IVF index looks
            into; efSearch, candidates that an HNSW index keeps; k_factor_rf, how many times k candidates are ranked by
            their stored int8 vectors.
        backend, device, threads, batch_size: as `models.load_encoder` and `TextEncoder`.

    Attributes:
        info: the index's record.
        encode: what encodes queries.
        student: whether the model is another one than the documents'.
        seconds: what the last `search` took: "encoding", "searching" and "reading" of texts.

    Raises:
        DataError: the index is damaged.
        InputError: the model is gone or can't search this index, or the index has no such knob.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: str | None = None,
        asymmetric: bool = False,
        settings: Mapping[str, float | None] | None = None,
        backend: str = "auto",
        device: str | None = None,
        threads: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.info = read_info(folder)
        self.seconds: dict[str, float] = {}
        self._documents = folder / DOCUMENTS
        self._offsets = np.memmap(folder / OFFSETS, "<i8", "r")
        self._index = open_index(folder, self.info)
        if threads is not None:
            faiss.omp_set_num_threads(threads)
        asked = {name: value for name, value in (settings or {}).items() if value is not None}
        for name, value in {**self.info.search, **asked}.items():
            set_knob(self._index, self.info, name, value)
        model_folder, self.student = _model_for(self.info, model, asymmetric)
        encoder = models.load_encoder(model_folder, backend=backend, device=device, threads=threads)
        self.encode = TextEncoder(encoder, role="query", normalize=self.info.normalized or None, batch_size=batch_size)
        if self.encode.dim != self.info.dim:
            raise InputError(
                f"{model} makes vectors of {self.encode.dim} dimensions; the index has {self.info.dim}",
                hint="search with the model that made the index, or a student of it",
            )

    def search(self, queries: list[str], k: int = 10) -> list[list[Hit]]:
        """The k nearest texts of each query, nearest first; fewer where the index has (or finds) fewer."""
        started = time.perf_counter()
        vectors = self.encode(queries)
        encoded = time.perf_counter()
        scores, rows = self._index.search(vectors, min(k, self.info.count))
        found = time.perf_counter()
        texts = self._texts({int(row) for row in rows.flat if row >= 0})
        read = time.perf_counter()
        self.seconds = {"encoding": encoded - started, "searching": found - encoded, "reading": read - found}
        return [
            [
                Hit(query, texts[int(row)][0], float(score), texts[int(row)][1])
                for row, score in zip(query_rows, query_scores, strict=True)
                if row >= 0
            ]
            for query, query_rows, query_scores in zip(queries, rows, scores, strict=True)
        ]

    def _texts(self, rows: set[int]) -> dict[int, tuple[str, str]]:
        found = {}
        with self._documents.open("rb") as stream:
            for row in sorted(rows):
                stream.seek(int(self._offsets[row]))
                record = json.loads(stream.readline())
                found[row] = (record["id"], record["text"])
        return found


def set_knob(index: faiss.Index, info: IndexInfo, name: str, value: float) -> None:
    """Sets one of `KNOBS`.

    Raises:
        InputError: an index of this kind has no such knob.
    """
    try:
        faiss.ParameterSpace().set_index_parameter(index, name, value)
    except RuntimeError as e:
        raise InputError(f"an index {info.factory!r} has no {name}", hint=f"leave {KNOBS[name]} out") from e


def check_index(folder: Path) -> IndexInfo:
    """Reads everything in an index folder and returns its record.

    Raises:
        DataError: a file is missing or damaged, or the files don't belong together.
    """
    info = read_info(folder)
    for name, file in info.files.items():
        if files.sha256(folder / name) != file.sha256:
            raise DataError(f"{folder / name} is damaged: its sha256 has changed", hint="build the index again")
    open_index(folder, info)
    with (folder / DOCUMENTS).open("rb") as stream:
        lines = sum(1 for _ in stream)
    if lines != info.count:
        raise DataError(
            f"{folder / DOCUMENTS} has {lines} lines for {info.count} vectors", hint="build the index again"
        )
    return info


def open_index(folder: Path, info: IndexInfo) -> faiss.Index:
    """The FAISS index, its vectors read from disk as searches touch them.

    Raises:
        DataError: it is damaged, or not what the record says.
    """
    path = folder / FAISS_INDEX
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except (RuntimeError, MemoryError) as e:
        raise DataError(f"{path} is damaged: FAISS can't read it", hint="build the index again") from e
    if (index.ntotal, index.d) != (info.count, info.dim):
        raise DataError(
            f"{path} holds {index.ntotal} vectors of {index.d} dimensions; index.json says {info.count} of {info.dim}",
            hint="build the index again",
        )
    return index


def _model_for(info: IndexInfo, model: str | None, asymmetric: bool) -> tuple[Path, bool]:
    """The folder of the model that encodes queries, and whether it is another than the one that made the index."""
    if model is None:
        folder = Path(info.model_path)
        if not folder.is_dir():
            try:
                folder = text_folder(info.model)
            except (ModelNotFoundError, CheckpointError) as e:
                raise ModelNotFoundError(
                    f"the model that made this index is gone: {info.model} (was {info.model_path})",
                    hint="if it moved: --model FOLDER",
                ) from e
        vision.require(folder, "text", info.model)
        what = f"the model {info.model} has changed since the index was built"
    else:
        folder = text_folder(model)
        what = f"{model} is not the model that made this index ({info.model})"
    found = files.content_hash(folder)
    if found == info.model_sha256:
        return folder, False
    if model is not None and (asymmetric or _teacher_of(folder) == info.model_sha256):
        return folder, True
    raise InputError(
        f"{what}: content hash {found[:12]}…, the index has {info.model_sha256[:12]}…",
        hint="pass that model or a student of it with --model, or build the index again with this one",
    )


def _teacher_of(folder: Path) -> str | None:
    """The content hash of the model that a student was distilled from."""
    try:
        record = json.loads((folder / "distillation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record.get("teacher_sha256") if isinstance(record, dict) else None
