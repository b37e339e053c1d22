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
from ternarize_cli.bench.lengths import BATCHES, draw, padded_batches
from ternarize_cli.bench.model_bytes import Storage, storage
from ternarize_cli.bench.options import DEFAULT_TOKENS, BenchOptions
from ternarize_cli.bench.participants import able_backends, choose_backends, choose_rivals
from ternarize_cli.bench.probe import Memory, probe
from ternarize_cli.bench.rows import BenchRow, Feed, in_turn, time_feed
from ternarize_cli.bench.shapes import DEFAULT, ModelShape, model_shape
from ternarize_cli.bench.subject import Subject, find_model, max_tokens, prepare
from ternarize_cli.data.texts import source_name
from ternarize_cli.encoders import checkpoint
from ternarize_cli.encoders.loading import checked_threads
from ternarize_cli.encoders.modalities import modalities_of
from ternarize_cli.engines import baselines
from ternarize_cli.engines.baselines import Forward
from ternarize_cli.engines.inputs import random_batch
from ternarize_cli.errors import InputError
from ternarize_cli.kernels.bitblas import operators
from ternarize_cli.measuring import energy, gpu, machine
from ternarize_cli.progress import Track, silent

__all__ = ["BenchReport", "benchmark"]


@dataclass(frozen=True)
class BenchReport:
    """What `benchmark` found; `machine` is `machine.facts` with the load around the measurement.

    `choices`: of each backend the kernels that it chose for the shapes that came up (`chosen_kernels.choices_of`).
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
        _check_inputs(find_model(model, options.teacher, allow_pickle=options.allow_pickle), options)
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
                check=lambda folder: _check_inputs(folder, options),
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
            candidates += [BenchCandidate(name, RIVAL, subject.dense, device) for name in rivals]
            rows, during, chosen, memory = _measured(candidates, subject, options, texts, meter, track)
            facts = machine.facts()
            facts["versions"] |= machine.versions(baselines.libraries(rivals))
            facts |= load | {"load_after": machine.load_average(), "others_percent_during": during}
            explained = _explained(chosen, rows)
            for note in explained:
                say(note)
            return BenchReport(
                subject.name,
                device,
                (*left_out, *subject.notes, *explained),
                rows,
                storage(subject, rivals, device),
                memory,
                facts,
                machine.is_busy(load["others_percent_before"], during),
                chosen,
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


def _measured(
    candidates: list[BenchCandidate],
    subject: Subject,
    options: BenchOptions,
    texts: Sequence[str],
    meter: Callable[[], float] | None,
    track: Track,
) -> tuple[list[BenchRow], float, dict[str, dict[str, str]], list[Memory]]:
    """What `_time` returns, and memory and start of each candidate, if they are asked for; or the times of texts."""
    if options.text is None:
        feeds = _feeds(subject, options, texts, candidates[0].device)
        timed = _time(candidates, subject, options, feeds, meter, track)
        return *timed, _memory(candidates, subject, options, track) if options.memory else []
    rows, others = time_texts(
        candidates,
        subject,
        texts,
        Path(source_name(options.text)).name,
        options.batch_sizes,
        repeats=options.repeats,
        seconds=options.seconds,
        track=track,
    )
    return rows, others, {}, []


def _memory(
    candidates: Sequence[BenchCandidate], subject: Subject, options: BenchOptions, track: Track
) -> list[Memory]:
    """Memory and start of each candidate at the point with the most tokens, in a process each."""
    points = options.points(images=subject.image is not None)
    largest = max(points, key=lambda point: (point.batch * max(point.tokens, 1), point.tokens))
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


def _check_inputs(folder: Path, options: BenchOptions) -> None:
    """Refuses options that the model can't be fed with."""
    if modalities_of(folder) == {"image"}:
        for option, value in {"--tokens": options.tokens, "--lengths": options.lengths, "--text": options.text}.items():
            if value is not None:
                raise InputError(
                    f"{option} is about texts, and {folder.name} reads images",
                    hint="leave it out: the size of its images decides how many tokens there are",
                )
        return
    limit = max_tokens(checkpoint.read_config(folder))
    wanted = options.tokens or (DEFAULT_TOKENS if options.text is None else ())
    too_many = [tokens for tokens in wanted if limit is not None and tokens > limit]
    if too_many:
        raise InputError(f"{folder.name} takes at most {limit} tokens, not {too_many[0]}", hint=f"--tokens {limit}")


def _feeds(subject: Subject, options: BenchOptions, texts: Sequence[str], device: str) -> list[Feed]:
    """What is timed, in order: the grid, then batches of texts."""
    points = options.points(images=subject.image is not None)
    feeds = [Feed((random_batch(subject.packed, point, options.seed, device),)) for point in points]
    if options.lengths is not None:
        name = Path(source_name(options.lengths)).name
        drawn = padded_batches(
            subject.packed, texts, sorted(set(options.batch_sizes)), min(BATCHES, options.repeats), device
        )
        feeds += [Feed(tuple(batches), name) for batches in drawn.values()]
    return feeds


def _time(
    candidates: list[BenchCandidate],
    subject: Subject,
    options: BenchOptions,
    feeds: Sequence[Feed],
    meter: Callable[[], float] | None,
    track: Track,
) -> tuple[list[BenchRow], float, dict[str, dict[str, str]]]:
    """All rows, what others used of the CPU while the clock ran, in percent of a core, and what backends chose."""
    forwards: dict[str, Forward] = {}
    ran: dict[str, str] = {}
    for candidate in track(candidates, "loading", len(candidates)):
        forwards[candidate.name], ran[candidate.name] = candidate.load()
    device = candidates[0].device
    reference = forwards.get("reference")
    if reference is None:
        reference, _ = BenchCandidate("reference", BACKEND, subject.packed, device).load()
    rows: list[BenchRow] = []
    events = gpu.Events(device) if gpu.is_gpu(device) else None
    with torch.inference_mode(), machine.LoadWatch() as watch:
        for feed in track(feeds, "timing", len(feeds)):
            timed = time_feed(
                feed,
                candidates,
                forwards,
                ran,
                reference,
                repeats=options.repeats,
                seconds=options.seconds,
                warmup=options.warmup,
                watch=events,
            )
            if meter is not None:
                used = {name: energy.per_pass(in_turn(run, feed.batches), meter) for name, run in forwards.items()}
                timed = [replace(row, joules=used[row.name]) for row in timed]
            rows += timed
    found = {c.name: chosen_kernels.choices_of(forwards[c.name]) for c in candidates if c.kind == BACKEND}
    return rows, watch.others, {name: made for name, made in found.items() if made}
