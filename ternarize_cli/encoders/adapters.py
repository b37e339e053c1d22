"""Merges a LoRA adapter of peft into its base model: a temporary folder holds the model that an adapter stands for.

    adapter/adapter_config.json, adapter_model.safetensors      from the adapter: A and B of each adapted linear
    base/config.json, model.safetensors                         from the base: everything else

Tensors stream through: each adapted linear is merged by peft, alone, W + scaling · B·A, in the base's dtype; all other
tensors are copied. modules.json with the modules that it names, and the files of the tokenizer or processor, each come
from the adapter's folder if it has them, otherwise from the base's. Nothing is built but a skeleton on the meta device.
"""

import copy
import importlib.util
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from ternarize_cli.encoders import checkpoint, hub
from ternarize_cli.encoders.parts import Part
from ternarize_cli.encoders.vision import has_processor
from ternarize_cli.errors import CheckpointError, UnavailableError, named
from ternarize_cli.model_folder.adapter_check import LoraAdapter
from ternarize_cli.model_folder.model_files import copy_companions, model_files, module_folders
from ternarize_cli.storage.bounds import read_bytes
from ternarize_cli.storage.views import new_view, origin
from ternarize_cli.storage.weights import ShardWriter, WeightShard, all_finite, open_files, weight_files
from ternarize_cli.tokenizers.tokenizer_files import has_tokenizer

__all__ = ["merged", "source_of"]

_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_OF_MODULES = re.compile(r"modules\.json|config_sentence_transformers\.json|sentence_\w+_config\.json")
_CARD = re.compile(r"(README|LICEN[SC]E|NOTICE|COPYING).*")
_FLOATS = ("F32", "F16", "BF16", "F64")
_MADE: dict[tuple[object, ...], Path] = {}
_SOURCES: dict[Path, str] = {}


@dataclass(frozen=True)
class _Product:
    """What an adapter adds to one linear: the keys of A [rank, in] and B [out, rank] in its file, and alpha."""

    a: str
    b: str
    rank: int
    alpha: float


def source_of(folder: Path) -> str | None:
    """Returns what a merged folder was made of, as `BASE + ADAPTER`; None for a folder that `merged` has not made.

    Each is a hub id with its commit, `owner/name@COMMIT`, or the name of a folder.
    """
    return _SOURCES.get(folder)


def merged(adapter: LoraAdapter, base: Path, *, allow_pickle: bool = False, headers_only: bool = False) -> Path:
    """Makes a temporary folder with the model that an adapter and its base are together.

    A folder that this process made of these files before is returned again.

    Args:
        adapter: the adapter.
        base: the folder of its base model.
        allow_pickle: read pytorch_model.bin of the base if it has no safetensors file. Of the adapter, none is read.
        headers_only: check everything, but leave the base's weights as they are; names, dtypes and shapes are those of
            the merged model, and values are not (`hub.is_headers_only`).

    Raises:
        UnavailableError: peft is not installed.
        CheckpointError: the base is damaged or not at full precision; or a tensor of the adapter belongs to no linear
            of the base, does not fit the linear or the adapter's config, or is not finite, or the sum is not.
    """
    if importlib.util.find_spec("peft") is None:
        raise UnavailableError(
            f"{adapter.folder} is a LoRA adapter of {named(adapter.base)}, and the package peft, which merges it, is "
            "not installed",
            hint="pip install 'ternarize-cli[peft]'",
        )
    key = (allow_pickle, headers_only, *_stamp(adapter.folder), *_stamp(base))
    if key in _MADE and _MADE[key].is_dir():
        return _MADE[key]
    if checkpoint.validate(base, allow_pickle=allow_pickle) or "quantization_config" in checkpoint.read_config(base):
        raise CheckpointError(
            f"{adapter.folder} is an adapter of {base}, which is quantised already",
            hint="write the full-precision base into base_model_name_or_path of adapter_config.json",
        )
    view = new_view(origin(adapter.folder))
    _take_companions(adapter.folder, base, view)
    with ExitStack() as stack:
        (own,) = stack.enter_context(open_files([adapter.weights]))
        model = Part(view).skeleton()
        shards = stack.enter_context(Part(base).open_source(model, allow_pickle=allow_pickle))
        checkpoint.check_tensors(model, shards)
        products = _products(adapter, model, own)
        if headers_only:
            _link_weights(base, view, allow_pickle=allow_pickle)
            hub.mark_headers_only(view)
        else:
            _write(adapter, model, shards, own, products, view)
    _SOURCES[view] = " + ".join(_name_of(folder) for folder in (base, adapter.folder))
    _MADE[key] = view
    return view


def _stamp(folder: Path) -> list[object]:
    """Lists what changes if a file of a model or an adapter changes: names, sizes and times."""
    names = (*model_files(folder), "adapter_config.json", "adapter_model.safetensors")
    found = [folder / name for name in names if (folder / name).exists()]
    return [origin(folder), *((path.name, (s := path.stat()).st_size, s.st_mtime_ns) for path in found)]


def _name_of(folder: Path) -> str:
    return str(hub.origin_of(folder) or origin(folder).name)


def _take_companions(adapter: Path, base: Path, view: Path) -> None:
    """Copies modules, tokenizer, processor and cards of the adapter and of its base, and the base's config.json."""
    rest = view.parent / "base"
    rest.mkdir()
    copy_companions(adapter, view)
    copy_companions(base, rest)
    has_modules, reads = (view / "modules.json").exists(), has_tokenizer(view) or has_processor(view)
    folders = {PurePosixPath(where).parts[0] for where in module_folders(rest)}
    for path in [path for path in sorted(rest.rglob("*")) if path.is_file()]:
        name = path.relative_to(rest)
        of_modules = name.parts[0] in folders or _OF_MODULES.fullmatch(name.name)
        wanted = _CARD.fullmatch(str(name)) or not (has_modules if of_modules else reads)
        if wanted and not (view / name).exists():
            (view / name).parent.mkdir(parents=True, exist_ok=True)
            path.rename(view / name)
    for where in module_folders(view):
        (view / where).mkdir(parents=True, exist_ok=True)
    (view / "config.json").write_bytes(read_bytes(base / "config.json"))


def _link_weights(base: Path, view: Path, *, allow_pickle: bool) -> None:
    files = weight_files(base, allow_pickle=allow_pickle)
    for path in [*files, *base.glob(f"{files[0].name.partition('-')[0]}*.index.json")]:
        os.symlink(path.resolve(), view / path.name)


def _products(adapter: LoraAdapter, model: Any, own: WeightShard) -> dict[str, _Product]:
    """Finds the linear of each pair of the adapter's tensors, by the linear's name in the model; checks shapes."""
    from transformers.pytorch_utils import Conv1D

    path, again = adapter.weights, "fetch the adapter again; its base may be another model than it names"
    found = {key: _KEY.fullmatch(key) for key in own.keys()}  # noqa: SIM118
    for key, match in found.items():
        if match is None:
            hint = "ternarize merges adapters of linears; save others with peft's merge_and_unload()"
            raise CheckpointError(f"{path} holds {named(key)}, which is no A or B of a linear", hint=hint)
    modules = sorted({match[1] for match in found.values() if match})
    names = checkpoint.names_in_model(model, [f"{module}.weight" for module in modules])
    products: dict[str, _Product] = {}
    for module in modules:
        a, b = (f"base_model.model.{module}.lora_{which}.weight" for which in "AB")
        if a not in found or b not in found:
            raise CheckpointError(f"{path} holds one of A and B of {named(module)} without the other", hint=again)
        name = names.get(f"{module}.weight", "").removesuffix(".weight")
        linear = model.get_submodule(name) if name else None
        if not isinstance(linear, nn.Linear | Conv1D) or name in products:
            raise CheckpointError(f"{path} adapts {named(module)}, which is no linear of {adapter.base}", hint=again)
        outer, inner = linear.weight.T.shape if isinstance(linear, Conv1D) else linear.weight.shape
        rank = adapter.rank_of(module)
        for key, wanted in ((a, (rank, inner)), (b, (outer, rank))):
            if own.shape(key) != wanted or own.dtype(key) not in _FLOATS:
                given = f"{key} is {own.dtype(key)} {list(own.shape(key))}"
                raise CheckpointError(f"{path}: {given}, and base and config make it {list(wanted)}", hint=again)
            if not all_finite(own.get(key)):
                raise CheckpointError(f"{path}: {key} holds a value that is not finite", hint=again)
        products[name] = _Product(a, b, rank, adapter.alpha_of(module))
    if not products:
        raise CheckpointError(f"{path} holds no tensors", hint=again)
    return products


def _write(
    adapter: LoraAdapter,
    model: Any,
    shards: list[WeightShard],
    own: WeightShard,
    products: Mapping[str, _Product],
    view: Path,
) -> None:
    """Writes the weights of the merged model, under the names that the base's files use."""
    writer = ShardWriter(view)
    for shard in shards:
        names = checkpoint.names_in_model(model, shard.keys())
        with writer.shard(shard.name) as out:
            for key in shard.keys():  # noqa: SIM118
                name = names.get(key, "").removesuffix(".weight")
                weight, product = shard.get(key), products.get(name)
                if product is not None and names[key].endswith(".weight"):
                    a, b = own.get(product.a).float(), own.get(product.b).float()
                    scaling = {"lora_alpha": product.alpha, "use_rslora": adapter.rank_stabilised}
                    weight = _sum(model.get_submodule(name), weight, a, b, scaling)
                    if not all_finite(weight):
                        raise CheckpointError(
                            f"{adapter.folder}: {name} is not finite with the adapter merged",
                            hint="fetch adapter and base again",
                        )
                out.add(key, weight)
    writer.finish()


def _sum(linear: nn.Module, weight: Tensor, a: Tensor, b: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Lets peft merge one linear; returns W + scaling · B·A in the dtype and layout of `weight`.

    Args:
        linear: an nn.Linear or Conv1D of the skeleton.
        weight: its weight.
        a, b: [rank, in] and [out, rank] float32.
        scaling: `lora_alpha`, the numerator, and `use_rslora`: whether the denominator is √rank instead of the rank.
    """
    from peft import LoraConfig, inject_adapter_in_model

    holder: Any = nn.Module()
    holder.linear = copy.deepcopy(linear)
    holder.linear.weight = nn.Parameter(weight, requires_grad=False)
    config = LoraConfig(
        r=len(a),
        **scaling,
        target_modules=["linear"],
        fan_in_fan_out=not isinstance(linear, nn.Linear),
    )
    layer: Any = inject_adapter_in_model(config, holder, low_cpu_mem_usage=True).linear
    for pair, tensor in ((layer.lora_A, a), (layer.lora_B, b)):
        pair["default"].weight = nn.Parameter(tensor, requires_grad=False)
    with torch.no_grad():
        layer.merge()
    total: Tensor = layer.base_layer.weight.detach()
    return total
