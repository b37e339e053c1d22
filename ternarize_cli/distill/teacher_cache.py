"""Keeps the teacher's embeddings of all training texts on disk, for many epochs and many runs."""

import hashlib
from pathlib import Path

import numpy as np

from ternarize_cli.distill.batch_sampler import Piece
from ternarize_cli.distill.student_teacher import Pair
from ternarize_cli.distill.training_corpus import TrainingCorpus
from ternarize_cli.encoders.vision import vector_width
from ternarize_cli.errors import CheckpointError, quoted
from ternarize_cli.progress import Track, silent
from ternarize_cli.storage import files

__all__ = ["cached_vectors"]

_BATCH = 64


def cached_vectors(
    folder: Path, pair: Pair, corpus: TrainingCorpus, teacher_hash: str, track: Track = silent
) -> np.ndarray:
    """Gives the teacher's embeddings, float16 `[prompts, texts, dim]`, memory-mapped from a file in `folder`.

    The file is made if it is missing. Its name is a hash of the teacher, of the dtype that it computes with, and of
    the texts as token ids, so it is never used for other texts or another teacher.

    Raises:
        CheckpointError: the file is damaged.
        OutputError: the file can't be written.
    """
    name = hashlib.sha256(f"{teacher_hash} float32 {corpus.digest}".encode()).hexdigest()[:32]
    path = folder / f"teacher-{name}.npy"
    shape = (corpus.prompts, len(corpus.lengths), vector_width(pair.teacher))
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with files.atomic_file(path) as partial:
            _make(partial, shape, pair, corpus, track)
    try:
        vectors: np.ndarray = np.load(path, mmap_mode="r")
    except (ValueError, EOFError, OSError) as e:
        raise CheckpointError(f"{path} can't be read: {e}", hint=f"rm {quoted(path)}") from e
    if vectors.shape != shape or vectors.dtype != np.float16:
        raise CheckpointError(
            f"{path} holds {vectors.dtype} {vectors.shape}, not float16 {shape}", hint=f"rm {quoted(path)}"
        )
    return vectors


def _make(path: Path, shape: tuple[int, int, int], pair: Pair, corpus: TrainingCorpus, track: Track) -> None:
    made = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    lengths = corpus.lengths.clip(max=corpus.limit)
    rows = lengths.argsort(kind="stable").tolist()
    starts = [(prompt, start) for prompt in range(shape[0]) for start in range(0, len(rows), _BATCH)]
    for prompt, start in track(starts, "embedding by the teacher"):
        batch = rows[start : start + _BATCH]
        features = corpus.features([Piece((i,), 0, int(lengths[i]), prompt) for i in batch])
        made[prompt, batch] = pair.teacher_outputs(pair.put(features)).pooled.float().cpu().numpy()
    made.flush()
