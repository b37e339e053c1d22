"""`bench`: latency, bytes and memory of a packed model's backends against full-precision rivals.

    plan ──check──▶ subject (packed + full precision) ──▶ candidates ──▶ timings, point by point ──▶ report
                                                              └────────▶ memory, a subprocess each ──┘

Every name is checked before any model is built. Beside each latency of a backend stands how far its output is from
`reference` on the same batch: a fast wrong kernel must not look good.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ternarize_cli import checkpoint, kernels
from ternarize_cli.bench import baselines, machine
from ternarize_cli.bench.baselines import Forward
from ternarize_cli.bench.candidates import BACKEND, RIVAL, Candidate, random_batch, relative_l2
from ternarize_cli.bench.measure import Point, summarise, time_interleaved
from ternarize_cli.bench.probe import Memory, probe
from ternarize_cli.bench.storage import Storage, storage
from ternarize_cli.bench.subject import BERT_BASE_CHINESE, Subject, max_tokens, prepare
from ternarize_cli.errors import InputError
from ternarize_cli.progress import Track, silent

__all__ = ["DEFAULT_RIVALS", "Plan", "Report", "Row", "benchmark"]

DEFAULT_RIVALS = ("torch-fp32", "torch-bf16")


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        backends: names of kernel backends; empty for all that run on this CPU.
        rivals: names of rivals.
        batches, tokens: every pair of them is a point.
        repeats: timed calls of each candidate per point.
        seconds: time budget per point; it cuts the repeats, though never below three.
        warmup: untimed calls before.
        threads: CPU threads for all; None leaves torch's number.
        memory: measure peak memory too, in a subprocess per candidate.
        seed: of the token ids (and of random weights).
    """

    backends: tuple[str, ...] = ()
    rivals: tuple[str, ...] = DEFAULT_RIVALS
    batches: tuple[int, ...] = (1, 8)
    tokens: tuple[int, ...] = (16, 128)
    repeats: int = 50
    seconds: float = 10.0
    warmup: int = 2
    threads: int | None = None
    memory: bool = True
    seed: int = 0

    @property
    def points(self) -> list[Point]:
        """All points, small to large."""
        return sorted({Point(batch, tokens) for batch in self.batches for tokens in self.tokens})


@dataclass(frozen=True)
class Row:
    """One candidate at one point.

    Attributes:
        name, kind: the candidate; `ran` is the backend that really ran (it differs from `name` for "auto").
        batch, tokens: the point.
        median_ms, p10_ms, p90_ms: of the calls, in milliseconds.
        tokens_per_s: batch times tokens over the median.
        repeats: timed calls.
        ratio: the fastest rival's median over this median, so above 1 is faster; None without rivals.
        best_rival: that rival's name.
        relative_l2: distance of a backend's output from `reference`, worst sentence; None for rivals.
    """

    name: str
    kind: str
    ran: str
    batch: int
    tokens: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    tokens_per_s: float
    repeats: int
    ratio: float | None
    best_rival: str | None
    relative_l2: float | None


@dataclass(frozen=True)
class Report:
    """What `benchmark` found; `machine` is `machine.facts` with the load around the measurement."""

    model: str
    device: str
    notes: tuple[str, ...]
    rows: list[Row]
    storage: list[Storage]
    memory: list[Memory]
    machine: dict[str, Any]
    busy: bool

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def benchmark(
    model: str | None,
    plan: Plan,
    *,
    allow_pickle: bool = False,
    random_config: dict[str, int] = BERT_BASE_CHINESE,
    say: Callable[[str], None] = lambda text: None,
    track: Track = silent,
) -> Report:
    """Measures MODEL, or a BERT with random weights if it is None.

    Args:
        model: as users type it.
        plan: what to measure.
        allow_pickle: read a MODEL that has only pickled weights.
        random_config: BERT config values of the random model.
        say: is told what goes on, a sentence at a time.
        track: progress.

    Raises:
        InputError: a backend or rival nobody knows, a model that can't be read, or more tokens than it takes.
        UnavailableError: a backend was named that can't run here, or can't run this model.
    """
    backends, device = _chosen_backends(plan)
    for name in plan.rivals:
        baselines.require(name)
    load_before = machine.load_average()
    with machine.Watch() as before:
        top = machine.top_processes()
    if machine.is_busy(before.others):
        culprits = ", ".join(f"{p['name']} ({p['pid']}) {p['percent']:.0f}%" for p in top)
        say(f"others are using {before.others:.0f}% of a core before the start" + (f": {culprits}" if culprits else ""))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(plan.threads or threads)
        with prepare(
            model, seed=plan.seed, allow_pickle=allow_pickle, random_config=random_config, say=say, track=track
        ) as subject:
            _check_tokens(subject, plan)
            candidates = [Candidate(name, BACKEND, subject.packed, device) for name in backends]
            candidates += [Candidate(name, RIVAL, subject.dense, device) for name in plan.rivals]
            rows, during = _time(candidates, subject, plan, track)
            memory = []
            if plan.memory:
                largest = max(plan.points, key=lambda point: (point.batch * point.tokens, point.tokens))
                memory = [
                    probe(candidate, largest, threads=torch.get_num_threads(), seed=plan.seed)
                    for candidate in track(candidates, "measuring memory", len(candidates))
                ]
            found = machine.facts() | {
                "load_before": load_before,
                "load_after": machine.load_average(),
                "others_percent_before": before.others,
                "others_percent_during": during,
                "top_processes": top,
            }
            busy = machine.is_busy(before.others, during)
            return Report(subject.name, device, subject.notes, rows, storage(subject), memory, found, busy)
    finally:
        torch.set_num_threads(threads)


def _chosen_backends(plan: Plan) -> tuple[list[str], str]:
    """The backends to run and the one device they share."""
    known = {info.name: info for info in kernels.describe()}
    if not plan.backends:
        return [i.name for i in known.values() if i.available and i.device in ("any", "cpu")], "cpu"
    for name in plan.backends:
        if name != "auto":
            kernels.require(name)
    devices = {name: known[name].device for name in plan.backends if name != "auto"}
    on_gpu = [name for name, device in devices.items() if device == "cuda"]
    on_cpu = [name for name, device in devices.items() if device == "cpu"]
    if on_gpu and on_cpu:
        raise InputError(
            f"{on_gpu[0]} runs on a GPU and {on_cpu[0]} on the CPU; one run has one device",
            hint="bench them in two runs",
        )
    return list(dict.fromkeys(plan.backends)), "cuda" if on_gpu else "cpu"


def _check_tokens(subject: Subject, plan: Plan) -> None:
    limit = max_tokens(checkpoint.read_config(subject.dense))
    too_many = [tokens for tokens in plan.tokens if limit is not None and tokens > limit]
    if too_many:
        raise InputError(f"{subject.name} takes at most {limit} tokens, not {too_many[0]}", hint=f"--tokens {limit}")


def _time(candidates: list[Candidate], subject: Subject, plan: Plan, track: Track) -> tuple[list[Row], float]:
    """All rows, and what others used of the CPU while the clock ran, in percent of a core."""
    config = checkpoint.read_config(subject.dense)
    forwards: dict[str, Forward] = {}
    ran: dict[str, str] = {}
    for candidate in track(candidates, "loading", len(candidates)):
        forwards[candidate.name], ran[candidate.name] = candidate.load()
    device = candidates[0].device
    reference = forwards.get("reference")
    if reference is None:
        reference, _ = Candidate("reference", BACKEND, subject.packed, device).load()
    rows: list[Row] = []
    with torch.inference_mode(), machine.Watch() as watch:
        for point in track(plan.points, "timing", len(plan.points)):
            ids, mask = random_batch(config, point, plan.seed, device)
            expected = reference(ids, mask)
            distance = {
                c.name: relative_l2(forwards[c.name](ids, mask), expected) for c in candidates if c.kind == BACKEND
            }
            calls = {name: _bind(forward, ids, mask) for name, forward in forwards.items()}
            times = time_interleaved(calls, repeats=plan.repeats, seconds=plan.seconds, warmup=plan.warmup)
            rows += _rows(candidates, ran, point, times, distance)
    return rows, watch.others


def _bind(forward: Forward, ids: torch.Tensor, mask: torch.Tensor) -> Callable[[], object]:
    return lambda: forward(ids, mask)


def _rows(
    candidates: list[Candidate],
    ran: dict[str, str],
    point: Point,
    times: dict[str, list[float]],
    distance: dict[str, float],
) -> list[Row]:
    timings = {name: summarise(seconds) for name, seconds in times.items()}
    rivals = [c.name for c in candidates if c.kind == RIVAL]
    best = min(rivals, key=lambda name: timings[name].median_ms) if rivals else None
    return [
        Row(
            name=c.name,
            kind=c.kind,
            ran=ran[c.name],
            batch=point.batch,
            tokens=point.tokens,
            median_ms=timings[c.name].median_ms,
            p10_ms=timings[c.name].p10_ms,
            p90_ms=timings[c.name].p90_ms,
            tokens_per_s=round(1000 * point.batch * point.tokens / timings[c.name].median_ms, 1),
            repeats=timings[c.name].repeats,
            ratio=round(timings[best].median_ms / timings[c.name].median_ms, 4) if best else None,
            best_rival=best,
            relative_l2=distance.get(c.name),
        )
        for c in candidates
    ]
