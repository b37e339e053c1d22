"""`bench`: latency, bytes, memory and start of a packed model's backends against full-precision rivals.

    plan ──check──▶ subject (packed + full precision) ──▶ candidates ──▶ timings, point by point ─────────────▶ report
                                                              └────────▶ memory and start, a subprocess each ──┘

Instead of forward passes, a plan with `text` has whole files encoded (`end_to_end`); memory is not measured then.

Every name is checked before any model is built. Beside each latency of a backend stands how far its output is from
`reference` on the same batch: a fast wrong kernel must not look good.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ternarize_cli.bench import chosen_kernels
from ternarize_cli.bench.candidates import BACKEND, RIVAL, Candidate
from ternarize_cli.bench.end_to_end import time_texts
from ternarize_cli.bench.growth import Growth, growths
from ternarize_cli.bench.lengths import BATCHES, draw, padded_batches
from ternarize_cli.bench.model_bytes import Storage, storage
from ternarize_cli.bench.participants import choose_backends, choose_rivals
from ternarize_cli.bench.probe import Memory, probe
from ternarize_cli.bench.rows import Feed, Row, in_turn, time_feed
from ternarize_cli.bench.shapes import DEFAULT, SHAPES, Shape
from ternarize_cli.bench.subject import Subject, max_tokens, prepare
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
from ternarize_cli.measuring.timing import Point
from ternarize_cli.progress import Track, silent

__all__ = ["DEFAULT_TOKENS", "Plan", "Report", "benchmark"]

DEFAULT_TOKENS = (16, 128)


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        backends: names of kernel backends; empty for all that run on the device.
        rivals: names of rivals; "all" stands for those that can run here, "none" for no rival. None: the defaults of
            the device.
        batches, tokens: every pair of them is a point. Images take no tokens; None stands for `DEFAULT_TOKENS`.
        repeats: timed calls of each candidate per point.
        seconds: time budget per point; it cuts the repeats, though never below three.
        warmup: untimed calls before.
        threads: CPU threads for all; None leaves torch's number.
        memory: measure memory, load time and cold start too, in a subprocess per candidate.
        seed: of token ids and pixels, of the texts drawn, and of random weights.
        lengths: a file of texts (`texts.read_texts`); batches of them are a point for each of `batches`.
        text: a file of texts to encode from strings to vectors, in batches of `batches`, instead of all that; of more
            than 10,000 as many are drawn.
        device: torch device; None: the GPU if a backend runs nowhere else, else the CPU.
        energy: measure joules per pass, too, where the GPU counts them.
    """

    backends: tuple[str, ...] = ()
    rivals: tuple[str, ...] | None = None
    batches: tuple[int, ...] = (1, 8)
    tokens: tuple[int, ...] | None = None
    repeats: int = 50
    seconds: float = 10.0
    warmup: int = 2
    threads: int | None = None
    memory: bool = True
    seed: int = 0
    lengths: str | None = None
    text: str | None = None
    device: str | None = None
    energy: bool = False

    def points(self, *, images: bool = False) -> list[Point]:
        """All points, small to large."""
        lengths = (0,) if images else self.tokens or DEFAULT_TOKENS
        return sorted({Point(batch, tokens) for batch in self.batches for tokens in lengths})


@dataclass(frozen=True)
class Report:
    """What `benchmark` found; `machine` is `machine.facts` with the load around the measurement.

    `choices`: of each backend the kernels that it chose for the shapes that came up (`chosen_kernels.choices_of`).
    """

    model: str
    device: str
    notes: tuple[str, ...]
    rows: list[Row]
    storage: list[Storage]
    memory: list[Memory]
    growth: list[Growth]
    machine: dict[str, Any]
    busy: bool
    choices: dict[str, dict[str, str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def benchmark(
    model: str | None,
    plan: Plan,
    *,
    allow_pickle: bool = False,
    teacher: str | None = None,
    shape: Shape = SHAPES[DEFAULT],
    say: Callable[[str], None] = lambda text: None,
    track: Track = silent,
) -> Report:
    """Measures MODEL, or a model with random weights if it is None.

    Args:
        model: as users type it.
        plan: what to measure.
        allow_pickle: read a MODEL that has only pickled weights.
        teacher: the full-precision model that the rivals run, as users type it; None: MODEL's own weights.
        shape: of the random model.
        say: is told what goes on, a sentence at a time.
        track: progress.

    Raises:
        InputError: a backend or rival nobody knows, a model or file of texts that can't be read, more tokens than
            the model takes, tokens or texts for a model that reads images, or a teacher that MODEL was not made of.
        UnavailableError: a backend was named that can't run here, or can't run this model, or there is no such device.
    """
    backends, device = choose_backends(plan.backends, plan.device)
    rivals, left_out = choose_rivals(plan.rivals, device, texts=plan.text is not None)
    meter = energy.counter(device) if plan.energy else None
    if plan.energy and meter is None:
        left_out.append(energy.unknown(device))
    for note in left_out:
        say(note)
    source = plan.text or plan.lengths
    texts = draw(source, plan.seed) if source is not None else []
    load_before = machine.load_average()
    with machine.Watch() as before:
        top = machine.top_processes()
    if machine.is_busy(before.others):
        culprits = ", ".join(f"{p['name']} ({p['pid']}) {p['percent']:.0f}%" for p in top)
        say(f"others are using {before.others:.0f}% of a core before the start" + (f": {culprits}" if culprits else ""))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(checked_threads(plan.threads) if plan.threads else threads)
        with (
            gpu.on(device),
            prepare(
                model,
                seed=plan.seed,
                allow_pickle=allow_pickle,
                shape=shape,
                teacher=teacher,
                check=lambda folder: _check_inputs(folder, plan),
                say=say,
                track=track,
            ) as subject,
        ):
            candidates = [Candidate(name, BACKEND, subject.packed, device) for name in backends]
            candidates += [Candidate(name, RIVAL, subject.dense, device) for name in rivals]
            chosen: dict[str, dict[str, str]] = {}
            if plan.text is not None:
                name = Path(source_name(plan.text)).name
                rows, during = time_texts(
                    candidates,
                    subject,
                    texts,
                    name,
                    plan.batches,
                    repeats=plan.repeats,
                    seconds=plan.seconds,
                    track=track,
                )
            else:
                feeds = _feeds(subject, plan, texts, device)
                rows, during, chosen = _time(candidates, subject, plan, feeds, meter, track)
            memory = []
            if plan.memory and plan.text is None:
                points = plan.points(images=subject.image is not None)
                largest = max(points, key=lambda point: (point.batch * max(point.tokens, 1), point.tokens))
                memory = [
                    probe(candidate, largest, threads=torch.get_num_threads(), seed=plan.seed)
                    for candidate in track(candidates, "measuring memory and start", len(candidates))
                ]
            facts = machine.facts()
            facts["versions"] |= machine.versions(baselines.libraries(rivals))
            found = facts | {
                "load_before": load_before,
                "load_after": machine.load_average(),
                "others_percent_before": before.others,
                "others_percent_during": during,
                "top_processes": top,
            }
            busy = machine.is_busy(before.others, during)
            ran = {row.name: row.ran for row in rows}
            explained = chosen_kernels.notes(chosen, ran)
            if "bitblas" in ran.values():
                explained.append(f"kernels of bitblas: {operators.statistics}")
            for note in explained:
                say(note)
            return Report(
                subject.name,
                device,
                (*left_out, *subject.notes, *explained),
                rows,
                storage(subject, rivals, device),
                memory,
                growths(rows),
                found,
                busy,
                chosen,
            )
    finally:
        torch.set_num_threads(threads)


def _check_inputs(folder: Path, plan: Plan) -> None:
    """Refuses a plan that the model can't be fed with."""
    if modalities_of(folder) == {"image"}:
        for option, value in {"--tokens": plan.tokens, "--lengths": plan.lengths, "--text": plan.text}.items():
            if value is not None:
                raise InputError(
                    f"{option} is about texts, and {folder.name} reads images",
                    hint="leave it out: the size of its images decides how many tokens there are",
                )
        return
    limit = max_tokens(checkpoint.read_config(folder))
    wanted = plan.tokens or (DEFAULT_TOKENS if plan.text is None else ())
    too_many = [tokens for tokens in wanted if limit is not None and tokens > limit]
    if too_many:
        raise InputError(f"{folder.name} takes at most {limit} tokens, not {too_many[0]}", hint=f"--tokens {limit}")


def _feeds(subject: Subject, plan: Plan, texts: Sequence[str], device: str) -> list[Feed]:
    """What is timed, in order: the grid, then batches of texts."""
    points = plan.points(images=subject.image is not None)
    feeds = [Feed((random_batch(subject.packed, point, plan.seed, device),)) for point in points]
    if plan.lengths is not None:
        name = Path(source_name(plan.lengths)).name
        drawn = padded_batches(subject.packed, texts, sorted(set(plan.batches)), min(BATCHES, plan.repeats), device)
        feeds += [Feed(tuple(batches), name) for batches in drawn.values()]
    return feeds


def _time(
    candidates: list[Candidate],
    subject: Subject,
    plan: Plan,
    feeds: Sequence[Feed],
    meter: Callable[[], float] | None,
    track: Track,
) -> tuple[list[Row], float, dict[str, dict[str, str]]]:
    """All rows, what others used of the CPU while the clock ran, in percent of a core, and what backends chose."""
    forwards: dict[str, Forward] = {}
    ran: dict[str, str] = {}
    for candidate in track(candidates, "loading", len(candidates)):
        forwards[candidate.name], ran[candidate.name] = candidate.load()
    device = candidates[0].device
    reference = forwards.get("reference")
    if reference is None:
        reference, _ = Candidate("reference", BACKEND, subject.packed, device).load()
    rows: list[Row] = []
    events = gpu.Events(device) if gpu.is_gpu(device) else None
    with torch.inference_mode(), machine.Watch() as watch:
        for feed in track(feeds, "timing", len(feeds)):
            timed = time_feed(
                feed,
                candidates,
                forwards,
                ran,
                reference,
                repeats=plan.repeats,
                seconds=plan.seconds,
                warmup=plan.warmup,
                watch=events,
            )
            if meter is not None:
                used = {name: energy.per_pass(in_turn(run, feed.batches), meter) for name, run in forwards.items()}
                timed = [replace(row, joules=used[row.name]) for row in timed]
            rows += timed
    found = {c.name: chosen_kernels.choices_of(forwards[c.name]) for c in candidates if c.kind == BACKEND}
    return rows, watch.others, {name: made for name, made in found.items() if made}
