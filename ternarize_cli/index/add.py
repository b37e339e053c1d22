"""Adds documents to an index.

All texts are read before the first is encoded, so that an unreadable line, or an id that the index has already, is
found before any work is done. Stored vectors stay as they are. The queries of truth.npz are compared with the new
vectors, so that their true neighbours stay true.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import faiss
import numpy as np

from ternarize_cli.data.corpora import open_corpus, unique
from ternarize_cli.data.texts import STDIN
from ternarize_cli.encoders.loading import checked_threads
from ternarize_cli.errors import DataError, InputError, quoted, shown
from ternarize_cli.index.change import ChangeReport, changed_folder, finish, for_change, shown_ids
from ternarize_cli.index.documents import read_documents, rows_of, write_documents
from ternarize_cli.index.fill import METRICS
from ternarize_cli.index.format import TRUTH, IndexInfo, read_deleted
from ternarize_cli.index.search import model_for
from ternarize_cli.index.truth import Truth, find_truth, read_truth
from ternarize_cli.progress import Track, silent
from ternarize_cli.storage.library_output import library_output
from ternarize_cli.vectors.encode import EncoderOptions, encoded, open_model
from ternarize_cli.vectors.vector_folder import VectorFolder, holds_vectors

__all__ = ["add_documents"]


def add_documents(
    folder: Path,
    corpus: str,
    *,
    model: str | None = None,
    replace_known: bool = False,
    skip_bad: bool = False,
    encoder: EncoderOptions = EncoderOptions(),
    track: Track = silent,
) -> ChangeReport:
    """Encodes documents and adds them to an index.

    Args:
        folder: the folder of the index.
        corpus: path of a corpus, as `corpora.open_corpus` takes it, or of a folder of vectors made by the index's
            model. Texts without ids get the ids FILE:LINE, so that they replace no documents of the index.
        model: the index's model, if it has moved.
        replace_known: replace documents whose ids the corpus has too, instead of refusing the corpus.
        skip_bad: skip rows of the corpus that can't be read.
        encoder: settings of the encoder.
        track: reports progress.

    Raises:
        DataError: the corpus or the index can't be read, an id is in the corpus twice, or is in the index already.
        InputError: the vectors are of another model or of another kind than the index's.
        OutputError: another process changes the index.
        TernarizeError: the model can't be opened (`encode.open_model`), or the folder can't be written
            (`files.atomic_folder`).
    """
    if encoder.threads is not None:
        faiss.omp_set_num_threads(checked_threads(encoder.threads))
    with for_change(folder) as info:
        if holds_vectors(corpus):
            return _add_vectors(folder, info, corpus, replace_known=replace_known, track=track)
        prefix = f"{'stdin' if corpus == STDIN else Path(corpus).name}:"
        source = open_corpus(corpus, skip_bad=skip_bad, documents=True, prefix=prefix, reads=lambda: (info.kind,))
        _check_kind(info, corpus, source.kind)
        where, student = model_for(folder, info, model, asymmetric=None)
        if student:
            raise InputError(
                f"{model} is a student of the model that made this index: it may ask, but its documents don't fit",
                hint=f"add with {shown(info.model)}",
            )
        opened = open_model(where, info.kind, replace(encoder, normalize=info.normalized or None), role="document")
        with changed_folder(folder, info) as (partial, index):
            addition = _Addition(folder, info, index, replace_known=replace_known)
            items, count = source.items, source.count
            if source.ids is not None:
                addition.expect(source.ids)
                items = unique(write_documents(items, partial, append=True), source.name)
            else:
                ids = _written(track(items, "reading", count), source.name, partial, info.count)
                addition.expect(ids)
                items, count = islice(read_documents(partial), info.count, None), len(ids)
            with closing(encoded(opened.encode, items)) as parts:
                ids = list(track(addition.add(parts), "adding", count))
            info, replaced = addition.finish(partial, ids, corpus)
    return ChangeReport(
        info,
        added=len(ids),
        deleted=replaced,
        replaced=replaced,
        skipped=source.skipped,
        truncation=opened.encode.truncation,
    )


def _add_vectors(folder: Path, info: IndexInfo, corpus: str, *, replace_known: bool, track: Track) -> ChangeReport:
    vectors = VectorFolder(Path(corpus))
    _check_kind(info, corpus, vectors.record.kind)
    _check_vectors(info, corpus, vectors)
    with changed_folder(folder, info) as (partial, index):
        addition = _Addition(folder, info, index, replace_known=replace_known)
        ids = _written(((identity, "") for identity in vectors.ids()), corpus, partial, info.count)
        addition.expect(ids)
        names = iter(ids)
        parts = ((list(islice(names, len(part))), part) for part in map(vectors.load, range(vectors.shards)))
        for _ in track(addition.add(parts), "adding", len(ids)):
            pass
        info, replaced = addition.finish(partial, ids, corpus)
    return ChangeReport(info, added=len(ids), deleted=replaced, replaced=replaced)


class _Addition:
    """Documents on their way into an index."""

    def __init__(self, folder: Path, info: IndexInfo, index: faiss.Index, *, replace_known: bool) -> None:
        self._folder, self._info, self._index, self._replace = folder, info, index, replace_known
        self._dead = read_deleted(folder, info)
        self._truth = _Truth(read_truth(folder / TRUTH, count=info.count, dim=info.dim), METRICS[info.metric])

    def expect(self, ids: list[str]) -> None:
        """Refuses ids that the index has already, before anything is encoded, unless they are to be replaced.

        Raises:
            DataError: the index has one of `ids`, and documents are not to be replaced.
        """
        known = {} if self._replace else self._known(ids)
        if known:
            raise DataError(
                f"{self._folder} has documents {shown_ids(list(known))} already",
                hint="give the new texts ids of their own (texts without ids are called FILE:LINE), or replace the "
                "documents that have these ids with --replace",
            )

    def add(self, parts: Iterable[tuple[list[str], np.ndarray]]) -> Iterator[str]:
        """Adds vectors and yields their ids."""
        for ids, vectors in parts:
            with library_output(to_stderr=False):  # FAISS prints how it makes room in lists on disk
                self._index.add(vectors)
            self._truth.add(vectors, self._info.count + self._truth.rows)
            yield from ids

    def finish(self, partial: Path, ids: list[str], corpus: str) -> tuple[IndexInfo, int]:
        """Writes all files but documents.jsonl; returns the record, and the number of replaced documents.

        Raises:
            DataError: the corpus held no document.
        """
        if not ids:
            raise DataError(f"{corpus} holds nothing that could be added")
        again = self._known(ids)
        dead = np.union1d(self._dead, np.fromiter(again.values(), np.int64, len(again)))
        self._truth.truth.write(partial / TRUTH)
        return finish(partial, self._index, self._info, self._info.count + len(ids), dead), len(again)

    def _known(self, ids: list[str]) -> dict[str, int]:
        return rows_of(self._folder, set(ids), self._dead)


class _Truth:
    """Keeps the true neighbours in truth.npz up to date while vectors are added."""

    def __init__(self, truth: Truth, metric: int) -> None:
        self.truth, self.rows, self._metric = truth, 0, metric

    def add(self, vectors: np.ndarray, first: int) -> None:
        """Compares the queries with added vectors `[rows, dim]`, which become the rows from `first` on."""
        none = np.full(len(self.truth.queries), -1)
        near = find_truth(self.truth.queries, none, [vectors], len(vectors), self._metric)
        if len(near.queries):
            near = replace(near, neighbours=near.neighbours + first)
            self.truth = self.truth.joined(near, self._metric, all_of=first)
        self.rows += len(vectors)


def _check_kind(info: IndexInfo, corpus: str, kind: str) -> None:
    if kind != info.kind:
        what = {"text": "texts", "image": "images"}
        raise InputError(
            f"{corpus} holds {what[kind]}, and the index is of {what[info.kind]}",
            hint=f"build another index: ternarize index build {quoted(corpus)}",
        )


def _check_vectors(info: IndexInfo, corpus: str, vectors: VectorFolder) -> None:
    record = vectors.record
    if (record.model_sha256, record.normalized) != (info.model_sha256, info.normalized):
        raise InputError(
            f"the vectors in {corpus} are of the model {shown(record.model)}, not of the index's, {shown(info.model)}",
            hint="encode with the index's model",
        )


def _written(items: Iterable[tuple[str, str]], name: str, partial: Path, known: int) -> list[str]:
    """Writes documents after the `known` ones that the file holds already; returns the new ids.

    Raises:
        DataError: two of the new documents have the same id.
    """
    again = lambda: islice(read_documents(partial), known, None)  # noqa: E731
    return [identity for identity, _ in unique(write_documents(items, partial, append=True), name, again)]
