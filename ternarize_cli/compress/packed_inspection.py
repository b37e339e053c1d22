"""Inspects a packed model in NumPy, without PyTorch, by the listing of its modules that `pack` has written.

The listing is of one config and one file of weights. A folder with others, or without a listing, is refused here and
left to `skeleton_inspection`, which shows the model after all or says what is wrong with it.
"""

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open

from ternarize_cli.compress.inspection import Inspection, TensorInfo
from ternarize_cli.compress.survey import Survey, code_counts
from ternarize_cli.errors import FormatError, UnavailableError, named
from ternarize_cli.format.codecs import codec_for
from ternarize_cli.format.listing import ListedModule, Listing
from ternarize_cli.format.scheme import Artifact
from ternarize_cli.model_folder.folder_check import check_folder
from ternarize_cli.model_folder.integrity import verify
from ternarize_cli.runtime.modules import listed_modules
from ternarize_cli.runtime.packed_file import TensorNames
from ternarize_cli.runtime.tensor_file import TensorFile
from ternarize_cli.storage.bounds import read_object
from ternarize_cli.storage.digests import content_hash, json_digest

__all__ = ["inspect_packed"]

_FLOATS = ("F32", "F16")


class _Part(NamedTuple):
    """The encoder, or a Dense module beside it: its folder, the prefix of its names in reports, and its modules."""

    folder: Path
    prefix: str
    artifact: Artifact
    modules: tuple[ListedModule, ...]


def inspect_packed(folder: Path) -> Inspection:
    """Inspects a packed model that has a listing of its modules.

    Args:
        folder: the model's folder.

    Raises:
        CheckpointError: a file is missing or damaged, asks for something that no folder may ask for, or does not match
            the digest; or the file lacks what is listed, or has a wrong scale or code.
        UnavailableError: the model has no listing of the files that are there.
        SafetensorError: a weights file is damaged.
    """
    config = check_folder(folder)
    described = config.get("quantization_config")
    artifact = Artifact.from_dict(described if isinstance(described, dict) else {})
    if artifact.stage != "latent":  # a checkpoint has no digest
        verify(folder, always=True)
    if artifact.listing is None or not _is_of(artifact.listing, config, folder):
        raise UnavailableError(f"{folder} has no listing of its modules")
    survey, modules, parameters, size = Survey(artifact), list[TensorInfo](), 0, 0
    for part in (_Part(folder, "", artifact, artifact.listing.modules), *_dense_parts(folder)):
        path = part.folder / "model.safetensors"
        file = TensorFile(path)
        with safe_open(path, framework="np"):  # the format's own library refuses gaps in a file, too
            modules += _described(part, file, survey)
        parameters += _parameters(part, file)
        size += path.stat().st_size
    return Inspection(
        stage=artifact.stage,
        architecture=artifact.listing.architecture,
        bytes=size,
        parameters=parameters,
        sha256=content_hash(folder),
        modules=tuple(modules),
        artifact=artifact,
        magnitudes=None,
        scales=survey.scales(),
    )


def _is_of(listing: Listing, config: Mapping[str, Any], folder: Path) -> bool:
    """Returns whether a listing is that of a folder whose digest has been verified."""
    files = config["quantization_config"].get("digest", {}).get("files", {})
    own = read_object(folder / "config.json")
    del own["quantization_config"]
    return files.get("model.safetensors") == listing.weights and json_digest(own) == listing.config


def _dense_parts(folder: Path) -> Iterator[_Part]:
    """Lists the Dense modules of a model."""
    for kind, where in listed_modules(folder):
        if kind == "Dense":
            config = read_object(where / "config.json")
            if config.get("quantization_config") is None:
                raise UnavailableError(f"{where} is not packed")
            linear = ListedModule("linear", "linear", config["out_features"], config["in_features"])
            prefix = f"{where.relative_to(folder).as_posix()}."
            yield _Part(where, prefix, Artifact.from_dict(config["quantization_config"]), (linear,))


def _described(part: _Part, file: TensorFile, survey: Survey) -> Iterator[TensorInfo]:
    names = TensorNames(file.names, str(file.path), part.artifact.names)
    linears = {module.name for module in part.modules if module.kind == "linear"}
    if not linears.issuperset(part.artifact.module_levels):  # in a class around the encoder, names have a prefix
        raise UnavailableError(f"{part.folder} gives levels to modules that are not listed")
    for name, kind, rows, columns in part.modules:
        key, scale_key = names.find(f"{name}.weight"), names.find(f"{name}.weight_scale")
        if key is None:
            raise FormatError(f"{file.path} has no {named(name)}, which is listed")
        keys = (key,) if scale_key is None else (key, scale_key)
        size = sum(file.get(one).nbytes for one in keys)
        if kind == "table":
            stored = "table" if name not in part.artifact.modules_to_not_convert else "dense"
            yield TensorInfo(part.prefix + name, stored, (rows, columns), size, False)
        elif scale_key is None:
            magnitude = np.abs(file.get(key, rows, columns, dtype=_FLOATS).astype(np.float32))
            mean, largest = float(magnitude.mean(dtype=np.float64)), float(magnitude.max())
            yield TensorInfo(part.prefix + name, "dense", (rows, columns), size, True, mean_abs=mean, max_abs=largest)
        else:
            codec = codec_for(part.artifact.scheme_of(name).levels, part.artifact.codec_of(name))
            packed = file.get(key, rows, codec.width(columns), dtype="U8")
            scale = file.get(scale_key, dtype=_FLOATS).astype(np.float32)
            if not scale.size or not (np.isfinite(scale) & (scale >= 0)).all():
                raise FormatError(f"{scale_key}: a scale is negative or not finite")
            try:
                counts = code_counts(codec, packed, columns)
            except ValueError as e:
                raise FormatError(f"{key}: {e}") from e
            yield survey.ternary(part.prefix + name, (rows, columns), codec.levels, size, counts, scale)


def _parameters(part: _Part, file: TensorFile) -> int:
    """Counts the weights that the tensors of a file stand for; scales do not count."""
    names = TensorNames(file.names, str(file.path), part.artifact.names)
    listed = {names.find(f"{module.name}.weight") for module in part.modules}
    others: Iterable[str] = (key for key in file.names if key not in listed and not key.endswith(".weight_scale"))
    return sum(m.rows * m.columns for m in part.modules) + sum(prod(file.shape(key)) for key in others)
