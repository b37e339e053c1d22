"""Inspects a model folder of any stage by the skeleton that transformers builds for it, which has no values.

The latent W of a checkpoint that was calibrated or distilled is no longer the source's, and may have moved towards the
codes or away from them: its error says how far, not how good the model is.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ternarize_cli.arithmetic import ternary
from ternarize_cli.compress.inspection import Inspection, TensorInfo
from ternarize_cli.compress.survey import Survey, code_counts
from ternarize_cli.compress.tensor_policy import policy_of_artifact
from ternarize_cli.encoders import checkpoint, hub, module_replacement
from ternarize_cli.encoders.anatomy import sizes, weighted
from ternarize_cli.encoders.parts import parts_of
from ternarize_cli.errors import CheckpointError, FormatError
from ternarize_cli.format.scheme import LEVELS, Artifact
from ternarize_cli.layers import PackedEmbedding, PackedLinear, TernaryLinear, check_scale
from ternarize_cli.storage import digests, weights

__all__ = ["inspect_skeleton", "parameter_count"]


def inspect_skeleton(folder: Path, *, allow_pickle: bool = False) -> Inspection:
    """Inspects a model folder as `inspect.inspect` describes it.

    Raises:
        CheckpointError, FormatError: as `inspect.inspect` raises them.
    """
    artifact = checkpoint.validate(folder, allow_pickle=allow_pickle, always_verify=True)
    survey, values = _ModuleSurvey(artifact), not hub.is_headers_only(folder)
    modules: list[TensorInfo] = []
    architecture, parameters, size = "", 0, 0
    for part in parts_of(folder):
        model, known = part.skeleton(), part.artifact()
        architecture = architecture or type(model).__name__
        names = [name for name, _ in weighted(model)]
        policy = policy_of_artifact(model, known) if known is not None else None
        if known is not None:
            module_replacement.replace(model, known)
        with part.open_source(model, allow_pickle=allow_pickle) as shards:
            checkpoint.check_tensors(model, shards, FormatError if known else CheckpointError)
            at = {
                name: (key, shard)
                for shard in shards
                for key, name in checkpoint.names_in_model(model, shard.keys()).items()
            }
            for name in (n for n in names if f"{n}.weight" in at):
                key, shard = at[f"{name}.weight"]
                scale_at = at.get(f"{name}.weight_scale")
                scale = scale_at[1].get(scale_at[0]) if scale_at else None
                kind, module = policy.kind(name) if policy else "dense", model.get_submodule(name)
                weight = shard.get(key) if values else shard.get(key).to("meta")
                modules.append(survey.describe(part.prefix + name, kind, module, key, weight, scale))
        parameters += parameter_count(model, at)
        size += weights.bytes_on_disk(part.path, allow_pickle=allow_pickle)
    return Inspection(
        stage=artifact.stage if artifact else "full precision",
        architecture=architecture,
        bytes=size,
        parameters=parameters,
        sha256=digests.content_hash(folder) if values else None,
        modules=tuple(modules),
        artifact=artifact,
        magnitudes=survey.magnitudes.histogram(),
        scales=survey.scales(),
    )


def parameter_count(model: nn.Module, present: Iterable[str]) -> int:
    """Counts the weights of a model; packed ones count as the weights that they stand for, and scales do not count.

    Args:
        model: the skeleton; for an artifact, with its modules in place.
        present: the names in the state dict of the tensors to count.
    """
    logical = {
        f"{name}.weight": module.in_features * module.out_features
        if isinstance(module, PackedLinear)
        else module.num_embeddings * module.embedding_dim
        for name, module in model.named_modules()
        if isinstance(module, PackedLinear | PackedEmbedding)
    }
    state = model.state_dict()
    names = {name for name in present if not name.endswith(".weight_scale")}
    return sum(logical.get(name, value.numel()) for name, value in state.items() if name in names)


class _ModuleSurvey(Survey):
    """Describes the modules of a skeleton, each with the tensors that the file has for it."""

    def __init__(self, artifact: Artifact | None) -> None:
        super().__init__(artifact)
        self._artifact = artifact

    def describe(self, name: str, kind: str, module: Any, key: str, weight: Tensor, scale: Tensor | None) -> TensorInfo:
        size = sum(t.numel() * t.element_size() for t in (weight, scale) if t is not None)
        if isinstance(module, nn.Embedding | PackedEmbedding):
            return TensorInfo(name, kind, (module.num_embeddings, module.embedding_dim), size, False)
        if isinstance(module, TernaryLinear | PackedLinear):
            assert scale is not None
            check_scale(scale, f"{key}_scale")
            counts, error = self._codes(module, key, weight, scale.float())
            shape = module.out_features, module.in_features
            return self.ternary(name, shape, module.scheme.levels, size, counts, scale.float().numpy(), error)
        if weight.is_meta:
            return TensorInfo(name, kind, sizes(module), size, True)
        magnitude = weight.float().abs()
        mean = float(magnitude.mean())
        if self._artifact is None and mean > 0:
            self.magnitudes.add((magnitude / mean).numpy())
        return TensorInfo(name, kind, sizes(module), size, True, mean_abs=mean, max_abs=float(magnitude.max()))

    def _codes(
        self, module: TernaryLinear | PackedLinear, key: str, weight: Tensor, scale: Tensor
    ) -> tuple[dict[int, int], float | None]:
        """Counts the codes of a linear and, where its weights are latent, their magnitudes; returns its error, too."""
        if isinstance(module, PackedLinear):
            try:
                return code_counts(module.codec, weight.numpy(), module.in_features), None
            except ValueError as e:
                raise FormatError(f"{key}: {e}") from e
        weight = weight.float().T if module.transposed else weight.float()
        codes = ternary.codes_of(weight, scale, module.scheme.levels)
        error = float((weight - ternary.dequantize(codes, scale)).norm()) / (float(weight.norm()) or 1.0)
        divisor = ternary.expand_scale(scale, *weight.shape).expand_as(weight)
        self.magnitudes.add((weight.abs() / divisor)[divisor > 0].numpy())
        return {code: int((codes == code).sum()) for code in LEVELS[module.scheme.levels]}, error
