"""`bench`: latency, bytes, memory and start of a packed model's backends against full-precision rivals.

    options ─check─▶ subject (packed + full precision) ──▶ candidates ──▶ timings, point by point ─────────────▶ report
                                                              └────────▶ memory and start, a subprocess each ──┘

Instead of forward passes, options with `text` have whole files encoded (`end_to_end`); memory is not measured then.

Every name is checked before any model is built. Beside each latency of a backend stands how far its output is from
`reference` on the same batch: a fast wrong kernel must not look good.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ternarize_cli.bench import chosen_kernels
from ternarize_cli.bench.candidates import BACKEND, RIVAL, BenchCandidate
from ternarize_cli.bench.end_to_end import time_texts
from ternarize_cli.bench.feeds import Feed, check_inputs, make_feeds
from ternarize_cli.bench.lengths import draw
from ternarize_cli.bench.model_bytes import Storage, storage
from ternarize_cli.bench.options import BenchOptions
from ternarize_cli.bench.output_check import load
from ternarize_cli.bench.participants import able_backends, choose_backends, choose_rivals
from ternarize_cli.bench.probe import Memory, probe
from ternarize_cli.bench.rows import BenchRow, in_turn, time_feed
from ternarize_cli.bench.shapes import DEFAULT, ModelShape, model_shape
from ternarize_cli.bench.subject import Subject, find_model, prepare
from ternarize_cli.data.texts import source_name
from ternarize_cli.encoders.loading import checked_threads
from ternarize_cli.engines import baselines
from ternarize_cli.kernels.bitblas import operators
from ternarize_cli.measuring import energy, gpu, machine
from ternarize_cli.measuring.neighbours import busy_neighbours
from ternarize_cli.progress import Track, silent

__all__ = ["BenchReport", "benchmark"]


@dataclass(frozen=True)
class BenchReport:
    """What `benchmark` found; `machine` is `machine.facts` with the load around the measurement.

    `choices`: of each backend the kernels that it chose for the shapes that came up (`chosen_kernels.choices_of`).
    `neighbours`: number of processes that were kept busy beside the candidates; they do not count as `busy`.
    """

    model: str
    device: str
    notes: tuple[str, ...]
    rows: list[BenchRow]
    storage: list[Storage]
    memory: list[Memory]
    machine: dict[str, Any]
    busy: bool
    choices: dict[str, dict[str, str]] = field(default_factory=dict)
    neighbours: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def benchmark(
    model: str | None,
    options: BenchOptions,
    *,
    shape: ModelShape | None = None,
    say: Callable[[str], None] = lambda text: None,
    track: Track = silent,
) -> BenchReport:
    """Measures MODEL, or a model with random weights if it is None.

    Args:
        model: as users type it.
        options: what to measure.
        shape: of the random model, in place of the one that `options` name.
        say: is told what goes on, a sentence at a time.
        track: progress.

    Raises:
        InputError: options that do not go together; a backend, rival or shape nobody knows; a model or file of texts
            that can't be read; more tokens than the model takes; tokens or texts for a model that reads images; or a
            teacher that MODEL was not made of.
        UnavailableError: a backend was named that can't run here, or can't run this model, or there is no such device.
    """
    options.check(random=model is None)
    shape = shape or model_shape(options.shape or DEFAULT)
    backends, device = choose_backends(options.backends, options.device)
    wanted = tuple(dict.fromkeys(options.rivals)) if options.rivals is not None else None
    rivals, left_out = choose_rivals(wanted, device, texts=options.text is not None)
    meter = energy.counter(device) if options.energy else None
    if options.energy and meter is None:
        left_out.append(energy.unknown(device))
    if model is not None:  # refused before any note and any work
        check_inputs(find_model(model, options.teacher, allow_pickle=options.allow_pickle), options)
    for note in left_out:
        say(note)
    source = options.text or options.lengths
    texts = draw(source, options.seed) if source is not None else []
    load = _load(say)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(checked_threads(options.threads) if options.threads else threads)
        with (
            gpu.on(device),
            prepare(
                model,
                seed=options.seed,
                allow_pickle=options.allow_pickle,
                shape=shape,
                teacher=options.teacher,
                check=lambda folder: check_inputs(folder, options),
                say=say,
                track=track,
            ) as subject,
        ):
            if not options.backends:
                backends, unable = able_backends(backends, subject.packed)
                left_out += unable
                for note in unable:
                    say(note)
            candidates = [BenchCandidate(name, BACKEND, subject.packed, device) for name in backends]
            for entry in (baselines.require_baseline(name, device) for name in rivals):
                candidates.append(BenchCandidate(entry.name, RIVAL, subject.folder_of(entry), device))
            found = _measured(candidates, subject, options, texts, meter, track)
            facts = machine.facts()
            facts["versions"] |= machine.versions(baselines.libraries(rivals))
            facts |= load | {"load_after": machine.load_average(), "others_percent_during": found.others}
            rivals = [c.name for c in found.candidates if c.kind == RIVAL]
            explained = [*found.notes, *_explained(found.chosen, found.rows)]
            for note in explained:
                say(note)
            return BenchReport(
                subject.name,
                device,
                (*left_out, *subject.notes, *explained),
                found.rows,
                storage(subject, rivals, device),
                list(found.memory),
                facts,
                machine.is_busy(load["others_percent_before"], found.others),
                found.chosen,
                options.neighbours,
            )
    finally:
        torch.set_num_threads(threads)


def _load(say: Callable[[str], None]) -> dict[str, Any]:
    """The load before the measurement, as facts of the machine; says which processes keep it busy, if any do."""
    average = machine.load_average()
    with machine.LoadWatch() as before:
        top = machine.top_processes()
    if machine.is_busy(before.others):
        culprits = ", ".join(f"{p['name']} ({p['pid']}) {p['percent']:.0f}%" for p in top)
        say(f"others are using {before.others:.0f}% of a core before the start" + (f": {culprits}" if culprits else ""))
    return {"load_before": average, "others_percent_before": before.others, "top_processes": top}


@dataclass(frozen=True)
class _Measured:
    """The rows; the CPU use of others while the clock ran, in percent of a core; the kernels that backends chose; the
    candidates that were not left out; notes on rivals; and memory and start, if they are asked for."""

    rows: list[BenchRow]
    others: float
    chosen: dict[str, dict[str, str]]
    candidates: Sequence[BenchCandidate]
    notes: tuple[str, ...] = ()
    memory: tuple[Memory, ...] = ()


def _measured(
    candidates: Sequence[BenchCandidate],
    subject: Subject,
    options: BenchOptions,
    texts: Sequence[str],
    meter: Callable[[], float] | None,
    track: Track,
) -> _Measured:
    """Measures forward passes, with memory and start if they are asked for; or the times of texts."""
    if options.text is None:
        timed = _time(
            candidates, subject, options, make_feeds(subject, options, texts, candidates[0].device), meter, track
        )
        memory = _memory(timed.candidates, subject, options, track) if options.memory else []
        return replace(timed, memory=tuple(memory))
    rows, others, notes = time_texts(
        candidates,
        subject,
        texts,
        Path(source_name(options.text)).name,
        options.batch_sizes,
        repeats=options.repeats,
        seconds=options.seconds,
        neighbours=options.neighbours,
        track=track,
    )
    named = {row.name for row in rows}
    return _Measured(rows, others, {}, [c for c in candidates if c.name in named], tuple(notes))


def _memory(
    candidates: Sequence[BenchCandidate], subject: Subject, options: BenchOptions, track: Track
) -> list[Memory]:
    """Memory and start of each candidate at the point with the most tokens, in a process each."""
    points = options.points(images=subject.image is not None)
    largest = max(points, key=lambda point: (point.batch * max(point.tokens, 1), point.tokens))
    with busy_neighbours(options.neighbours):
        return [
            probe(candidate, largest, threads=torch.get_num_threads(), seed=options.seed)
            for candidate in track(candidates, "measuring memory and start", len(candidates))
        ]


def _explained(chosen: dict[str, dict[str, str]], rows: Sequence[BenchRow]) -> list[str]:
    """Sentences on the kernels that backends chose."""
    ran = {row.name: row.ran for row in rows}
    explained = chosen_kernels.notes(chosen, ran)
    if "bitblas" in ran.values():
        explained.append(f"kernels of bitblas: {operators.statistics}")
    return explained


def _time(
    candidates: Sequence[BenchCandidate],
    subject: Subject,
    options: BenchOptions,
    feeds: Sequence[Feed],
    meter: Callable[[], float] | None,
    track: Track,
) -> _Measured:
    """Times all candidates at all points; the result has no memory yet."""
    loaded = load(candidates, subject, track)
    device = candidates[0].device
    rows: list[BenchRow] = []
    events = gpu.Events(device) if gpu.is_gpu(device) else None
    with torch.inference_mode(), busy_neighbours(options.neighbours), machine.LoadWatch() as watch:
        for feed in track(feeds, "timing", len(feeds)):
            timed = time_feed(
                feed,
                loaded,
                repeats=options.repeats,
                seconds=options.seconds,
                warmup=options.warmup,
                watch=events,
            )
            if meter is not None:
                runs = {name: in_turn(run, feed.batches) for name, run in loaded.forwards.items()}
                used = {name: energy.per_pass(run, meter) for name, run in runs.items()}
                timed = [replace(row, joules=used[row.name]) for row in timed]
            rows += timed
    found = {c.name: chosen_kernels.choices_of(loaded.forwards[c.name]) for c in candidates if c.kind == BACKEND}
    chosen = {name: made for name, made in found.items() if made}
    return _Measured(rows, watch.others, chosen, loaded.candidates, tuple(loaded.notes))
