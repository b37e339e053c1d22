"""Shows where a student loses information against its teacher, layer by layer and in the embedding space.

The hidden states of every layer are compared by linear CKA, which depends on geometry only, and by the mean cosine,
which also depends on direction; attention is compared by its divergence (`inside` runs the models, `similarity` has the
definitions). A layer whose row is much worse than the one before is the one to improve: keep it in full precision, or
give it more calibration or smaller groups.

The other numbers describe the embeddings: how they fill the space, which neighbours they have, and the inputs that
moved most, in full, since what these have in common (numbers, names, negations, one class of images) says more than an
average.
"""

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from ternarize_cli.data.images import Images
from ternarize_cli.distill.student_teacher import Pair
from ternarize_cli.encoders.loading import load_encoder, resolve
from ternarize_cli.errors import InputError
from ternarize_cli.evaluation.inside import Inside, LayerAgreement
from ternarize_cli.evaluation.labels import Clusters, Labels
from ternarize_cli.evaluation.neighbours import LabelledImages
from ternarize_cli.evaluation.reading import TaskData
from ternarize_cli.evaluation.retrieval import Retrieval
from ternarize_cli.evaluation.scored_pairs import Bitext, LabelledPairs, Pairs
from ternarize_cli.evaluation.zero_shot import ZeroShot
from ternarize_cli.measuring.similarity import first_component, mean_cosine, neighbour_overlap, paired_cosines
from ternarize_cli.progress import Track, silent
from ternarize_cli.storage.bounds import utf8_name

__all__ = ["NEIGHBOURS", "Diagnosis", "Moved", "Space", "diagnose", "inputs_of"]

NEIGHBOURS = 10
"""Number of nearest neighbours of an input that are compared."""
_MOVED = 10
_OF_IMAGES = (LabelledImages, ZeroShot)


@dataclass(frozen=True)
class Space:
    """How a model's vectors fill the space.

    Attributes:
        mean_cosine: mean cosine between different inputs; near 1, all vectors are in a narrow cone.
        first_component: share of the variance along the first principal component; None without variance.
        norm: mean length of the vectors, before they are normalised.
    """

    mean_cosine: float
    first_component: float | None
    norm: float


@dataclass(frozen=True)
class Moved:
    """An input, a text or an image's name, and the cosine between the two models' vectors of this input."""

    input: str
    cosine: float


@dataclass(frozen=True)
class Diagnosis:
    """The differences between a student and its teacher.

    Attributes:
        inputs, tokens: number of inputs and of tokens that were compared.
        layers: the comparison of each layer, in order; empty for models without hidden states.
        teacher, student: how their vectors fill the space.
        cosine: mean cosine between the two models' vectors of an input.
        neighbours: number of nearest neighbours of an input that are compared.
        overlap: mean share of these neighbours that both models have.
        moved: the inputs with the lowest cosine, lowest first.
    """

    inputs: int
    tokens: int
    layers: tuple[LayerAgreement, ...]
    teacher: Space
    student: Space
    cosine: float
    neighbours: int
    overlap: float
    moved: tuple[Moved, ...]

    def to_dict(self) -> dict[str, Any]:
        """Converts to plain lists and numbers for JSON."""
        return asdict(self)


def inputs_of(tasks: Sequence[TaskData], *, seed: int = 0, most: int = 500) -> list[str] | Images:
    """Draws inputs for a diagnosis: different texts of the tasks, or their test images if they have no texts.

    Args:
        tasks: the tasks, each of which gives equally many inputs, as long as it has some left.
        seed: seed of the draw.
        most: the most inputs to draw.
    """
    sources = {
        (type(task), task.path): task for task in reversed(tasks)
    }  # a task and its perturbed versions count once
    tasks = [*sources.values()][::-1]
    pools = [sorted(set(_texts(task))) for task in tasks]
    pictures = [t.images if isinstance(t, ZeroShot) else t.queries for t in tasks if isinstance(t, _OF_IMAGES)]
    if pictures and not any(pools):
        return _joined([images.sample(-(-most // len(pictures)), seed) for images in pictures])[:most]
    for pool in pools:
        random.Random(seed).shuffle(pool)
    turns = (text for text in chain.from_iterable(zip_longest(*pools)) if text is not None)
    return list(dict.fromkeys(turns))[:most]


def _texts(task: TaskData) -> list[str]:
    if isinstance(task, Retrieval):
        return [*task.queries.values(), *(f"{row['title']} {row['text']}".strip() for row in task.corpus)]
    if isinstance(task, Labels | Clusters):
        return task.texts
    return [*task.first, *task.second] if isinstance(task, Pairs | LabelledPairs | Bitext) else []


def _joined(parts: Sequence[Images]) -> Images:
    ends = list(accumulate(len(images) for images in parts))

    def decode(row: int) -> Any:
        part = bisect_right(ends, row)
        return parts[part][row - ends[part]]  # negative, counted from the end of the part

    names = [
        f"{utf8_name(images.path.name)}/{name}" if len(parts) > 1 else name for images in parts for name in images.ids
    ]
    return Images(parts[0].path, names, None, decode, range(ends[-1]))


def diagnose(
    student: str | Path,
    teacher: str | Path,
    inputs: Sequence[str] | Images,
    *,
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    batch_size: int = 32,
    allow_pickle: bool = False,
    track: Track = silent,
) -> Diagnosis:
    """Compares a student with its teacher on some inputs.

    Args:
        student, teacher: folders, hub ids or `package:NAME`; full-precision, ternary or packed.
        inputs: texts or images, two or more; a few hundred are enough.
        backend: name of the kernels for the student's packed linears.
        device: name of a torch device; None picks CUDA if there is a GPU, else the CPU.
        threads: number of CPU threads; None leaves it as it is.
        batch_size: the most inputs at once.
        allow_pickle: read pytorch_model.bin if there is no safetensors file.
        track: reports progress over batches.

    Raises:
        ModelNotFoundError: there is no such model.
        CheckpointError: a model's file is missing or damaged, the two models differ in layers or dimensions, or a
            vector is not finite.
        UnavailableError: the backend or the device can't run on this machine.
        InputError: there are fewer than two inputs.
    """
    if len(inputs) < 2:
        raise InputError(
            f"a diagnosis compares inputs with each other, and there is {len(inputs) or 'none'}",
            hint="name files of tasks with --sts, --retrieval, --classification, --images or --task-file",
        )
    mine, theirs = (resolve(model, allow_pickle=allow_pickle) for model in (student, teacher))
    common: dict[str, Any] = {"device": device, "threads": threads, "allow_pickle": allow_pickle}
    pair = Pair(load_encoder(mine, backend=backend, **common), load_encoder(theirs, **common))
    inside = Inside(pair)
    order = list(range(len(inputs)))
    if not isinstance(inputs, Images):
        order.sort(key=lambda i: -len(inputs[i]))  # texts of similar length share a batch
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for rows in track(batches, f"{mine.name} layer by layer"):
        inside.take([inputs[i] for i in rows])
    (a, b), norms = (vectors[np.argsort(order)] for vectors in inside.vectors()), inside.norms
    cosines = paired_cosines(a, b)
    names = inputs.ids if isinstance(inputs, Images) else inputs
    neighbours = min(NEIGHBOURS, len(inputs) - 1)
    return Diagnosis(
        inputs=len(inputs),
        tokens=inside.tokens,
        layers=inside.layers(),
        teacher=Space(mean_cosine(b), first_component(b), norms[1]),
        student=Space(mean_cosine(a), first_component(a), norms[0]),
        cosine=float(cosines.mean()),
        neighbours=neighbours,
        overlap=neighbour_overlap(a, b, neighbours),
        moved=tuple(Moved(names[i], float(cosines[i])) for i in np.argsort(cosines, kind="stable")[:_MOVED]),
    )
