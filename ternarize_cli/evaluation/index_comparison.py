"""Compares teacher and student in search, on every kind of index.

This is the experiment of arXiv 2411.15438 (FLAT, IVF, LSH and HNSW on CmedqaRetrieval), with encoding and searching
timed separately, and with a third way to use a student: its queries against documents that the teacher encoded.

    precision@10, nDCG@10   how well the documents found answer the queries (`document_search`)
    recall@10               share of the ten nearest vectors by exact search that the index finds
"""

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import faiss
import numpy as np

from ternarize_cli.encoders import loading
from ternarize_cli.encoders.loading import checked_threads
from ternarize_cli.errors import InputError
from ternarize_cli.evaluation.document_search import exact_index, grades_of, own_rows, precision_and_ndcg, search
from ternarize_cli.evaluation.retrieval import Retrieval
from ternarize_cli.index.fill import quiet_clusterings
from ternarize_cli.index.presets import clusters
from ternarize_cli.index.truth import recall
from ternarize_cli.progress import Track, silent
from ternarize_cli.vectors.encode import text_folder
from ternarize_cli.vectors.text_encoder import TextEncoder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["CompareReport", "EncodingCost", "IndexRow", "compare_indexes"]

_ONE_BY_ONE = 100
_PQ_CODES = 256


@dataclass(frozen=True)
class EncodingCost:
    """The speed of an encoder: documents per second in batches, and median milliseconds of one query."""

    model: str
    documents_per_second: float
    milliseconds: float


@dataclass(frozen=True)
class IndexRow:
    """Quality and cost of one kind of index with one pair of encoders.

    Attributes:
        encoders: "teacher", "student", or "student → teacher": queries by the student, documents by the teacher.
        index: the paper's name of the kind of index.
        factory: the FAISS factory string.
        settings: search settings, named as in `search.KNOBS`.
        precision, recall, ndcg: precision@10, recall@10 and nDCG@10.
        milliseconds: median milliseconds of a search, one query at a time.
        bytes_per_vector: bytes of the stored index per vector.
    """

    encoders: str
    index: str
    factory: str
    settings: dict[str, float]
    precision: float
    recall: float
    ndcg: float
    milliseconds: float
    bytes_per_vector: float


@dataclass(frozen=True)
class CompareReport:
    """The rows of all kinds of index, and the speed of the encoders."""

    documents: int
    queries: int
    threads: int
    encoding: list[EncodingCost]
    rows: list[IndexRow]


def compare_indexes(
    data: Retrieval,
    student: str,
    teacher: str,
    *,
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    track: Track = silent,
) -> CompareReport:
    """Encodes a corpus and its queries with both models, and searches them through each kind of index.

    Args:
        data: corpus, queries and the documents that answer them.
        student, teacher: MODEL of each; vectors are compared by cosine.
        backend: name of the kernels for the student's packed linears.
        device: name of a torch device; None picks CUDA if there is a GPU, else the CPU.
        threads: number of CPU threads; None leaves it as it is.
        track: reports progress.

    Raises:
        InputError: the models' vectors differ in dimensions.
        TernarizeError: a model can't be loaded (`loading.load_encoder`).
    """
    if threads is not None:
        faiss.omp_set_num_threads(checked_threads(threads))
    texts = [f"{row['title']} {row['text']}".strip() if row["title"] else row["text"] for row in data.corpus]
    queries = list(data.queries.values())
    vectors, costs = {}, []
    for role, model, on in (("teacher", teacher, "auto"), ("student", student, backend)):
        encoder = loading.load_encoder(text_folder(model), backend=on, device=device, threads=threads)
        *vectors[role], cost = _encode(encoder, model, texts, queries, track)
        costs.append(cost)
    widths = [vectors[role][0].shape[1] for role in ("teacher", "student")]
    if widths[0] != widths[1]:
        raise InputError(f"{teacher} makes vectors of {widths[0]} dimensions and {student} of {widths[1]}")
    grades, own = grades_of(data), own_rows(data)
    rows = []
    pairs = (("teacher", "teacher"), ("student", "student"), ("student", "teacher"))
    for asks, answers in track(pairs, "searching", len(pairs)):
        documents, asked = vectors[answers][0], vectors[asks][1]
        exact = search(exact_index(documents), asked, own)
        name = asks if asks == answers else f"{asks} → {answers}"
        for kind, factory, settings in _kinds(len(documents), widths[0]):
            index = _filled(factory, documents)
            for knob, value in settings.items():
                faiss.ParameterSpace().set_index_parameter(index, knob, value)
            found = search(index, asked, own)
            precision, ndcg = precision_and_ndcg(found, grades)
            rows.append(
                IndexRow(
                    name,
                    kind,
                    factory,
                    settings,
                    float(precision.mean()),
                    recall(found, exact),
                    float(ndcg.mean()),
                    _milliseconds(index, asked),
                    len(faiss.serialize_index(index)) / len(documents),
                )
            )
    return CompareReport(len(texts), len(queries), faiss.omp_get_max_threads(), costs, rows)


def _encode(
    encoder: "SentenceTransformer", model: str, texts: list[str], queries: list[str], track: Track
) -> tuple[np.ndarray, np.ndarray, EncodingCost]:
    read = TextEncoder(encoder, role="document", normalize=True)
    ask = TextEncoder(encoder, role="query", normalize=True)
    read(texts[:8])
    started, parts = time.perf_counter(), []
    for start in track(range(0, len(texts), 1024), f"encoding with {model}"):
        parts.append(read(texts[start : start + 1024]))
    rate = len(texts) / (time.perf_counter() - started)
    each = []
    for query in queries[:_ONE_BY_ONE]:
        started = time.perf_counter()
        ask([query])
        each.append(time.perf_counter() - started)
    return np.concatenate(parts), ask(queries), EncodingCost(model, rate, 1e3 * statistics.median(each))


def _kinds(count: int, dim: int) -> list[tuple[str, str, dict[str, float]]]:
    """Lists name, factory string and search settings of each kind of index."""
    lists = clusters(count)
    probes = {"nprobe": max(1.0, lists / 8)}
    kinds: list[tuple[str, str, dict[str, float]]] = [
        ("FLAT", "Flat", {}),
        ("IVFFLAT", f"IVF{lists},Flat", probes),
        ("LSH", f"LSH{2 * dim}r", {}),
        ("HNSW", "HNSW32", {"efSearch": 64.0}),
        ("RaBitQ", f"RR{dim},RaBitQ", {}),
        ("RaBitQ + int8", f"RR{dim},IVF{lists},RaBitQ,Refine(SQ8)", {**probes, "k_factor_rf": 4.0}),
    ]
    if dim % 8 == 0 and count >= _PQ_CODES:
        kinds.insert(4, ("PQ", f"PQ{dim // 8}", {}))
    return kinds


def _filled(factory: str, vectors: np.ndarray) -> faiss.Index:
    metric = faiss.METRIC_L2 if factory.startswith("LSH") else faiss.METRIC_INNER_PRODUCT
    index = faiss.index_factory(vectors.shape[1], factory, metric)
    if isinstance(index, faiss.IndexPQ):  # it orders codes for searches by Hamming distance, which nothing here does
        index.do_polysemous_training = False  # type: ignore[attr-defined]  # it is not in the types of faiss
    with quiet_clusterings(index):
        if not index.is_trained:
            index.train(vectors)
    index.add(vectors)
    return index


def _milliseconds(index: faiss.Index, queries: np.ndarray) -> float:
    each = []
    for query in queries[:_ONE_BY_ONE]:
        started = time.perf_counter()
        search(index, query[None])
        each.append(time.perf_counter() - started)
    return 1e3 * statistics.median(each)
