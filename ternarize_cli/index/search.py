"""Opens an index folder, answers queries from it, and checks it.

An index only works with the model that made it, so the model's content hash is compared before the first query is
encoded: a model that was retrained, or another model with as many dimensions, would give answers that look right and
are wrong. The one exception is a student of that model. It was trained to give the teacher's vectors, so its queries
can be answered from documents that the teacher encoded, without encoding them again.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from ternarize_cli.encoders.loading import checked_threads
from ternarize_cli.encoders.modalities import require_modality
from ternarize_cli.errors import CheckpointError, DataError, InputError, ModelNotFoundError, quoted, shown
from ternarize_cli.index.documents import Documents
from ternarize_cli.index.faiss_file import read_faiss
from ternarize_cli.index.fill import METRICS
from ternarize_cli.index.format import (
    DOCUMENTS,
    FAISS_INDEX,
    LISTS,
    OFFSETS,
    IndexInfo,
    check_files,
    read_deleted,
    read_info,
    verify_files,
)
from ternarize_cli.storage import digests
from ternarize_cli.storage.bounds import read_json
from ternarize_cli.vectors.encode import EncoderOptions, image_folder, open_model, text_folder

__all__ = ["KNOBS", "Hit", "Searcher", "check_index", "model_for", "open_index", "search_live", "set_knob"]

KNOBS = {"nprobe": "--nprobe", "efSearch": "--ef-search", "k_factor_rf": "--refine"}
"""Settings of a search: FAISS's names of them, and the command-line flags that set them."""
_MORE, _AT_ONCE = 16, 1024
_AGAIN = "build the index again"
_LONGEST_NAME = 300


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer. `score` is the inner product, or the squared distance if the index's metric is "l2"."""

    query: str
    id: str
    score: float
    text: str


class Searcher:
    """An open index with its model.

    Args:
        folder: an index folder, as `build_index` writes it.
        model: MODEL to use instead of the recorded one: a copy of that model, or a student of it.
        asymmetric: allow any other model whose vectors have as many dimensions.
        settings: values of `KNOBS` that replace those that `index tune` chose: nprobe is the number of clusters that an
            IVF index searches; efSearch the number of candidates that an HNSW index keeps; k_factor_rf · k the number
            of candidates that are ranked by their stored int8 vectors.
        encoder: settings of the encoder of the queries.

    Attributes:
        info: the index's record.
        encode: the encoder of the queries.
        student: whether the queries' model is not the documents' model.
        seconds: seconds that parts of the last `search` took: "encoding", "searching", and "reading" of texts.

    Raises:
        DataError: the index is damaged.
        InputError: the model is gone or can't search this index, this kind of index lacks one of `settings`, or the
            number of threads is out of range.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: str | None = None,
        asymmetric: bool = False,
        settings: Mapping[str, float | None] | None = None,
        encoder: EncoderOptions = EncoderOptions(),
    ) -> None:
        self.seconds: dict[str, float] = {}
        if encoder.threads is not None:
            faiss.omp_set_num_threads(checked_threads(encoder.threads))
        self.info, self._index, self._dead, self._documents = _opened(folder)
        asked = {name: value for name, value in (settings or {}).items() if value is not None}
        for name, value in {**self.info.search, **asked}.items():
            try:
                set_knob(self._index, self.info, name, value)
            except InputError as e:
                if name in asked:
                    raise
                raise DataError(f"{folder} was tuned as another kind of index", hint="ternarize index tune") from e
        model_folder, self.student = model_for(folder, self.info, model, asymmetric)
        encoder = replace(encoder, normalize=self.info.normalized or None)
        self.encode = open_model(model_folder, self.info.kind, encoder, role="query").encode
        if self.encode.dim != self.info.dim:
            raise InputError(
                f"{model} makes vectors of {self.encode.dim} dimensions; the index has {self.info.dim}",
                hint="search with the model that made the index, or a student of it",
            )

    def search(self, queries: Sequence[Any], k: int = 10, *, names: list[str] | None = None) -> list[list[Hit]]:
        """Finds the k nearest documents of each query, nearest first; fewer if the index has or finds fewer.

        Args:
            queries: texts, or images for an index of images.
            k: number of answers per query.
            names: names of the queries in the hits; None uses the queries themselves.

        Raises:
            InputError: `queries` is a single text.
        """
        if isinstance(queries, str):
            raise InputError(f"search takes several queries, not the string {queries!r}", hint=f"[{queries!r}]")
        started = time.perf_counter()
        parts = [list(queries[start : start + _AT_ONCE]) for start in range(0, len(queries), _AT_ONCE)]
        vectors = np.concatenate([self.encode.forward(self.encode.prepare(part)) for part in parts])
        encoded = time.perf_counter()
        scores, rows = search_live(self._index, vectors, k, self._dead)
        found = time.perf_counter()
        texts = self._documents.of_rows({int(row) for row in rows.flat if row >= 0})
        read = time.perf_counter()
        self.seconds = {"encoding": encoded - started, "searching": found - encoded, "reading": read - found}
        return [
            [
                Hit(query, texts[int(row)][0], float(score), texts[int(row)][1])
                for row, score in zip(query_rows, query_scores, strict=True)
                if row >= 0
            ]
            for query, query_rows, query_scores in zip(names or queries, rows, scores, strict=True)
        ]


def _opened(folder: Path) -> tuple[IndexInfo, faiss.Index, np.ndarray, Documents]:
    """Opens record, FAISS index, deleted rows and documents of one state of an index that others may be changing."""
    while True:
        info = read_info(folder)
        try:
            verify_files(folder, info, (DOCUMENTS, OFFSETS, info.deleted_file or OFFSETS))
            parts = open_index(folder, info), read_deleted(folder, info), Documents(folder)
        except (DataError, OSError):
            if read_info(folder) == info:
                raise
            continue
        if read_info(folder) == info:
            return info, *parts


def search_live(index: faiss.Index, vectors: np.ndarray, k: int, dead: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest rows that are not deleted: scores and rows, each `[queries, k]`; row -1 where there are fewer.

    FAISS's selectors work with some kinds of index only. Searching for more than k, and again for twice as many, works
    with all kinds.

    Args:
        index: any FAISS index.
        vectors: the queries, float32 `[queries, dim]`.
        k: number of answers per query.
        dead: int64, numbers of the deleted rows, rising.
    """
    k = min(k, index.ntotal - len(dead))
    if k < 1:
        return np.empty((len(vectors), 0), np.float32), np.empty((len(vectors), 0), np.int64)
    asked = k if not len(dead) else min(k + _MORE, index.ntotal)
    while True:
        scores, rows = index.search(vectors, asked)
        if rows.max(initial=-1) >= index.ntotal:
            raise DataError("the index is damaged: a search found a row that it does not have", hint=_AGAIN)
        live = (rows >= 0) & ~np.isin(rows, dead)
        if asked == index.ntotal or not len(dead) or ((live.sum(axis=1) >= k) | (rows[:, -1] < 0)).all():
            break
        asked = min(2 * asked, index.ntotal)
    order = np.argsort(~live, axis=1, kind="stable")[:, :k]
    rows = np.where(live, rows, -1)
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def set_knob(index: faiss.Index, info: IndexInfo, name: str, value: float) -> None:
    """Sets one of `KNOBS` of a FAISS index.

    Raises:
        InputError: an index of this kind has no setting `name`.
    """
    try:
        faiss.ParameterSpace().set_index_parameter(index, name, value)
    except RuntimeError as e:
        raise InputError(f"an index {info.factory!r} has no {name}", hint=f"leave {KNOBS[name]} out") from e


def check_index(folder: Path) -> IndexInfo:
    """Reads and checks every file of an index folder, and returns its record.

    Raises:
        DataError: a file is missing or damaged, or the files don't belong together.
    """
    info = read_info(folder)
    check_files(folder, info)
    open_index(folder, info)
    read_deleted(folder, info)
    with (folder / DOCUMENTS).open("rb") as stream:
        lines = sum(1 for _ in stream)
    if lines != info.count:
        raise DataError(
            f"{folder / DOCUMENTS} has {lines} lines for {info.count} vectors", hint="build the index again"
        )
    return info


def open_index(folder: Path, info: IndexInfo) -> faiss.Index:
    """Opens the FAISS index of a folder. Its vectors stay on disk and are read when a search needs them.

    Raises:
        DataError: the file is damaged, or its metric or size is not what the record says.
    """
    path = folder / FAISS_INDEX
    verify_files(folder, info, (FAISS_INDEX, LISTS))
    index = read_faiss(path, info.faiss_digests, folder / LISTS if LISTS in info.files else None)
    if index.metric_type != METRICS[info.metric]:
        raise DataError(f"{path} has another metric than {info.metric}, which index.json says", hint=_AGAIN)
    if (index.ntotal, index.d) != (info.count, info.dim):
        raise DataError(
            f"{path} holds {index.ntotal} vectors of {index.d} dimensions; index.json says {info.count} of {info.dim}",
            hint=_AGAIN,
        )
    return index


def model_for(index: Path, info: IndexInfo, model: str | None, asymmetric: bool | None) -> tuple[Path, bool]:
    """Finds the folder of the model for the queries; also returns whether it differs from the index's model.

    Args:
        index: the index's folder.
        info: its record.
        model: MODEL as the user named it; None takes the model that the record names, if it may be opened unasked
            (`Origin.is_sealed`, `Origin.is_near`).
        asymmetric: allow any model; None if that is not to be proposed, as the vectors would not be queries.

    Raises:
        InputError: the model is neither the one that made the index nor a student of it; or the record names a folder
            that the user has to confirm.
        ModelNotFoundError: the model's folder is gone.
    """
    resolve = image_folder if info.kind == "image" else text_folder
    name = shown(info.model, _LONGEST_NAME)
    if model is None:
        folder = _recorded_model(index, info)
        require_modality(folder, info.kind, name)
        what = f"the model {name} has changed since the index was built"
    else:
        folder = resolve(model)
        what = f"{model} is not the model that made this index ({name})"
    found = digests.content_hash(folder)
    if found == info.model_sha256:
        return folder, False
    if model is not None and (asymmetric or _teacher_of(folder) == info.model_sha256):
        return folder, True
    hint = "pass that model or a student of it with --model, or build the index again with this one"
    if model is not None and asymmetric is not None:
        hint = f"--asymmetric, if {model} was calibrated from that model; or {hint}"
    raise InputError(f"{what}: content hash {found[:12]}…, the index has {info.model_sha256[:12]}…", hint=hint)


def _recorded_model(index: Path, info: IndexInfo) -> Path:
    """Finds the folder of the model that an index records, if it may be opened without the user naming it."""
    name, where = shown(info.model, _LONGEST_NAME), shown(info.model_path, _LONGEST_NAME)
    sealed = info.is_sealed()
    if not sealed and not info.is_near(index):
        plain = info.model_path.isprintable() and len(info.model_path) < _LONGEST_NAME
        raise InputError(
            f"{index} was not built by this user, and says that its model is {name} in {where}",
            hint=f"if you trust that folder: --model {quoted(info.model_path) if plain else 'FOLDER'}",
        )
    folder = Path(info.model_path)
    if folder.is_dir():
        return folder
    try:
        return (image_folder if info.kind == "image" else text_folder)(info.model)
    except (ModelNotFoundError, CheckpointError) as e:
        raise ModelNotFoundError(
            f"the model that made this index is gone: {name} (was in {where})", hint="if it moved: --model FOLDER"
        ) from e


def _teacher_of(folder: Path) -> str | None:
    """Reads the content hash of the teacher that a model was distilled from; None if no readable record names it."""
    path = folder / "distillation.json"
    try:
        record = read_json(path, error=DataError) if path.exists() else None
    except DataError:
        return None
    return record.get("teacher_sha256") if isinstance(record, dict) else None
