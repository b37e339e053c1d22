"""Times encoding from texts to vectors, where `rows` times the forward pass only.

Every candidate tokenises texts, batches them by length, runs, pools and normalises as `SentenceTransformer.encode`
does. sentence-transformers' backends for ONNX Runtime and OpenVINO replace only the transformer, and so do the
candidates here:

    backends              the packed model
    torch-*               the full-precision model, in that dtype, or compiled
    onnx-int2             a session of ONNX Runtime with the packed model's codes
    onnx-*, openvino-*    a session of that runtime; texts of the corpus calibrate OpenVINO's int8

Each candidate encodes all texts once before it is timed. The cosine between its vectors and those of the full-precision
model shows that all candidates do the same work.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ternarize_cli import kernels
from ternarize_cli.bench.candidates import RIVAL, BenchCandidate
from ternarize_cli.bench.rows import BenchRow, timed_rows
from ternarize_cli.bench.subject import Subject
from ternarize_cli.encoders import loading
from ternarize_cli.engines import rivals
from ternarize_cli.errors import TernarizeError
from ternarize_cli.measuring import machine
from ternarize_cli.measuring.neighbours import busy_neighbours
from ternarize_cli.measuring.timing import pause_on, time_interleaved
from ternarize_cli.progress import Track

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["BATCH", "count_tokens", "mean_cosine", "time_texts"]

BATCH = 32
"""Default number of texts in a batch, which is also sentence-transformers' default."""
_FULL_PRECISION = "torch-fp32"


def time_texts(
    candidates: Sequence[BenchCandidate],
    subject: Subject,
    texts: Sequence[str],
    name: str,
    batches: Sequence[int],
    *,
    repeats: int,
    seconds: float,
    neighbours: int,
    track: Track,
) -> tuple[list[BenchRow], float, list[str]]:
    """Times all texts, in batches of each size.

    Args:
        candidates: the candidates.
        subject: the model that they run.
        texts: the texts to encode.
        name: name of the file of the texts.
        batches: sizes of batches, in texts.
        repeats, seconds: number of rounds and time budget, as in `timing.time_interleaved`; a call encodes all texts.
        neighbours: number of processes that are kept busy beside.
        track: reports progress.

    Returns:
        The rows; the CPU use of other processes during the measurement, in percent of a core; and a sentence on each
        rival that can't be made of this model.

    Raises:
        UnavailableError: a backend can't run on this machine.
    """
    encoders: dict[str, SentenceTransformer] = {}
    ran: dict[str, str] = {}
    notes = []
    for candidate in track(candidates, "loading", len(candidates)):
        try:
            encoders[candidate.name], ran[candidate.name] = _load(candidate, texts)
        except TernarizeError as e:
            if candidate.kind != RIVAL:
                raise
            notes.append(f"left out: {candidate.name} can't be made of this model: {e}")
    candidates = [candidate for candidate in candidates if candidate.name in encoders]
    if (exact := encoders.get(_FULL_PRECISION)) is None:
        exact = rivals.make(_FULL_PRECISION, subject.dense, device=candidates[0].device).encoder
    rows: list[BenchRow] = []
    with busy_neighbours(neighbours), machine.LoadWatch() as watch:
        for batch in track(sorted(set(batches)), "encoding", len(set(batches))):
            options: dict[str, Any] = {"batch_size": batch, "show_progress_bar": False}
            calls = {who: partial(encoder.encode, texts, **options) for who, encoder in encoders.items()}
            expected = exact.encode(texts, **options)
            cosines = {who: mean_cosine(call(), expected) for who, call in calls.items()}
            pause = pause_on(candidates[0].device)
            times = time_interleaved(calls, repeats=repeats, seconds=seconds, warmup=0, pause=pause)
            real, padded = count_tokens(exact, texts, batch)
            timed = timed_rows(
                candidates,
                ran,
                times,
                inputs=[len(texts)],
                real=[real],
                padded=[padded],
                batch=batch,
                tokens=round(real / len(texts)),
                encoded=f"{len(texts):,} texts of {name}",
            )
            rows += [replace(row, cosine=cosines[row.name]) for row in timed]
    return rows, watch.others, notes


def count_tokens(encoder: "SentenceTransformer", texts: Sequence[str], batch: int) -> tuple[int, int]:
    """Counts the tokens of texts with the model's default prompt, in batches by length: without and with padding."""
    ordered = sorted(texts, key=len, reverse=True)
    prompt = encoder.prompts.get(encoder.default_prompt_name or "")
    masks = [
        encoder.preprocess(ordered[start : start + batch], prompt=prompt)["attention_mask"]
        for start in range(0, len(texts), batch)
    ]
    return sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)


def mean_cosine(vectors: np.ndarray, expected: np.ndarray) -> float:
    """Computes the mean cosine between vectors and expected vectors of the texts, `[texts, dim]` each."""
    a, b = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-30) for v in (vectors, expected))
    return round(float((a * b).sum(axis=1).mean()), 5)


def _load(candidate: BenchCandidate, texts: Sequence[str]) -> "tuple[SentenceTransformer, str]":
    """Loads the encoder of a candidate; also returns the name of the backend that runs."""
    if candidate.kind == RIVAL:
        made = rivals.make(candidate.name, candidate.folder, device=candidate.device, calibration=texts)
        return made.encoder, candidate.name
    encoder = loading.load_encoder(candidate.folder, device=candidate.device)
    return encoder, kernels.use_backend(encoder, candidate.name)
