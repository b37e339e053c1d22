"""Compares the hidden states and the attention of teacher and student, while both encode the same batches.

Hidden states of real tokens are compared after every layer and before the first; `similarity` has the definitions. Only
transformers' "eager" attention returns its probabilities, so both models run with it here. Texts get the model's
default prompt, as in `encode`, and are cut to 512 tokens, because the attention of longer texts does not fit in memory.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers.base.modules import Normalize
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ternarize_cli.distill.student_teacher import Pair, blocks_of
from ternarize_cli.encoders.anatomy import backbone
from ternarize_cli.errors import CheckpointError, counted
from ternarize_cli.measuring.similarity import LinearCKA, Mean, attention_divergence
from ternarize_cli.vectors.text_batches import FILLER

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Inside", "LayerAgreement"]

_TOKENS = 512
_SQUARE = 1 << 19
"""The most attention probabilities per head and layer at once: 300 MB for 12 layers of 12 heads."""
_ROUNDED = 0.05
"""The largest difference from 1 of a sum of probabilities in half precision."""


@dataclass(frozen=True)
class LayerAgreement:
    """The comparison of student and teacher after a layer.

    Attributes:
        name: "embeddings" (the input of layer 1), "1", "2", …, or "output" (after a last norm).
        cka: linear CKA of the hidden states; None if they don't vary.
        cosine: mean cosine of the hidden states over tokens.
        attention_kl: mean KL divergence of the attention over tokens and heads, in nats; None if the model returns no
            attention.
    """

    name: str
    cka: float | None
    cosine: float | None
    attention_kl: float | None


class _Watch:
    """The inner values of an encoder while it runs.

    Attributes:
        entered: the input of its first block, `[batch, tokens, dim]`.
        blocks: number of blocks that ran.
        attentions: for each block, `[batch, heads, queries, keys]`, if the architecture returns them.
        unscaled: the vectors before they are normalised, `[batch, dim]`.
    """

    def __init__(self, encoder: "SentenceTransformer") -> None:
        self.clear()
        model = backbone(encoder)
        model.set_attn_implementation("eager")
        for module in model.modules():
            # Some architectures return attentions only with this setting; those of timm raise an error with it.
            if isinstance(module, PreTrainedModel) and not module.config.model_type.startswith("timm"):
                with suppress(ValueError):  # an architecture whose attention can't be set
                    module.config.output_attentions = True
        for block in blocks_of(model):
            block.register_forward_pre_hook(self._enter, with_kwargs=True)
            for module in block.modules():
                module.register_forward_hook(self._look)
        if isinstance(encoder[-1], Normalize):
            encoder[-1].register_forward_pre_hook(self._normalise)

    def clear(self) -> None:
        """Forgets the last batch."""
        self.entered: Tensor | None = None
        self.blocks = 0
        self.attentions: dict[int, Tensor] = {}
        self.unscaled: Tensor | None = None

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        value = args[0] if args else kwargs.get("hidden_states")
        if isinstance(value, Tensor) and value.dim() == 3:
            self.entered = value if self.blocks == 0 else self.entered
            self.blocks += 1

    def _look(self, module: nn.Module, args: Any, output: Any) -> None:
        for value in output if isinstance(output, tuple) else ():
            if self.blocks and _is_attention(value):
                self.attentions.setdefault(self.blocks - 1, value)

    def _normalise(self, module: nn.Module, args: Any) -> None:
        self.unscaled = args[0]["sentence_embedding"]


class _Row:
    """The running sums of one layer."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.cka, self.cosine, self.attention = LinearCKA(), Mean(), Mean()

    def add_states(self, student: Tensor, teacher: Tensor, mask: Tensor) -> None:
        """Adds hidden states of both models, `[batch, tokens, dim]` each."""
        x, y = ((h[mask.bool()] if mask.shape == h.shape[:2] else h.flatten(0, 1)).float() for h in (student, teacher))
        self.cka.add(x, y)
        if x.shape == y.shape:
            defined = (x != 0).any(dim=-1) | (y != 0).any(dim=-1)
            self.cosine.add(float(F.cosine_similarity(x, y, dim=-1)[defined].double().sum()), int(defined.sum()))

    def add_attention(self, student: Tensor, teacher: Tensor, mask: Tensor) -> None:
        """Adds attention probabilities of both models, `[batch, heads, queries, keys]` each."""
        if student.shape == teacher.shape:
            known = mask.shape == (len(student), student.shape[2])
            self.attention.add(*attention_divergence(teacher, student, mask if known else None))

    def done(self) -> LayerAgreement:
        """Computes the means over all that was added."""
        return LayerAgreement(self.name, self.cka.value, self.cosine.value, self.attention.value)


class Inside:
    """Sums over all inputs that student and teacher have read.

    Attributes:
        tokens: number of real tokens.
    """

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._encoders = pair.student, pair.teacher
        self._watches = _Watch(pair.student), _Watch(pair.teacher)
        for encoder in self._encoders:
            if isinstance(encoder.max_seq_length, int):
                encoder.max_seq_length = min(encoder.max_seq_length, _TOKENS)
        words = [e.tokenizer.get_vocab() if hasattr(e.tokenizer, "get_vocab") else {} for e in self._encoders]
        self._trimmed = words[0] != words[1]
        self._rows: list[_Row] = []
        self.tokens = 0
        self._image_tokens: int | None = None
        self._vectors: tuple[list[Tensor], list[Tensor]] = [], []
        self._norms = Mean(), Mean()

    def layers(self) -> tuple[LayerAgreement, ...]:
        """The layers compared, in order."""
        return tuple(row.done() for row in self._rows)

    def vectors(self) -> list[np.ndarray]:
        """The vectors of the student and of the teacher, float32 `[inputs, dim]` each.

        Raises:
            CheckpointError: a vector is not finite.
        """
        found = [torch.cat(parts).numpy() for parts in self._vectors]
        for who, rows in zip(("student", "teacher"), found, strict=True):
            if not np.isfinite(rows).all():
                raise CheckpointError(
                    f"the {who} gives vectors that are not finite (NaN or infinite)",
                    hint="check the model with ternarize inspect; its training may have diverged",
                )
        return found

    @property
    def norms(self) -> list[float]:
        """The mean length of the student's and the teacher's vectors, before they are normalised."""
        return [mean.value or 0.0 for mean in self._norms]

    @torch.no_grad()
    def take(self, batch: Sequence[Any]) -> None:
        """Runs inputs through both models, fewer at a time if they have many tokens.

        Raises:
            CheckpointError: the models differ in layers.
        """
        features = self._features(self._pair.student, batch)
        step = max(1, _SQUARE // self._width(features) ** 2)
        for start in range(0, len(batch), step):
            part = _part(features, len(batch), slice(start, start + step))
            self._take_part(part, batch[start : start + step])

    def _features(self, encoder: "SentenceTransformer", batch: Sequence[Any]) -> dict[str, Any]:
        prompt = encoder.prompts.get(encoder.default_prompt_name) if encoder.default_prompt_name else None
        features = encoder.preprocess(list(batch), prompt=prompt)
        if "input_ids" in features and not features["input_ids"].shape[1]:  # texts without a token
            features = _part(encoder.preprocess([*batch, FILLER], prompt=prompt), len(batch) + 1, slice(len(batch)))
        return self._pair.put(features)

    def _width(self, features: dict[str, Any]) -> int:
        """Number of tokens of an input, with padding."""
        if "input_ids" in features:
            return int(features["input_ids"].shape[1])
        if self._image_tokens is None:
            size = max(len(value) for value in features.values() if isinstance(value, Tensor))
            self._image_tokens = self._pair.teacher_outputs(_part(features, size, slice(1))).mask.shape[1]
        return self._image_tokens

    def _take_part(self, features: dict[str, Any], batch: Sequence[Any]) -> None:
        for watch in self._watches:
            watch.clear()
        outputs = self._pair.student_outputs(features), self._pair.teacher_outputs(features)
        states = [
            [*([] if watch.entered is None else [watch.entered]), *out.hidden]
            for watch, out in zip(self._watches, outputs, strict=True)
        ]
        if len(states[0]) != len(states[1]):
            raise CheckpointError(
                f"the student shows {counted(len(states[0]), 'layer')} of hidden states, the teacher {len(states[1])}",
                hint="the teacher is the full-precision model that the student was converted from",
            )
        first, blocks = self._watches[0].entered is not None, self._watches[0].blocks
        if not self._rows:
            numbers = [str(i + 1) if i < blocks else "output" for i in range(len(outputs[0].hidden))]
            self._rows = [_Row(name) for name in (*(["embeddings"] if first else []), *numbers)]
        mask = outputs[1].mask
        for row, x, y in zip(self._rows, *states, strict=True):
            row.add_states(x, y, mask)
        attentions = [watch.attentions for watch in self._watches]
        for i in attentions[0].keys() & attentions[1].keys():
            self._rows[first + i].add_attention(attentions[0][i], attentions[1][i], mask)
        self.tokens += int(mask.sum())
        pooled = [out.pooled for out in outputs]
        if self._trimmed:  # the teacher has token ids of its own
            self._watches[1].clear()
            pooled[1] = self._pair.teacher(self._features(self._pair.teacher, batch))["sentence_embedding"]
        for vectors, norms, watch, new in zip(self._vectors, self._norms, self._watches, pooled, strict=True):
            vectors.append(new.float().cpu())
            unscaled = new if watch.unscaled is None else watch.unscaled
            norms.add(float(unscaled.float().norm(dim=1).sum()), len(new))


def _is_attention(value: object) -> bool:
    """Whether a value holds probabilities over keys; some modules return a bias of that shape too."""
    if not isinstance(value, Tensor) or value.dim() != 4 or not value.is_floating_point():
        return False
    return bool((value >= 0).all()) and bool(((value.float().sum(dim=-1) - 1).abs() < _ROUNDED).all())


def _part(features: dict[str, Any], size: int, rows: slice) -> dict[str, Any]:
    """Selects some rows of the features of `size` inputs."""
    return {
        name: value[rows] if isinstance(value, Tensor) and value.dim() and len(value) == size else value
        for name, value in features.items()
    }
