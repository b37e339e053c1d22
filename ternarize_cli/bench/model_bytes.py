"""Counts the bytes of a model in each form: on disk, and in the linears that become ternary."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ternarize_cli.bench.subject import Subject
from ternarize_cli.encoders import checkpoint
from ternarize_cli.engines import baselines, exports
from ternarize_cli.storage import weights

__all__ = ["Storage", "storage"]


@dataclass(frozen=True)
class Storage:
    """The bytes of one form of the model.

    Attributes:
        name: "packed", or the rival that keeps this form in memory.
        bytes: bytes of the weights files.
        linear_bytes: bytes in these files of the weights of linears that become ternary (codes and scales in the packed
            form), without biases; None if a file does not name them.
        computed: whether there is no such file, so that the bytes are elements times bytes of their dtype.
    """

    name: str
    bytes: int
    linear_bytes: int | None
    computed: bool


def storage(subject: Subject, rivals: Sequence[str] = (), device: str = "cpu") -> list[Storage]:
    """Counts the bytes of the model in fp32, bf16 and packed form, and in the forms of other rivals.

    fp32 bytes are those of the weights files if these are fp32 throughout, and are computed otherwise. bf16, fp16 and
    int8 bytes are computed: int8 takes a byte for each weight of a linear, a scale for each row, and fp16 for the rest.
    For runtimes with files of their own, these files are counted.
    """
    skeleton = checkpoint.skeleton(subject.dense)
    dense, packed = _tensors(subject.dense), _tensors(subject.packed)
    dense_names = checkpoint.names_in_model(skeleton, dense)
    packed_names = checkpoint.names_in_model(skeleton, packed)
    linears = {f"{name}.weight" for name, module in skeleton.named_modules() if isinstance(module, nn.Linear)}
    ternary = {name for name in packed_names.values() if name.removesuffix("_scale") in linears and name not in linears}
    ternary = {name.removesuffix("_scale") for name in ternary}
    elements = sum(dense[key]["elements"] for key, name in dense_names.items() if name in ternary)
    codes = sum(packed[key]["bytes"] for key, name in packed_names.items() if name.removesuffix("_scale") in ternary)
    total = sum(tensor["elements"] for tensor in dense.values())
    is_fp32 = all(tensor["dtype"] in ("F32", "I64", "I32") for tensor in dense.values())
    fp32 = Storage(
        "torch-fp32",
        weights.bytes_on_disk(subject.dense) if is_fp32 else 4 * total,
        4 * elements,
        computed=not is_fp32,
    )
    half = Storage("torch-bf16", 2 * total, 2 * elements, computed=True)
    forms = [fp32, half, Storage("packed", weights.bytes_on_disk(subject.packed), codes, computed=False)]
    for rival in (baselines.require_baseline(name, device) for name in rivals):
        if rival.make is not None:
            made = exports.bytes_of(rival.make(subject.folder_of(rival)).parent)
            forms.append(Storage(rival.name, made, None, computed=False))
        elif rival.name.startswith("torch-int8"):
            eighth = elements + 4 * sum(dense[key]["rows"] for key, name in dense_names.items() if name in ternary)
            forms.append(Storage(rival.name, 2 * (total - elements) + eighth, eighth, computed=True))
        elif rival.name not in (fp32.name, half.name):
            forms.append(replace(half if rival.name.startswith("torch-fp16") else fp32, name=rival.name))
    return forms


def _tensors(folder: Path) -> dict[str, dict[str, Any]]:
    """Reads dtype, elements, rows and bytes of each tensor from safetensors headers (8 bytes of length, then JSON)."""
    found = {}
    for path in weights.weight_files(folder):
        with path.open("rb") as f:
            header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            elements = 1
            for size in entry["shape"]:
                elements *= size
            rows = (entry["shape"] or [1])[0]
            found[name] = {"dtype": entry["dtype"], "elements": elements, "rows": rows, "bytes": end - start}
    return found
