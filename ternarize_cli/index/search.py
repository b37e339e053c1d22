"""Opens an index folder, answers queries from it, and checks it.

An index only makes sense with the model that made it, so the model's content hash is compared before the first query is
encoded: a model that was retrained, or another one of the same width, would give answers that look fine and are wrong.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import faiss

from ternarize_cli import files, models
from ternarize_cli.errors import CheckpointError, DataError, InputError, ModelNotFoundError
from ternarize_cli.index.encode import text_folder
from ternarize_cli.index.encoders import TextEncoder
from ternarize_cli.index.format import DOCUMENTS, FAISS_INDEX, IndexInfo, read_info

__all__ = ["Hit", "Searcher", "check_index"]


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
        model: MODEL instead of the recorded one; must have the same content hash.
        nprobe: clusters that an IVF index looks into.
        ef_search: candidates that an HNSW index keeps.
        backend, device, threads, batch_size: as `models.load_encoder` and `TextEncoder`.

    Raises:
        DataError: the index is damaged.
        InputError: the model is gone or is not the one that made the index, or the index has no such knob.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: str | None = None,
        nprobe: int | None = None,
        ef_search: int | None = None,
        backend: str = "auto",
        device: str | None = None,
        threads: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.info = read_info(folder)
        self._documents = folder / DOCUMENTS
        self._index = _read(folder, self.info)
        if threads is not None:
            faiss.omp_set_num_threads(threads)
        for name, flag, value in (("nprobe", "--nprobe", nprobe), ("efSearch", "--ef-search", ef_search)):
            if value is not None:
                self._set(name, flag, value)
        model_folder = _same_model(self.info, model)
        encoder = models.load_encoder(model_folder, backend=backend, device=device, threads=threads)
        self.encode = TextEncoder(encoder, role="query", normalize=self.info.normalized or None, batch_size=batch_size)

    def search(self, queries: list[str], k: int = 10) -> list[list[Hit]]:
        """The k nearest texts of each query, nearest first; fewer where the index has (or finds) fewer."""
        vectors = self.encode(queries)
        scores, rows = self._index.search(vectors, min(k, self.info.count))
        texts = self._texts({int(row) for row in rows.flat if row >= 0})
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
            for row, line in enumerate(stream):
                if row in rows:
                    record = json.loads(line)
                    found[row] = (record["id"], record["text"])
                    if len(found) == len(rows):
                        break
        return found

    def _set(self, name: str, flag: str, value: int) -> None:
        try:
            faiss.ParameterSpace().set_index_parameter(self._index, name, value)
        except RuntimeError as e:
            raise InputError(f"an index {self.info.factory!r} has no {name}", hint=f"leave {flag} out") from e


def check_index(folder: Path) -> IndexInfo:
    """Reads everything in an index folder and returns its record.

    Raises:
        DataError: a file is missing or damaged, or the files don't belong together.
    """
    info = read_info(folder)
    for name, file in info.files.items():
        if files.sha256(folder / name) != file.sha256:
            raise DataError(f"{folder / name} is damaged: its sha256 has changed", hint="build the index again")
    _read(folder, info)
    with (folder / DOCUMENTS).open("rb") as stream:
        lines = sum(1 for _ in stream)
    if lines != info.count:
        raise DataError(
            f"{folder / DOCUMENTS} has {lines} lines for {info.count} vectors", hint="build the index again"
        )
    return info


def _read(folder: Path, info: IndexInfo) -> faiss.Index:
    path = folder / FAISS_INDEX
    try:
        index = faiss.read_index(str(path))
    except (RuntimeError, MemoryError) as e:
        raise DataError(f"{path} is damaged: FAISS can't read it", hint="build the index again") from e
    if (index.ntotal, index.d) != (info.count, info.dim):
        raise DataError(
            f"{path} holds {index.ntotal} vectors of {index.d} dimensions; index.json says {info.count} of {info.dim}",
            hint="build the index again",
        )
    return index


def _same_model(info: IndexInfo, model: str | None) -> Path:
    """The folder of the model that made the index, or of one with the same content."""
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
        what = f"the model {info.model} has changed since the index was built"
    else:
        folder = text_folder(model)
        what = f"{model} is not the model that made this index ({info.model})"
    found = files.content_hash(folder)
    if found != info.model_sha256:
        raise InputError(
            f"{what}: content hash {found[:12]}…, the index has {info.model_sha256[:12]}…",
            hint="pass that model with --model, or build the index again with this one",
        )
    return folder
