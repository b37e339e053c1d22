"""Measures the training of a model of random weights in the shape of a well-known encoder against itself as teacher.

    python docs/results/measure_training.py TEXTS FOLDER --shape mpnet-base > mpnet.json
    python docs/results/measure_training.py TEXTS FOLDER --shape mpnet-base --unrecorded > mpnet-unrecorded.json
    torchrun --standalone --nproc-per-node 2 docs/results/measure_training.py TEXTS FOLDER --shape bert-base > two.json

TEXTS has one text a line, and FOLDER keeps the models: source and ternary checkpoint are made once. The tokenizer's
words are the most frequent of TEXTS, and made-up ones up to the shape's vocabulary. Seed and batches are the same in
every run, so the losses of two runs of one shape can be compared, step by step.

The losses of the first `--curve` steps are read at every step, which waits for the GPU. Speed is measured from step
`--warm-up` on, when most shapes of batches were recorded, without the periods in which held-out data were looked at.
`median` is that of periods between two readings, which new shapes disturb less. Inputs per step are the run's mean.

With `--profile` 20 steps after the warm-up are profiled: `kernels` has the milliseconds of each kernel in a step, and
how often it is started.
"""

import argparse
import json
import os
import re
import statistics
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, PreTrainedTokenizerFast

import ternarize_cli as ternarize
from ternarize_cli.arithmetic.cuda_graphs import Graphs
from ternarize_cli.bench.shapes import SHAPES, ModelShape, random_model
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.options import ConvertOptions
from ternarize_cli.distill import optimisation, trainer
from ternarize_cli.distill.options import DistillOptions, Progress, Training
from ternarize_cli.measuring import machine

WORDS = r"\w+|[^\w\s]"
SPREAD = 0.04  # of weights; with transformers' .02 blocks of random weights add little to their inputs
READING = trainer._SECONDS_BETWEEN_READINGS
PROFILED = 20  # steps
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SHAPES |= {"tiny": ModelShape("mpnet", TINY | {"vocab_size": 500, "max_position_embeddings": 66})}


def write_tokenizer(folder: Path, texts: Path) -> None:
    """Writes a tokenizer of whole words for a model in `folder`, with the words of a file of texts."""
    config = AutoConfig.from_pretrained(folder)
    pad = config.pad_token_id or 0
    counted = Counter(re.findall(WORDS, texts.read_text(encoding="utf-8").lower()))
    kinds = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    words = [*kinds.values(), *(word for word, _ in counted.most_common(config.vocab_size - len(kinds) - 1))]
    words += [f"word{i}" for i in range(len(words), config.vocab_size - 1)]
    vocabulary = {word: i + (i >= pad) for i, word in enumerate(words)} | {"[PAD]": pad}
    made = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), "removed", invert=True)
    made.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    longest = min(512, getattr(config, "max_position_embeddings", 512) - 2)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=longest, pad_token="[PAD]", **kinds)
    tokenizer.save_pretrained(folder)


def models(folder: Path, shape: str, texts: Path) -> tuple[Path, Path]:
    """Gives source and ternary checkpoint of a shape; the first process makes them, and the others wait."""
    source, latent = folder / shape / "source", folder / shape / "ternary"
    if int(os.environ.get("RANK", "0")) == 0 and not latent.exists():
        made = SHAPES[shape]
        random_model(source, replace(made, config=made.config | {"initializer_range": SPREAD}), seed=0)
        write_tokenizer(source, texts)
        convert(source, latent, None, ConvertOptions(check=False), force=True)
    while not latent.exists():
        time.sleep(0.1)
    return source, latent


class Watch:
    """Keeps losses and times of a run's readings, and the run's recorded shapes."""

    def __init__(self, curve: int, warm_up: int, *, recorded: bool, profiled: bool = False) -> None:
        self.curve, self.warm_up = curve, warm_up
        self.kernels: list[dict[str, Any]] = []
        self.losses: dict[int, dict[str, float]] = {}
        self.periods: list[tuple[int, float]] = []  # steps and seconds between two readings
        self.graphs: list[Graphs[Any]] = []
        self._last: tuple[int, float, float | None] | None = None
        self._most = {} if recorded else {"most": 0}
        optimisation.Graphs = self._graphs_of
        if profiled:
            optimisation.Optimisation.step = self._profiled(optimisation.Optimisation.step)
        trainer._SECONDS_BETWEEN_READINGS = 0.0 if curve else READING

    def _graphs_of(self, function: Any, **settings: Any) -> Graphs[Any]:
        self.graphs.append(Graphs(function, **settings, **self._most))
        return self.graphs[-1]

    def note(self, progress: Progress) -> None:
        """Keeps what a reading says; switches to seldom readings after the curve."""
        now = time.perf_counter()
        if progress.step <= self.curve and progress.step % 10 == 0:
            self.losses[progress.step] = dict(progress.losses)
        if progress.step >= self.curve:
            trainer._SECONDS_BETWEEN_READINGS = READING
        if progress.step >= self.warm_up:
            if self._last is not None and self._last[2] == progress.cosine:
                self.periods.append((progress.step - self._last[0], now - self._last[1]))
            self._last = progress.step, now, progress.cosine

    def _profiled(self, step: Any) -> Any:
        """Wraps a step of the optimiser, so that some steps after the warm-up are profiled."""
        watched = profile(activities=[ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU])
        count = 0

        def run(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count == self.warm_up:
                watched.start()
            made = step(*arguments)
            if count == self.warm_up + PROFILED - 1:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                watched.stop()
                for event in watched.key_averages():
                    spent = event.self_device_time_total or event.self_cpu_time_total
                    counted = {"ms": spent / 1e3 / PROFILED, "count": event.count / PROFILED}
                    self.kernels.append({"name": event.key[:120], **counted})
                self.kernels.sort(key=lambda kernel: -kernel["ms"])
            return made

        return run


def main() -> None:
    """Trains, and prints the measurement as JSON in the first process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="bert-base")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--curve", type=int, default=200)
    parser.add_argument("--warm-up", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=256, help="inputs per step and process")
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--joined", type=float)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--unrecorded", action="store_true")
    parser.add_argument("--profile", action="store_true", help="name the kernels of a step")
    parser.add_argument("--device")
    options = parser.parse_args()
    source, latent = models(options.folder, options.shape, options.texts)
    watch = Watch(options.curve, options.warm_up, recorded=not options.unrecorded, profiled=options.profile)
    training = Training(
        steps=options.steps,
        batch_size=options.batch_size,
        max_length=options.max_length,
        joined=options.joined,
        learning_rate=options.learning_rate,
    )
    with machine.LoadWatch() as load:
        report = ternarize.distill(
            latent,
            options.texts,
            options.folder / options.shape / "trained",
            teacher=source,
            training=training,
            options=DistillOptions(device=options.device),
            force=True,
            on_step=watch.note,
            say=lambda text: print(text, file=sys.stderr),
        )
    if int(os.environ.get("RANK", "0")):
        return
    steps, seconds = sum(n for n, _ in watch.periods), sum(s for _, s in watch.periods)
    inputs = report.texts / report.steps
    cuda = torch.cuda.is_available() and options.device != "cpu"
    graphs = watch.graphs[-1] if watch.graphs else None
    print(
        json.dumps(
            {
                "shape": options.shape,
                "arguments": sys.argv[1:],
                "processes": int(os.environ.get("WORLD_SIZE", "1")),
                "steps": report.steps,
                "left_out": report.left_out,
                "batch_size": report.batch_size,
                "accumulate": report.accumulate,
                "inputs_per_step": inputs,
                "inputs_per_second": inputs * steps / seconds if seconds else None,
                "median": inputs * statistics.median(n / s for n, s in watch.periods) if seconds else None,
                "measured_steps": steps,
                "seconds_of_training": report.seconds,
                "recorded_shapes": len(graphs._recorded) if graphs else 0,
                "seen_shapes": len(graphs._seen) if graphs else 0,
                "refused": graphs.refused if graphs else None,
                "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
                "reserved_bytes": torch.cuda.max_memory_reserved() if cuda else None,
                "cosine": [report.cosine_before, report.cosine_after],
                "losses": watch.losses,
                **({"kernels": watch.kernels[:60]} if options.profile else {}),
                "others_percent": load.others,
                "machine": machine.facts(),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
