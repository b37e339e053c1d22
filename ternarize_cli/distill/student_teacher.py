"""Runs student and teacher on one batch of features, and collects the outputs that the losses compare."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from ternarize_cli.distill.fast_forward import make_fast
from ternarize_cli.distill.losses import Outputs, loss_parts
from ternarize_cli.distill.pixels import finished
from ternarize_cli.distill.recordable import make_recordable
from ternarize_cli.encoders.anatomy import backbone
from ternarize_cli.encoders.vision import vector_width
from ternarize_cli.errors import CheckpointError, counted
from ternarize_cli.layers import PackedLinear, SimulatedEmbedding, TernaryLinear
from ternarize_cli.tokenizers.tokenization import teacher_ids

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["TAUGHT", "Pair", "blocks_of"]

_LINEARS = (nn.Linear, Conv1D, PackedLinear)
TAUGHT = "teacher_embedding"  # key of the features under which the teacher's embeddings are, if they are known


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Lists the blocks of a transformer, in order: the members of its outermost lists of modules with linears."""
    found: list[nn.Module] = []

    def search(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, nn.ModuleList):
                members = [m for m in child if any(isinstance(n, _LINEARS) for n in m.modules())]
                inner = [m for m in members if any(isinstance(n, nn.ModuleList) for n in m.modules())]
                if inner:  # the list holds stages of blocks, as in Swin
                    for member in members:
                        search(member)
                else:
                    found.extend(members)
            else:
                search(child)

    search(model)
    return found


class _Watched:
    """An encoder that keeps the outputs of its blocks when it runs."""

    def __init__(self, encoder: "SentenceTransformer") -> None:
        self.encoder = encoder
        self.seen: list[Tensor] = []
        for block in blocks_of(backbone(encoder)):
            block.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        value = output[0] if isinstance(output, tuple) else output
        if isinstance(value, Tensor) and value.dim() == 3:
            self.seen.append(value)

    def __call__(self, features: Mapping[str, Any]) -> Outputs:
        self.seen = []
        out = self.encoder(dict(features))
        pooled = out["scores"] if "scores" in out else out["sentence_embedding"]
        hidden, self.seen = self.seen, []
        last = out.get("token_embeddings")
        if isinstance(last, Tensor) and last.dim() == 3 and not (hidden and _known(hidden[-1], last)):
            hidden.append(last)
        mask = features.get("attention_mask")
        if not hidden:
            return Outputs((), pooled, torch.ones(len(pooled), 1, device=pooled.device))
        if mask is None or mask.shape != hidden[-1].shape[:2]:
            mask = torch.ones(hidden[-1].shape[:2], device=pooled.device)
        return Outputs(tuple(hidden), pooled, mask)


def _recomputed(run: Any, *inputs: Any, **given: Any) -> Any:
    """Runs a block of which only the inputs are kept, without what the block's linears made of these."""
    made = checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False, **given)
    for value in inputs:
        if hasattr(value, "rounded"):
            del value.rounded
    return made


def _known(a: Tensor, b: Tensor) -> bool:
    """Whether `b` is the hidden states `a`, or is no hidden states at all but logits over a vocabulary."""
    return a is b or a.shape[-1] != b.shape[-1] or (a.shape == b.shape and a.data_ptr() == b.data_ptr())


def _width(model: Any) -> int:
    """The number of dimensions of a model's vectors, or of the labels of a cross-encoder."""
    if hasattr(model, "predict"):
        return int(model.num_labels)
    head = backbone(model).get_output_embeddings() if getattr(model[0], "transformer_task", "") == "fill-mask" else None
    return int(head.out_features) if head is not None else vector_width(model)


class Pair:
    """A ternary student and its full-precision teacher on one device.

    Attributes:
        student, teacher: the encoders, or cross-encoders, or sparse encoders.
        width: number of dimensions of their vectors, or of labels.
        scores: whether they are cross-encoders, whose logits are compared.
    """

    def __init__(self, student: "SentenceTransformer", teacher: "SentenceTransformer", *, tables: bool = False) -> None:
        """Pairs two encoders; `tables` says whether the student's embedding tables are trained too."""
        self.student, self.teacher = student, teacher
        for encoder in (student, teacher):
            make_recordable(encoder)
        self._watched = _Watched(student), _Watched(teacher)
        self.scores = hasattr(student, "predict")
        widths = [_width(encoder) for encoder in (student, teacher)]
        self.width = widths[0]
        blocks = [len(blocks_of(backbone(encoder))) for encoder in (student, teacher)]
        if widths[0] != widths[1] or blocks[0] != blocks[1]:
            raise CheckpointError(
                f"the student has {counted(blocks[0], 'layer')} and gives vectors of {counted(widths[0], 'number')}, "
                f"the teacher {blocks[1]} and {widths[1]}",
                hint="the teacher is the full-precision model that the student was converted from",
            )
        self._ids: Tensor | None = None
        if hasattr(student.tokenizer, "get_vocab"):
            self._ids = teacher_ids(student.tokenizer, teacher.tokenizer).to(student.device)
        teacher.requires_grad_(False).eval()
        student.requires_grad_(True)
        for module in student.modules():
            if isinstance(module, nn.Embedding):
                module.requires_grad_(tables)
        for encoder in (student, teacher):
            make_fast(encoder)

    def freeze_idle(self, features: Mapping[str, Any], parts: Mapping[str, float]) -> None:
        """Freezes parameters that get no gradient from the loss, such as those of an unused pooler."""
        with self.training():
            losses = loss_parts(parts, self.student_outputs(features), self.teacher_outputs(features))
            torch.stack(list(losses.values())).sum().backward()
        for parameter in self.student.parameters():
            if parameter.grad is None:
                parameter.requires_grad_(False)
            parameter.grad = None

    @contextmanager
    def training(self) -> Iterator[None]:
        """Puts the ternary layers into training mode while the body runs; all else stays in eval mode (no dropout)."""
        ours = [m for m in self.student.modules() if isinstance(m, TernaryLinear | SimulatedEmbedding)]
        in_place = [m for m in self.student.modules() if type(m).__name__ == "SpladePooling"]  # in eval mode
        layers = [*ours, *in_place]
        for layer in layers:
            layer.train()
        try:
            yield
        finally:
            for layer in layers:
                layer.eval()

    def recompute(self, wanted: bool) -> None:
        """Turns gradient checkpointing of the student's blocks on or off; what they compute stays the same.

        Each block keeps its inputs only, and runs again in the backward pass, without the hooks that collect hidden
        states. Nothing in it is random, since dropout is off; so no state of random numbers is kept, which a CUDA graph
        could not record.
        """
        for block in blocks_of(backbone(self.student)):
            block.__dict__.pop("forward", None)
            if wanted:
                run: Any = partial(_recomputed, block.forward)
                block.forward = run

    def put(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """Moves the features to the student's device, and finishes images there (`pixels.finished`)."""
        device = self.student.device
        moved = {k: v.to(device, non_blocking=True) for k, v in features.items() if isinstance(v, Tensor)}
        return finished({**features, **moved})

    def student_outputs(self, features: Mapping[str, Any]) -> Outputs:
        """Runs the student on features that are on its device."""
        return self._watched[0]({name: value for name, value in features.items() if name != TAUGHT})

    @torch.no_grad()
    def teacher_outputs(self, features: Mapping[str, Any]) -> Outputs:
        """Runs the teacher on the student's features, with ids translated to its own."""
        if TAUGHT in features:
            known = features[TAUGHT].float()
            return Outputs((), known, torch.ones(len(known), 1, device=known.device))
        if self._ids is not None and "input_ids" in features:
            features = {**features, "input_ids": self._ids[features["input_ids"]]}
        return self._watched[1](features)

    @property
    def hidden_width(self) -> int:
        """Size of the student's hidden states: what most of its ternary linears read."""
        return Counter(layer.in_features for _, layer in self.linears()).most_common(1)[0][0]

    def linears(self) -> list[tuple[str, TernaryLinear]]:
        """Lists the names and modules of the student's ternary linears."""
        return [(name, m) for name, m in self.student.named_modules() if isinstance(m, TernaryLinear)]
