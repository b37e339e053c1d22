"""Exports full-precision models to ONNX, once, and keeps the exports.

The rivals of other runtimes all start from one file, the `torch.onnx.export` of the transformer. Its inputs are token
ids and mask, of any batch and length, or for an image encoder pixels of the size that the model reads; its output is
the last hidden state. Attention is exported in its "eager" form, because the export of torch's fused attention has more
steps, and is slower in both runtimes. The file and everything made from it are kept under `rivals` in the cache folder
(`storage.cache_folder`):

    <content hash>-<what>-<digest>/      content hash of the model; digest of all else that decides the files, such as
                                         the versions of the libraries that wrote them

Folders appear whole or not at all. Nothing refers to them by name, so `rivals` may be deleted at any time.
"""

import contextlib
import hashlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ternarize_cli.encoders.transformers_plugin  # noqa: F401  (lets transformers open packed models)
from ternarize_cli import kernels
from ternarize_cli.encoders import checkpoint
from ternarize_cli.encoders.module_replacement import dequantize
from ternarize_cli.encoders.positions import readable_tokens
from ternarize_cli.engines import inputs
from ternarize_cli.engines.onnx_session import open_session
from ternarize_cli.errors import OutputExistsError, TernarizeError, reason
from ternarize_cli.measuring.timing import GridPoint
from ternarize_cli.model_folder.folder_check import LOADING, check_folder
from ternarize_cli.storage import digests, files
from ternarize_cli.storage.cache_folder import made_folder

__all__ = ["bytes_of", "cached_export", "onnx_export", "quiet", "takes_types", "transformer", "write_onnx"]

_HINT = "compare with torch-* rivals instead"
_LONG = 200
"""Number of tokens of the longest text that an export is compared with, which is beyond ModernBERT's windows."""
_SAME = 1e-3
"""Relative distance of two fp32 computations below which they count as equal."""


def transformer(folder: Path, dtype: torch.dtype | str = "auto", **settings: Any) -> Any:
    """Loads the transformer in `folder`, packed or not, in eval mode; for T5 and similar models, only the encoder.

    Args:
        folder: the folder of a model.
        dtype: dtype of its floating-point weights; "auto" keeps the dtype in which they were saved.
        settings: further arguments for transformers' `from_pretrained`.
    """
    check_folder(folder, allow_pickle=True)  # the caller has checked whether pickles are allowed
    model = type(checkpoint.skeleton(folder))
    return model.from_pretrained(folder, dtype=dtype, **LOADING, **settings).eval()


def onnx_export(folder: Path) -> Path:
    """Exports the model in `folder` to ONNX in fp32, unless the export exists; returns the path of `model.onnx`.

    A packed model is multiplied out.

    Raises:
        TernarizeError: the export fails, or computes something else (`write_onnx`).
    """
    libraries = {name: version(name) for name in ("torch", "transformers", "onnxscript")}
    change = _multiplied_out if checkpoint.stage(folder) == "packed" else None
    make = partial(write_onnx, folder, change=change)
    return cached_export(folder, "onnx-fp32", libraries, make) / "model.onnx"


def _multiplied_out(model: Any) -> Any:
    kernels.use_backend(model, "reference")  # a fused encoder would go on running the codes
    return dequantize(model)


def write_onnx(
    folder: Path,
    output: Path,
    *,
    change: Callable[[Any], nn.Module] | None = None,
    pool: Callable[[Any, Tensor | None], Tensor] | None = None,
    types: bool = False,
) -> None:
    """Exports a model to `model.onnx` in the folder `output`, and compares it with the model where ONNX Runtime is.

    Args:
        folder: the folder of the model.
        output: an existing folder.
        change: makes the model to export from the loaded one; None exports it as it is.
        pool: makes vectors [batch, dim] of the model's output and the mask (None for images), which become a second
            output, `sentence_embedding`; None leaves that out.
        types: whether a model with types of tokens gets a third input, `token_type_ids`; otherwise they are 0.

    Raises:
        TernarizeError: the exporter does not support an operation of the model, or its result computes something else.
    """
    model = transformer(folder, torch.float32, attn_implementation="eager")
    model = model if change is None else change(model)
    names = inputs.names(model)
    if types and takes_types(model):
        names = (*names, "token_type_ids")
    alone = _Exported(model, names, pool).eval()
    batch = _batch(folder, names, GridPoint(2, 9), seed=0)
    free = {0: torch.export.Dim.DYNAMIC}
    if len(batch) > 1:
        free[1] = torch.export.Dim.DYNAMIC
    try:
        with quiet():
            torch.onnx.export(
                alone,
                batch,
                output / "model.onnx",
                input_names=names,
                output_names=["last_hidden_state"] if pool is None else ["last_hidden_state", "sentence_embedding"],
                dynamic_shapes=(tuple(free for _ in names),),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as e:
        raise TernarizeError(f"{folder} can't be exported to ONNX: {reason(e.__cause__ or e)}", hint=_HINT) from e
    if find_spec("onnxruntime") is not None:
        _compare(folder, alone, output / "model.onnx")


def takes_types(model: Any) -> bool:
    """Whether a model of transformers distinguishes types of tokens, which tell the sentences of a pair apart."""
    return getattr(model.config, "type_vocab_size", 0) > 1 and "token_type_ids" in signature(model.forward).parameters


def _batch(folder: Path, names: tuple[str, ...], point: GridPoint, seed: int) -> inputs.Batch:
    """Makes a batch for the inputs `names`; of several texts the last is padded, and the second half is of type 1."""
    batch = inputs.random_batch(folder, point, seed)
    if len(batch) > 1 and point.batch > 1:
        batch[1][-1, point.tokens // 2 :] = 0
    if len(names) > len(batch):
        types = torch.zeros_like(batch[0])
        types[:, point.tokens // 2 :] = 1
        batch = (*batch, types)
    return batch


def _compare(folder: Path, model: "_Exported", path: Path) -> None:
    """Checks that an export gives the model's outputs: other batches and lengths than it was traced with, and padding.

    Raises:
        TernarizeError: it does not.
    """
    session = open_session(path)
    longest = readable_tokens(model) or _LONG
    for point in (GridPoint(1, 16), GridPoint(3, 7), GridPoint(1, min(_LONG, longest))):
        batch = _batch(folder, model.names, point, seed=1)
        seen = batch[1][..., None] if len(batch) > 1 else torch.ones(())
        with torch.inference_mode():
            expected = model(*batch)
        expected = expected if isinstance(expected, tuple) else (expected,)
        made = session.run(None, {name: tensor.numpy() for name, tensor in zip(model.names, batch, strict=True)})
        for y, r, mask in zip(made, expected, (seen, torch.ones(())), strict=False):
            distance = float(((torch.from_numpy(y) - r) * mask).norm() / (r * mask).norm())
            if not distance < _SAME:
                raise TernarizeError(
                    f"the ONNX export of {folder} computes something else than the model: at {point.batch} x "
                    f"{point.tokens} its outputs are off by {distance:.1%}",
                    hint=_HINT,
                )


class _Exported(nn.Module):
    """The transformer with outputs in a fixed order: the last hidden state, and vectors if `pool` makes them."""

    def __init__(
        self, model: nn.Module, names: tuple[str, ...], pool: Callable[[Any, Tensor | None], Tensor] | None
    ) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.pool = pool

    def forward(self, *batch: Tensor) -> Any:
        output = self.model(**dict(zip(self.names, batch, strict=True)))
        if self.pool is None:
            return output.last_hidden_state
        return output.last_hidden_state, self.pool(output, batch[1] if len(batch) > 1 else None)


def cached_export(folder: Path, what: str, decides: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """Gives the folder in the cache for files made from a model; makes the files if they are missing.

    Args:
        folder: the model's folder.
        what: a name for the files.
        decides: JSON values on which the files depend, besides the model and the code of this package.
        make: a function that writes the files into an empty folder.

    Raises:
        OutputError: the cache folder can't be written, or another process is making the files.
    """
    recipe = [digests.sha256(path) for path in sorted(Path(__file__).parent.glob("*.py"))]
    digest = hashlib.sha256(json.dumps([decides, recipe], sort_keys=True).encode()).hexdigest()
    place = files.cache_folder("rivals") / f"{digests.content_hash(folder)[:24]}-{what}-{digest[:12]}"
    if not place.is_dir():
        made_folder(place.parent)
        with contextlib.suppress(OutputExistsError), files.atomic_folder(place) as partial:
            make(partial)
    return place


def bytes_of(folder: Path) -> int:
    """Counts the bytes of all files in a folder of the cache."""
    return sum(path.stat().st_size for path in folder.iterdir())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps log lines, warnings and progress bars of exporters and quantisers off stdout and stderr."""
    listener = logging.NullHandler()  # without a handler, logging.warning() would install one permanently
    logging.getLogger().addHandler(listener)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        logging.getLogger().removeHandler(listener)
