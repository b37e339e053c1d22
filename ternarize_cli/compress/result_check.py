"""Opens what `convert` and `pack` have made before it gets its name, and compares a few vectors with the source's.

    Reference.of(source)          before anything is written: opens the source as a user would, and encodes three short
                                  texts and two small images, as far as the model reads them
    reference.check(made, …)      opens the new folder in the same way, encodes them again, and compares

A ternary model gives other vectors than its source, and no bound on the difference tells a wrong pooling from a model
that rounds badly. But a ternary checkpoint holds the source's own weights beside the scales. Computed with these
weights (`with_latent_weights`), it must give the source's vectors at any number of levels; then its own vectors need
only be finite and as wide. A packed model computes what its checkpoint computes, so the two must agree.

The cost is that of opening two models one after the other, and of a few short inputs on the CPU.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from ternarize_cli.errors import CheckpointError, TernarizeError, reason
from ternarize_cli.layers import SimulatedEmbedding, TernaryLinear
from ternarize_cli.model_folder.integrity import note_once

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Reference", "vectors_of", "with_latent_weights"]

_TEXTS = ("the cat sat by the door", "a small model of two long rivers, and of the sea", "42")
_LATENT = 0.03
"""The largest distance between the source's vectors and those of its checkpoint computed with the source's weights."""
_PACKED = 0.3
"""The largest distance between a checkpoint's vectors and those of its packed model: kernels round in other orders."""
_REPEATED = 0.01
"""The largest distance between two vectors of one input. All distances are in lengths of the vector that is wanted."""
_REPORT = "please report it with the model's name; --no-check writes the result all the same"


@dataclass(frozen=True)
class Reference:
    """The vectors that a model gives for the samples, with which those of a model made from it are compared.

    Attributes:
        source: the model's folder.
        vectors: "text" or "image" → float32 `[samples, dim]`, of what the model reads; empty for a folder without
            tokenizer and image processor, which only transformers opens.
        texts: the texts that were encoded.
    """

    source: Path
    vectors: dict[str, np.ndarray]
    texts: Sequence[str] = _TEXTS

    @classmethod
    def of(cls, source: Path, texts: Sequence[str] = _TEXTS, *, allow_pickle: bool = False) -> "Reference":
        """Opens a model and encodes the samples, twice.

        Args:
            source: the folder of a model of any stage.
            texts: the texts to compare.
            allow_pickle: read pytorch_model.bin if there is no safetensors file.

        Raises:
            CheckpointError: the model can't be opened, does not encode the samples, or gives a vector that is not
                finite or that differs from one time to the next.
        """
        from ternarize_cli.encoders.heads import load_with_head
        from ternarize_cli.encoders.loading import can_encode

        if not can_encode(source):
            return cls(source, {})
        encoder = load_with_head(source, device="cpu", allow_pickle=allow_pickle)
        encoder.float()
        found = vectors_of(encoder, source, texts)
        for kind, again in vectors_of(encoder, source, texts).items():
            if _distance(again, found[kind]) > _REPEATED:
                raise CheckpointError(
                    f"{source} gives another vector for the same {kind} each time: its forward pass draws random "
                    "numbers",
                    hint="use a model that computes one vector for one input"
                    + (" (mask_ratio 0 in config.json)" if hasattr(encoder[0].config, "mask_ratio") else ""),
                )
        return cls(source, found, texts)

    @property
    def notes(self) -> list[str]:
        """A sentence for the user if there is nothing to compare; otherwise none."""
        if self.vectors:
            return []
        return [
            f"{self.source} has neither tokenizer nor image processor, so only transformers' AutoModel can open the "
            "result, and no vectors were compared"
        ]

    def check(self, made: Path, *, latent: bool = False, packed: bool = False) -> None:
        """Opens the folder that was made of the source, and compares the vectors of the samples.

        A folder whose path is not UTF-8 is passed over with a note, because safetensors can't open it.

        Args:
            made: the new folder.
            latent: whether the folder is a checkpoint that holds the source's weights unchanged.
            packed: whether the folder is the packed model of the source, a checkpoint.

        Raises:
            TernarizeError: the folder can't be opened, or its vectors are not finite, of another width than the
                source's, or not close to them.
        """
        from ternarize_cli.encoders.heads import load_with_head

        if not self.vectors:
            return
        if not _is_utf8(made):
            note_once(
                "the result was not opened and compared with its source: safetensors opens no file whose path is not "
                "UTF-8; under another name of the output the check is made"
            )
            return
        try:
            encoder = load_with_head(made, device="cpu")
            found = vectors_of(encoder, made, self.texts)
        except TernarizeError as e:
            raise TernarizeError(f"what was made of {self.source} can't be opened: {e}", hint=_REPORT) from e
        self._compare(found, _PACKED if packed else np.inf, "its vectors")
        if latent:
            with with_latent_weights(encoder):
                self._compare(vectors_of(encoder, made, self.texts), _LATENT, "with the source's weights its vectors")

    def _compare(self, found: dict[str, np.ndarray], most: float, what: str) -> None:
        for kind, wanted in self.vectors.items():
            given = found.get(kind)
            if given is None or given.shape != wanted.shape:
                shape = "none" if given is None else given.shape[1]
                raise TernarizeError(
                    f"what was made of {self.source} is wrong: its vectors of {kind}s have {shape} dimensions, and "
                    f"the source's {wanted.shape[1]}",
                    hint=_REPORT,
                )
            if (distance := _distance(given, wanted)) > most:
                raise TernarizeError(
                    f"what was made of {self.source} is wrong: {what} of {kind}s are away from the source's by "
                    f"{distance:.1%} of their length",
                    hint=_REPORT,
                )


def vectors_of(
    encoder: Any, folder: Path, texts: Sequence[str] = _TEXTS, images: "Sequence[Image] | None" = None
) -> dict[str, np.ndarray]:
    """Encodes the samples that the model reads: texts, images, or both.

    Args:
        encoder: the model, as `heads.load_with_head` returns it.
        folder: the model's folder.
        texts: the texts among the samples.
        images: the images among the samples; None: two of noise.

    Returns:
        "text" or "image" → float32 `[samples, dim]`; the logits of a cross-encoder in one row, `[1, numbers]`.

    Raises:
        CheckpointError: the model does not encode a sample, or gives a vector that is not finite.
    """
    from ternarize_cli.encoders.heads import outputs
    from ternarize_cli.model_folder.model_kind import kind_of

    found = {}
    scores = kind_of(folder) == "cross-encoder"
    read: dict[str, list[Any]] = {"text": list(texts), "image": _images() if images is None else list(images)}
    modalities = getattr(encoder[0], "modalities", ["text"])
    for kind, inputs in ((kind, read[kind]) for kind in read if kind in modalities):
        try:
            if kind == "text":
                vectors = outputs(encoder, folder, inputs)
            else:
                vectors = np.asarray(encoder.encode(inputs, show_progress_bar=False), dtype=np.float32)
        except (TernarizeError, MemoryError):
            raise
        except Exception as e:  # a processor that is not the model's can end in any error
            raise CheckpointError(
                f"{folder} does not encode a short {kind}: {type(e).__name__}: {reason(e)}",
                hint="its tokenizer or processor may be that of another model: fetch the whole model again",
            ) from e
        vectors = vectors.reshape(1, -1) if scores else vectors
        if vectors.ndim != 2 or not np.isfinite(vectors).all():
            what = "a vector that is not finite" if vectors.ndim == 2 else f"values of shape {vectors.shape}"
            raise CheckpointError(f"{folder} gives {what} for a short {kind}", hint="fetch or make the model again")
        found[kind] = vectors
    if not found:
        raise CheckpointError(f"{folder} reads neither texts nor images", hint="ternarize converts encoders of these")
    return found


@contextmanager
def with_latent_weights(model: nn.Module) -> Iterator[None]:
    """Lets the ternary linears and rounded tables of a checkpoint compute with their unrounded weights for a while."""
    changed = [module for module in model.modules() if isinstance(module, TernaryLinear | SimulatedEmbedding)]
    for module in changed:
        if isinstance(module, TernaryLinear):
            module.forward = partial(_dense, module)  # type: ignore[method-assign]
        else:
            module.forward = partial(nn.Embedding.forward, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in changed:
            del module.__dict__["forward"]


def _dense(layer: TernaryLinear, x: Any) -> Any:
    return nn.functional.linear(x, layer.matrix.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))


def _is_utf8(path: Path) -> bool:
    """Whether the library of safetensors can open files at a path."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _images() -> "list[Image]":
    from PIL import Image

    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)) for size in ((40, 56, 3), (33, 32, 3))]


def _distance(given: np.ndarray, wanted: np.ndarray) -> float:
    lengths = np.linalg.norm(wanted, axis=1)
    return float((np.linalg.norm(given - wanted, axis=1) / np.where(lengths > 0, lengths, 1)).max())
