"""ONNX exports of full-precision models, made once and kept.

The rivals that other runtimes run start from one file: `torch.onnx.export` of the transformer, token ids and mask in,
last hidden state out, batch and length free; of an image encoder pixels in, of the size that the model reads. Attention
is written out ("eager"): what torch's fused attention is exported as has more steps, and is slower in both runtimes.
The file is kept under `rivals` in the cache folder (`files.cache_folder`), and so is what is made of it:

    <content hash>-<what>-<digest>/      content hash: of the model; digest: of whatever else decides the files,
                                         such as the versions of the libraries that wrote them

Folders appear whole or not at all. Nothing refers to them by name, so the whole of `rivals` may be deleted at any time.
"""

import contextlib
import hashlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ternarize_cli.encoders.transformers_plugin  # noqa: F401  (lets transformers open packed models)
from ternarize_cli.encoders import checkpoint
from ternarize_cli.engines import inputs
from ternarize_cli.errors import OutputExistsError, TernarizeError
from ternarize_cli.measuring.timing import Point
from ternarize_cli.model_folder.folder_check import LOADING, check_folder
from ternarize_cli.storage import files
from ternarize_cli.storage.caches import made_folder

__all__ = ["bytes_of", "kept", "onnx_export", "quiet", "transformer"]


def transformer(folder: Path, dtype: torch.dtype | str = "auto", **settings: Any) -> Any:
    """The transformer in `folder`, packed or not, in eval mode; of T5 and its kin the encoder.

    Args:
        folder: a model.
        dtype: of its floating-point weights; "auto" leaves them as they were saved.
        settings: more of transformers' own, for `from_pretrained`.
    """
    check_folder(folder, allow_pickle=True)  # the caller has asked about pickles
    model = type(checkpoint.skeleton(folder))
    return model.from_pretrained(folder, dtype=dtype, **LOADING, **settings).eval()


def onnx_export(folder: Path) -> Path:
    """The model in `folder` as ONNX in fp32: the path of `model.onnx` in its own folder.

    Raises:
        TernarizeError: the exporter does not know something in the model.
    """

    def make(output: Path) -> None:
        model = transformer(folder, torch.float32, attn_implementation="eager")
        names = inputs.names(model)
        batch = inputs.random_batch(folder, Point(2, 9), seed=0)
        free = {0: torch.export.Dim.DYNAMIC}
        if len(batch) == 2:
            batch[1][1, 5:] = 0
            free[1] = torch.export.Dim.DYNAMIC
        try:
            with quiet():
                torch.onnx.export(
                    _LastHidden(model, names).eval(),
                    batch,
                    output / "model.onnx",
                    input_names=names,
                    output_names=["last_hidden_state"],
                    dynamic_shapes=(tuple(free for _ in names),),
                    dynamo=True,
                    verbose=False,
                )
        except torch.onnx.OnnxExporterError as e:
            raise TernarizeError(
                f"{folder} can't be exported to ONNX: {' '.join(str(e).split())[:200]}",
                hint="compare with torch-* rivals instead",
            ) from e

    libraries = {name: version(name) for name in ("torch", "transformers", "onnxscript")}
    return kept(folder, "onnx-fp32", libraries, make) / "model.onnx"


class _LastHidden(nn.Module):
    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *batch: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, batch, strict=True))).last_hidden_state


def kept(folder: Path, what: str, decides: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """The kept folder of something made from a model; it is made if it is not there.

    Args:
        folder: the model.
        what: a name for it.
        decides: what its files depend on beside the model and the code of this package, as JSON values.
        make: writes the files into an empty folder.

    Raises:
        OutputError: the cache folder can't be written, or another process is making the same.
    """
    recipe = [files.sha256(path) for path in sorted(Path(__file__).parent.glob("*.py"))]
    digest = hashlib.sha256(json.dumps([decides, recipe], sort_keys=True).encode()).hexdigest()
    place = files.cache_folder("rivals") / f"{files.content_hash(folder)[:24]}-{what}-{digest[:12]}"
    if not place.is_dir():
        made_folder(place.parent)
        with contextlib.suppress(OutputExistsError), files.atomic_folder(place) as partial:
            make(partial)
    return place


def bytes_of(folder: Path) -> int:
    """Size of all files in a kept folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what exporters and quantisers log, warn of and draw off stdout and stderr."""
    listener = logging.NullHandler()  # without any, logging.warning() would install one for good
    logging.getLogger().addHandler(listener)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        logging.getLogger().removeHandler(listener)
