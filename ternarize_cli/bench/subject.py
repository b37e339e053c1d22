"""Prepares the model under test in the two forms that a comparison needs: packed, and in full precision.

    MODEL is               packed form                    full-precision form (what the rivals run)
    a full-precision model convert and pack, in a         the model itself
                           temporary folder
    a ternary checkpoint   pack, in a temporary folder    twin of the packed form
    a packed model         the model itself               twin of the packed form
    none                   convert and pack, in a         a model with random weights (`shapes`)
                           temporary folder

A *twin* is the packed model with its codes multiplied out into fp32 matrices. It has the shapes of the original and so
takes as long, because the time of a dense forward pass does not depend on values. If the user names the teacher that
MODEL was made from, the rivals run the teacher instead. All models go through the real `convert` and `pack`, so that
bytes are those of a user's files.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ternarize_cli.bench.shapes import DEFAULT, SHAPES, ModelShape, random_model
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.options import ConvertOptions
from ternarize_cli.compress.pack import pack
from ternarize_cli.encoders import checkpoint, loading, transformers_plugin
from ternarize_cli.encoders.anatomy import backbone
from ternarize_cli.encoders.modalities import modalities_of
from ternarize_cli.encoders.module_replacement import dequantize
from ternarize_cli.engines.baselines import Rival
from ternarize_cli.engines.inputs import image_shape
from ternarize_cli.errors import CheckpointError, InputError
from ternarize_cli.model_folder.model_kind import require_kind
from ternarize_cli.progress import Track, silent
from ternarize_cli.storage import weights

__all__ = ["Subject", "find_model", "max_tokens", "prepare"]


@dataclass(frozen=True)
class Subject:
    """The folders of the model under test, and notes for the user on how they were made.

    Attributes:
        name: name of the model in a report.
        packed: folder of the packed model.
        dense: folder of the model in full precision, as safetensors.
        notes: sentences that say how the two were made.
        image: channels, height and width of the images that it reads; None if it reads texts.
    """

    name: str
    packed: Path
    dense: Path
    notes: tuple[str, ...]
    image: tuple[int, int, int] | None = None

    def folder_of(self, rival: Rival) -> Path:
        """The folder of the model that a rival runs."""
        return self.packed if rival.packed else self.dense


@contextmanager
def prepare(
    model: str | None,
    *,
    seed: int = 0,
    allow_pickle: bool = False,
    shape: ModelShape = SHAPES[DEFAULT],
    teacher: str | None = None,
    check: Callable[[Path], None] = lambda folder: None,
    say: Callable[[str], None] = lambda text: None,
    track: Track = silent,
) -> Iterator[Subject]:
    """Yields the subject; the temporary folders are removed afterwards.

    Args:
        model: MODEL as users type it; None makes a model with random weights.
        seed: seed of the random weights.
        allow_pickle: read a MODEL that has only pickled weights.
        shape: shape of the random model.
        teacher: MODEL of the teacher, which the rivals run; None runs MODEL itself or its twin.
        check: called with the model's folder before any work; its errors are passed on.
        say: called with each note, before the work that the note is about.
        track: reports progress of converting and packing.

    Raises:
        InputError: MODEL can't be found or read, is no encoder of texts or images, or was not made from `teacher`.
    """
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        say(text)

    transformers_plugin.quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="ternarize-bench-") as name:
        work = Path(name)
        if model is None:
            note(f"no MODEL was given: measuring a {_told(shape)}")
            title, source = f"random {_told(shape).split()[0]}", random_model(work / "random", shape, seed)
        else:
            title, source = loading.model_name(model), find_model(model, teacher, allow_pickle=allow_pickle)
        original = None if teacher is None else loading.resolve(teacher, allow_pickle=allow_pickle)
        check(source)
        stage, packed, dense = checkpoint.stage(source), source, source
        if stage is None:
            if model is not None:
                note("the model is converted and packed for this run, without training: latency is all it shows")
            options = ConvertOptions(allow_pickle=allow_pickle, seed=seed, check=False)
            convert(source, work / "ternary", options=options, track=track)
            packed = _pack(work / "ternary", work / "packed", track)
            shutil.rmtree(work / "ternary")
        elif stage == "latent":
            note("the ternary checkpoint is packed for this run")
            packed = _pack(source, work / "packed", track)
        if original is not None:
            note(f"the rivals run {teacher}")
            dense = original
        elif stage is not None or not _has_safetensors(source):
            note("the rivals run the packed weights multiplied out to full width: same shapes, same work")
            dense = _write_twin(packed, work / "twin")
        yield Subject(title, packed, dense, tuple(notes), image_shape(source))


def find_model(model: str, teacher: str | None = None, *, allow_pickle: bool = False) -> Path:
    """Finds the folder of MODEL, and checks that it can be measured, alone or against rivals that run `teacher`.

    Raises:
        InputError: MODEL or the teacher can't be found or read, MODEL is no encoder of texts or images, or it was not
            made from `teacher`.
    """
    source = loading.resolve(model, allow_pickle=allow_pickle)
    require_kind(source, "encoder")
    _require_encoder(source)
    if teacher is not None:
        _require_same_shape(loading.resolve(teacher, allow_pickle=allow_pickle), source, loading.model_name(model))
    return source


def max_tokens(config: dict[str, Any]) -> int | None:
    """The most tokens of a text that a model reads; None if its config sets no limit.

    RoBERTa and its relatives count positions from the padding id + 1 on, so their first positions are never used.
    """
    positions = config.get("max_position_embeddings")
    if positions is not None and config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        return int(positions - config.get("pad_token_id", 1) - 1)
    return positions


def _told(shape: ModelShape) -> str:
    kind = shape.kind or shape.model_type
    return f"{kind} with random weights" + (f", in the shape of {shape.like}" if shape.like else f" ({shape.config})")


def _require_encoder(folder: Path) -> None:
    """Checks that a model reads token ids alone, or pixels alone."""
    reads = modalities_of(folder)
    if len(reads) > 1:
        raise InputError(
            f"{folder} reads texts and images, and bench measures encoders of one of them",
            hint="name a text or an image encoder, or no MODEL for a random BERT-base",
        )
    if reads == {"text"} and "vocab_size" not in checkpoint.read_config(folder):
        raise InputError(
            f"{folder} is no text encoder: its config.json has no vocab_size, and bench feeds token ids",
            hint="name a BERT-type model, or no MODEL for a random BERT-base",
        )


def _require_same_shape(teacher: Path, source: Path, model: str) -> None:
    """Refuses a teacher that MODEL can't have been made from."""
    if stage := checkpoint.stage(teacher):
        raise InputError(
            f"--teacher {teacher} is ternary ({stage}), and the rivals run a full-precision model",
            hint="name the full-precision model that MODEL was made from",
        )
    ours, others = checkpoint.read_config(source), checkpoint.read_config(teacher)
    for key in ("model_type", "hidden_size", "num_hidden_layers", "intermediate_size"):
        if ours.get(key) != others.get(key):
            raise InputError(
                f"{model} was not made from {teacher}: {key} is {ours.get(key)} and {others.get(key)}",
                hint="--teacher is the model that MODEL was made from",
            )


def _pack(ternary: Path, output: Path, track: Track) -> Path:
    pack(ternary, output, check=False, track=track)
    return output


def _has_safetensors(folder: Path) -> bool:
    try:
        weights.weight_files(folder)
    except CheckpointError:  # the weights are pickles that the user allows, and convert has read them
        return False
    return True


def _write_twin(packed: Path, folder: Path) -> Path:
    encoder = loading.load_encoder(packed, backend="reference", device="cpu")
    state = dequantize(backbone(encoder)).state_dict()
    folder.mkdir()
    checkpoint.copy_companions(packed, folder)
    wide = {name: (t.float() if t.is_floating_point() else t).clone() for name, t in state.items()}
    weights.ShardWriter(folder).write("model.safetensors", wide)
    config = checkpoint.read_config(packed) | {"dtype": "float32"}
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
