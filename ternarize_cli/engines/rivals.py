"""Makes rivals of the teacher for an evaluation: the teacher in other dtypes and runtimes, or with smaller vectors.

    name                          what changes                         needs
    torch-fp32, -bf16, -fp16      the transformer's dtype              nothing
    onnx-fp32, -int8              the transformer runs in ONNX Runtime the extra `rivals`
    onnx-int2                     the same, of a packed model's codes  the extra `rivals`
    openvino-fp32, -bf16, -int8   the transformer runs in OpenVINO     the extra `rivals`
    vectors-int8, vectors-binary  the vectors' dtype                   nothing
    truncate-N                    the vectors' first N numbers         nothing; fair to Matryoshka models only

All are made when an evaluation runs. Tokenizer, prompts, pooling, Dense modules and normalisation stay the teacher's;
pooling is done in fp32. Vectors are quantised as in `sentence_transformers.util.quantize_embeddings`: int8 cuts each
dimension's range on calibration texts into 255 steps; binary keeps the signs. Both are scored as the vectors that an
index would compare: int8 as the middles of their steps, binary as ±1, whose cosine ranks as Hamming distance does.
"""

import difflib
import functools
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from ternarize_cli.encoders import checkpoint
from ternarize_cli.encoders.loading import checked_device, load_encoder
from ternarize_cli.encoders.modalities import modalities_of
from ternarize_cli.encoders.vision import vector_width
from ternarize_cli.engines import baselines, exports, onnx, openvino
from ternarize_cli.engines.baselines import Forward
from ternarize_cli.errors import InputError
from ternarize_cli.storage import weights
from ternarize_cli.storage.digests import content_hash

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["CALIBRATED", "Made", "fingerprint", "is_rival", "make", "require_rival", "rival_names"]

CALIBRATED = ("openvino-int8", "vectors-int8")
"""Rivals that need calibration texts."""
_VECTORS = ("vectors-int8", "vectors-binary")
_FAMILY = re.compile(r"(torch|onnx|openvino|vectors|truncate)-[\w.]+")
_TRUNCATE = re.compile(r"truncate-([1-9]\d*)")
_DTYPES = {"torch-fp32": torch.float32, "torch-bf16": torch.bfloat16, "torch-fp16": torch.float16}
_CALIBRATION_TEXTS = 300
_LIBRARIES = ("torch", "transformers", "sentence-transformers", "onnxruntime", "openvino", "nncf")


@dataclass(frozen=True)
class Made:
    """A rival, ready to encode.

    Attributes:
        encoder: the encoder that gives its vectors.
        weights_bytes: bytes of its weights: of its files, or if it has none, elements times bytes of their dtype.
        vector_bytes: bytes of one vector in an index.
        note: a sentence that says how it was made.
    """

    encoder: "SentenceTransformer"
    weights_bytes: int
    vector_bytes: int
    note: str


def rival_names() -> list[str]:
    """Lists the names of all rivals; `truncate-N` stands for any number N."""
    return [*baselines.baseline_names(), *_VECTORS, "truncate-N"]


def is_rival(name: str) -> bool:
    """Whether a name means a rival and not a model: it has the form of a rival's name, and is no folder."""
    return _FAMILY.fullmatch(name) is not None and not Path(name).is_dir()


def require_rival(name: str) -> None:
    """Checks that a rival can be made on this machine, before any model is loaded.

    Raises:
        InputError: there is no rival of that name.
        UnavailableError: a package that it needs is not installed.
    """
    if name in baselines.baseline_names(same_vectors=True):
        baselines.require_baseline(name)
    elif name not in _VECTORS and not _TRUNCATE.fullmatch(name):
        if "," in name:
            raise InputError(f"there is no rival {name!r}", hint="name one rival each time: --against A --against B")
        near = difflib.get_close_matches(name, rival_names(), n=3, cutoff=0.5) or rival_names()
        raise InputError(f"there is no rival {name!r}", hint="one of: " + ", ".join(near))


def fingerprint(name: str, teacher: Path, calibration: Sequence[Any] | None = None) -> str:
    """Hashes all that decides a rival's vectors to 64 hex digits: teacher's files, libraries, calibration data."""
    digest = hashlib.sha256(f"{name}\0{content_hash(teacher)}\0".encode())
    for library in _LIBRARIES:
        try:
            digest.update(f"{library} {version(library)}\0".encode())
        except PackageNotFoundError:
            continue
    if name == "onnx-int8":
        digest.update(f"{onnx.weight_bits()} bits\0".encode())
    for item in _calibration(name, calibration):
        digest.update(item.encode() + b"\0" if isinstance(item, str) else item.tobytes())
    return digest.hexdigest()


def make(
    name: str,
    teacher: Path,
    *,
    device: str | None = None,
    threads: int | None = None,
    calibration: Sequence[Any] | None = None,
    allow_pickle: bool = False,
) -> Made:
    """Makes a rival of the teacher.

    Args:
        name: name of the rival, one of `rival_names()`.
        teacher: the folder of a full-precision model.
        device: name of a torch device; None picks CUDA if there is a GPU, but the CPU for other runtimes.
        threads: number of CPU threads, also of other runtimes; None keeps torch's number.
        calibration: texts (or images) for the ranges of int8, of which the first 300 are used; only for `CALIBRATED`.
        allow_pickle: read pytorch_model.bin if there is no safetensors file.

    Raises:
        InputError: there is no such rival, calibration texts are needed and missing, the teacher is not in full
            precision, or it is no text encoder and another runtime should run it.
        UnavailableError: packages or CPU instructions that the rival needs are missing on this machine.
        TernarizeError: the teacher can't be exported.
    """
    require_rival(name)
    items = _calibration(name, calibration)
    outside = name.startswith(("onnx-", "openvino-")) or name == "torch-compiled"
    if name not in _VECTORS and not name.startswith("truncate-"):
        _require_stage(name, teacher, text_only=outside)
    device = checked_device("cpu" if device is None and outside else device)
    encoder = load_encoder(teacher, device=device, threads=threads, allow_pickle=allow_pickle)
    dimension = vector_width(encoder)
    if outside:
        size, note = _run_outside(name, teacher, encoder, device, items)
        return Made(encoder, size, 4 * dimension, note)
    if name in _DTYPES:
        _narrow(encoder, _DTYPES[name])
        return Made(encoder, _bytes_in_memory(encoder), 4 * dimension, baselines.require_baseline(name).summary)
    vector_bytes, note = _change_vectors(name, encoder, dimension, items)
    return Made(encoder, weights.bytes_on_disk(teacher, allow_pickle=allow_pickle), vector_bytes, note)


def _calibration(name: str, items: Sequence[Any] | None) -> list[Any]:
    if name not in CALIBRATED:
        return []
    if not items:
        raise InputError(f"{name} needs calibration texts for its ranges, and there are none")
    return list(items[:_CALIBRATION_TEXTS])


def _require_stage(name: str, teacher: Path, *, text_only: bool) -> None:
    if baselines.require_baseline(name).packed:
        baselines.require_packed(name, teacher)
    elif checkpoint.stage(teacher) is not None:
        raise InputError(
            f"{name} is made from a full-precision model, and {teacher} is ternary",
            hint="--against the full-precision model",
        )
    if text_only and "text" not in modalities_of(teacher):
        raise InputError(f"{name} is made from text encoders only, and {teacher} reads images", hint="torch-bf16")


# Other runtimes.


class _Outside(nn.Module):
    """Replaces the transformer of a model; the features that it ignores are constant for single texts."""

    def __init__(self, forward: Forward, config: Any) -> None:
        super().__init__()
        self.config = config
        self._run = forward

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **ignored: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self._run(input_ids, attention_mask).float())


def _run_outside(
    name: str, teacher: Path, encoder: "SentenceTransformer", device: str, items: list[str]
) -> tuple[int, str]:
    """Replaces the transformer by another runtime; returns the bytes of its weights, and how it was made."""
    transformer: Any = encoder[0]
    if transformer.modality_config["text"]["method_output_name"] != "last_hidden_state":
        raise InputError(
            f"{name} replaces a transformer that gives hidden states, and that of {teacher} gives something else",
            hint="compare with torch-* rivals instead",
        )
    entry = baselines.require_baseline(name)
    note = entry.summary
    forward: Forward
    if name == "openvino-int8":
        features = [transformer.preprocess([text]) for text in items]
        batches = [(f["input_ids"], f["attention_mask"]) for f in features]
        path = openvino.int8_model(teacher, batches)
        forward = openvino.OpenVinoForward(path)
        note = f"OpenVINO, NNCF int8, calibrated on {len(items)} texts of the task data"
    else:
        forward = entry.build(teacher, device)
        path = entry.prepare(teacher)
        if name == "onnx-int8" and onnx.weight_bits() == 7:
            note += ", of 7 bits because this CPU has no VNNI"
    size = exports.bytes_of(path.parent) if entry.make else weights.bytes_on_disk(teacher)
    if name == "openvino-bf16":
        size //= 2
        note += "; bytes computed"
    transformer.model = _Outside(forward, transformer.model.config)
    return size + _bytes_in_memory(encoder), note


# Dtypes of the transformer.


def _narrow(encoder: "SentenceTransformer", dtype: torch.dtype) -> None:
    """Runs the transformer in `dtype`; the dtypes of its inputs and outputs do not change."""
    transformer: Any = encoder[0]
    transformer.model.to(dtype)
    for method in {settings["method"] for settings in transformer.modality_config.values()}:
        setattr(transformer.model, method, _casting(getattr(transformer.model, method), dtype))


def _casting(method: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    @functools.wraps(method)
    def cast(**inputs: Any) -> Any:
        output = method(**{key: _floats_as(value, dtype) for key, value in inputs.items()})
        if isinstance(output, Tensor):
            return _floats_as(output, torch.float32)
        for key, value in output.items():
            output[key] = _floats_as(value, torch.float32)
        return output

    return cast


def _floats_as(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _bytes_in_memory(encoder: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in encoder.parameters())


# Vectors.


class _Vectors(nn.Module):
    """The last module of an encoder, which changes its vectors from [batch, dim] to [batch, dimension]."""

    def __init__(self, change: Callable[[Tensor], Tensor], dimension: int) -> None:
        super().__init__()
        self.change = change
        self.dimension = dimension

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        return features | {"sentence_embedding": self.change(features["sentence_embedding"])}

    def get_embedding_dimension(self) -> int:
        return self.dimension


def _change_vectors(name: str, encoder: "SentenceTransformer", dimension: int, items: list[Any]) -> tuple[int, str]:
    """Makes an encoder's vectors smaller; returns the bytes of a vector, and how it was made."""
    cut, encoder.truncate_dim = encoder.truncate_dim, None
    if name == "vectors-int8":
        found = torch.from_numpy(encoder.encode(items, show_progress_bar=False)).float()[:, :cut]
        start, steps = found.amin(0), (found.amax(0) - found.amin(0)) / 255
        steps = torch.where(steps == 0, 1.0, steps)

        def to_steps(vectors: Tensor) -> Tensor:
            low, step = start.to(vectors.device), steps.to(vectors.device)
            codes = ((vectors[:, :cut].float() - low) / step).floor().clamp(0, 255)
            return low + (codes + 0.5) * step

        encoder.append(_Vectors(to_steps, dimension))
        return dimension, f"int8 vectors, {dimension} bytes each; ranges from {len(items)} of the task's items"
    if name == "vectors-binary":
        encoder.append(_Vectors(lambda vectors: torch.where(vectors[:, :cut] > 0, 1.0, -1.0), dimension))
        return math.ceil(dimension / 8), f"the signs of the vectors, {math.ceil(dimension / 8)} bytes each"
    count = int(name.removeprefix("truncate-"))
    if count >= dimension:
        raise InputError(
            f"{name}: the vectors have {dimension} numbers, so that many can't be kept",
            hint=f"truncate-{max(1, dimension // 2)}",
        )
    encoder.append(_Vectors(lambda vectors: nn.functional.normalize(vectors[:, :count].float(), dim=1), count))
    return 4 * count, f"the first {count} of {dimension} numbers of each vector, {4 * count} bytes"
