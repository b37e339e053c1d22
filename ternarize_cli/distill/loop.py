"""Distils a teacher into a ternary student, from two model folders and data to a trained checkpoint.

The run works in the output's partial folder, which holds its checkpoint and metrics; with `resume` it goes on from
there after it was killed or stopped. Under `accelerate launch` every process trains, and the first one writes.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.options import ConvertOptions
from ternarize_cli.distill import training_checkpoint
from ternarize_cli.distill.batches import Batches
from ternarize_cli.distill.data import Sources, read_corpus
from ternarize_cli.distill.held_out import HeldOut
from ternarize_cli.distill.journal import Journal
from ternarize_cli.distill.losses import OF_STATES
from ternarize_cli.distill.options import DistillOptions, Progress, Training
from ternarize_cli.distill.result import DistillReport, record_of, write
from ternarize_cli.distill.student_teacher import Pair
from ternarize_cli.distill.teacher_cache import cached_vectors
from ternarize_cli.distill.trainer import Trainer
from ternarize_cli.distill.training_corpus import TrainingCorpus
from ternarize_cli.encoders import checkpoint, loading
from ternarize_cli.encoders.heads import load_with_head
from ternarize_cli.encoders.modalities import modality_of_sources
from ternarize_cli.errors import CheckpointError, InputError, OutputExistsError, TernarizeError
from ternarize_cli.format.scheme import Scheme
from ternarize_cli.model_folder.model_kind import Kind, kind_of, require_kind
from ternarize_cli.progress import Track, silent
from ternarize_cli.storage import digests, files, signals

__all__ = ["distill"]


def distill(
    student: Path,
    teacher: Path,
    sources: Sources,
    output: Path,
    training: Training,
    options: DistillOptions | None = None,
    *,
    force: bool = False,
    on_step: Callable[[Progress], None] = lambda _: None,
    track: Track = silent,
) -> DistillReport:
    """Trains the ternary checkpoint `student` and writes the result to `output`, atomically.

    Args:
        student: a ternary checkpoint, or a full-precision model, which is first converted by the recipe's rule.
        teacher: the full-precision model that the student was converted from.
        sources: the training data, of which a part is held out.
        output: the folder to write; tensors keep the student's names.
        training: budget and hyper-parameters.
        options: packing, caches, resuming and devices; None: `DistillOptions()`. Its weights and samples are not read:
            `sources` has them.
        force: replace an existing output.
        on_step: called after steps, in the main process.
        track: reports progress of reading.

    Raises:
        CheckpointError: the student is packed, teacher and student don't match, or the checkpoint to resume from is
            missing, damaged, of a run with other settings, or of a version that trains differently.
        DataError: a source can't be read, or there are fewer than 20 different texts or images.
        InputError: options contradict each other, or the GPU's memory does not hold a batch.
        TernarizeError: the gradients stopped being finite (the last checkpoint stays), or the teacher's vectors are not
            finite.
        KeyboardInterrupt: the run was interrupted by Ctrl-C, or by a signal that `signals.listen` listens for; a
            checkpoint was written.
        OutputExistsError: the output exists, and `force` is false.
        OutputError: the output can't be written.
    """
    options = options or DistillOptions()
    inputs = [student, teacher]
    files.check_output(output, force=force, inputs=inputs)
    _check(student, teacher)
    kind, model_kind = modality_of_sources(student, sources.paths, stdin=True), kind_of(student)
    require_kind(teacher, model_kind)
    device = loading.checked_device(options.device)
    training = training.on(device, kind).for_kind(model_kind)
    if options.cache_teacher is not None:
        _check_cacheable(kind, model_kind, training)
    on = _accelerator(device)
    torch.manual_seed(training.seed)
    opens: Any = loading.load_encoder if model_kind == "encoder" else load_with_head
    with _workplace(on, output, inputs, force=force, resume=options.resume) as partial:
        latent = _latent(on, partial, student, training)
        pair = Pair(
            opens(latent, device=str(on.device), threads=options.threads),
            opens(teacher, device=str(on.device)).float(),  # autocast on a CPU takes no float16
            tables=training.chosen.tables > 0,
        )
        corpus, held = read_corpus(
            pair.student, student, sources, max_length=training.max_length, seed=training.seed, track=track
        )
        vectors = _known_vectors(options.cache_teacher, on, pair, corpus, teacher, track)
        trainer = _trainer(on, pair, latent, (corpus, held), sources, training, vectors)
        training = trainer.training
        before = trainer.held_out()
        others = (corpus.digest, held.digest, sources.weights, on.num_processes)
        key = training_checkpoint.key((student, teacher), training, *others)
        if training.until is not None:
            trainer.start(before)
        if options.resume:
            training_checkpoint.restore(partial, key, trainer.load_state)
        resumed_at = trainer.step
        journal = Journal(partial, resumed_at) if on.is_main_process else None
        _train(trainer, partial, key, journal, on_step)
        if not trainer.optimisation.is_finite():
            raise TernarizeError("the weights are not finite, or too large", hint="choose a lower --learning-rate")
        report = _report(trainer, before, corpus, held, resumed_at)
        if on.is_main_process:
            record = record_of(teacher, sources, on.num_processes, training, report)
            write(partial, latent, pair, record, packed=options.pack)
        on.wait_for_everyone()
    if on.num_processes > 1:  # a process that ends while another has NCCL's communicator open may never end
        on.end_training()
    return report


def _accelerator(device: str) -> Any:
    """Makes accelerate's Accelerator; a single process uses exactly the named device."""
    from accelerate import Accelerator

    on = Accelerator(cpu=device == "cpu")
    if on.num_processes == 1:
        on.state.device = torch.device(device)
    return on


def _latent(on: Any, partial: Path, student: Path, training: Training) -> Path:
    """Returns the ternary checkpoint that training starts from; makes it in `partial` of a full-precision student."""
    if checkpoint.artifact_of(student) is not None:
        return student
    latent = partial / "start"
    if on.is_main_process and not latent.is_dir():
        scheme = Scheme(rule=training.chosen.rule, granularity=training.chosen.granularity)
        convert(student, latent, scheme, ConvertOptions(seed=training.seed, check=False))
    on.wait_for_everyone()
    return latent


def _trainer(
    on: Any,
    pair: Pair,
    latent: Path,
    data: tuple[TrainingCorpus, TrainingCorpus],
    sources: Sources,
    training: Training,
    vectors: np.ndarray | None,
) -> Trainer:
    """Makes the trainer; `Training.auto_batch` changes the training until a batch fits the GPU (`Training.smaller`).

    Args:
        on: the Accelerator.
        pair: student and teacher.
        latent: the folder of the student's ternary checkpoint.
        data: the corpus to train on, and the held-out one.
        sources: where the data comes from.
        training: budget and hyper-parameters; the trainer's own may take less memory.
        vectors: the teacher's embeddings of the corpus; None computes them in each step.
    """
    corpus, held = data
    artifact = checkpoint.artifact_of(latent)
    settle = artifact is not None and artifact.calibration is not None
    # messages between processes, except gradients, go from CPU to CPU: reading them from a GPU would wait for it
    group = torch.distributed.new_group(backend="gloo") if on.num_processes > 1 else None
    watched = HeldOut(pair, held, on, group)
    while True:
        batches = Batches(corpus, sources, training, on, vectors)
        trainer = Trainer(pair, batches, watched, training, on, group=group, settle=settle)
        smaller = training.smaller() if training.auto_batch else None
        if smaller is None or trainer.optimisation.fits(batches.heaviest()):
            return trainer
        training = smaller


def _report(
    trainer: Trainer, before: tuple[float, float], corpus: TrainingCorpus, held: TrainingCorpus, resumed_at: int
) -> DistillReport:
    """Measures the trained student on held-out data; `before` is what `Trainer.held_out` gave before training."""
    after = trainer.held_out()
    return DistillReport(
        steps=trainer.step,
        texts=trainer.count,
        seconds=trainer.seconds,
        cosine_before=before[0],
        cosine_after=after[0],
        agreement_before=before[1],
        agreement_after=after[1],
        held_out=len(held.lengths),
        training_texts=len(corpus.lengths),
        batch_size=trainer.training.batch,
        accumulate=trainer.training.accumulate,
        learning_rate=trainer.training.peak,
        budget=trainer.training.budget,
        ended_by="until" if trainer.is_near else "budget",
        until=trainer.training.until,
        width=trainer.width,
        left_out=trainer.optimisation.left_out,
        resumed_at=resumed_at,
        scores=trainer.pair.scores,
        gradient_checkpointing=trainer.training.gradient_checkpointing,
        losses=trainer.losses,
        shares=trainer.optimisation.shares,
    )


def _check_cacheable(kind: str, model_kind: Kind, training: Training) -> None:
    if model_kind != "encoder":
        raise InputError("only vectors of encoders can be cached", hint="leave out --cache-teacher")
    if kind == "image":
        raise InputError("embeddings of images can't be cached", hint="leave out --cache-teacher")
    of_states = [name for name in training.parts if name in OF_STATES]
    if of_states:
        raise InputError(
            f"only embeddings can be cached, and {', '.join(of_states)} compares hidden states",
            hint=" ".join(f"--loss {name}=0" for name in of_states),
        )
    if training.share_joined:
        raise InputError("joined texts differ from epoch to epoch and can't be cached", hint="--joined 0")


def _known_vectors(
    folder: Path | None, on: Any, pair: Pair, corpus: TrainingCorpus, teacher: Path, track: Track
) -> np.ndarray | None:
    """Returns the teacher's embeddings of the corpus from the cache `folder`, made if missing; None without a cache."""
    if folder is None:
        return None
    if not on.is_main_process:
        on.wait_for_everyone()
    vectors = cached_vectors(folder, pair, corpus, digests.content_hash(teacher), track)
    if on.is_main_process:
        on.wait_for_everyone()
    return vectors


def _check(student: Path, teacher: Path) -> None:
    artifact = checkpoint.artifact_of(student)
    if artifact is not None and artifact.stage != "latent":
        raise CheckpointError(
            f"{student} is packed and can't train", hint="distill the ternary checkpoint it came from"
        )
    if checkpoint.stage(teacher) is not None:
        raise CheckpointError(f"the teacher {teacher} is ternary itself", hint="--teacher is the full-precision model")


@contextmanager
def _workplace(on: Any, output: Path, inputs: list[Path], *, force: bool, resume: bool) -> Iterator[Path]:
    """Yields the partial folder. The main process makes it and moves it into place; the others only use it.

    If the run fails, the folder is kept only if it holds a checkpoint.
    """
    partial = files.partial_path(output)
    if on.is_main_process:
        if training_checkpoint.has_checkpoint(partial) and not (resume or force):
            raise OutputExistsError(
                f"an earlier run to {output} was stopped and left a checkpoint",
                hint="--resume goes on from it, --force starts anew",
            )
        with files.atomic_folder(output, force=force, resume=resume, keep=True, inputs=inputs) as partial:
            on.wait_for_everyone()
            try:
                yield partial
            except BaseException:
                if not training_checkpoint.has_checkpoint(partial):
                    files.empty(partial)
                raise
    else:
        on.wait_for_everyone()
        yield partial


def _train(
    trainer: Trainer, partial: Path, key: str, journal: Journal | None, on_step: Callable[[Progress], None]
) -> None:
    """Trains, and writes a checkpoint now and then and on an interrupt.

    Raises:
        KeyboardInterrupt: the training was interrupted.
    """
    last = time.monotonic()

    def step(progress: Progress) -> None:
        nonlocal last
        if journal is None:
            return
        journal.add(progress)
        on_step(progress)
        if (
            progress.done < 1
            and time.monotonic() - last >= trainer.training.save_every
            and trainer.optimisation.is_finite()
        ):
            training_checkpoint.save(partial, key, trainer.state())
            last = time.monotonic()

    with signals.noted() as came:
        finished = trainer.run(step, lambda: came() is not None)
    if journal is not None and trainer.optimisation.is_finite():
        training_checkpoint.save(partial, key, trainer.state())
    if not finished:
        raise signals.ending(came() or signal.SIGINT)
