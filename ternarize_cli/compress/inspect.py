"""`inspect`: what a model folder is, read from its files alone (no model is built).

What can be said about a linear depends on the stage:

    stage            codes and scales     error ‖W − s·c‖ / ‖W‖      histogram of magnitudes
    full precision   none yet             none                       |w| / mean|w| of its matrix
    latent           follow from W, s     against the latent W       |w| / s, threshold at 1/2
    packed           in the file          W is gone                  none

The two histograms of magnitudes meet: the rule "absmean" puts its threshold at beta / 2 times mean|w|, so beta = 2
splits a full-precision model at 1.

The names, shapes and order of a model's modules are those of the skeleton that transformers builds for its config
(`skeleton_inspection`), but importing PyTorch and transformers takes seconds. `pack` lists the modules of a packed
model, and by that listing NumPy says the same without them (`packed_inspection`).
"""

import os
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from ternarize_cli.compress.inspection import Inspection
from ternarize_cli.compress.packed_inspection import inspect_packed
from ternarize_cli.encoders import hub
from ternarize_cli.errors import TernarizeError

__all__ = ["inspect"]


def inspect(folder: Path, *, allow_pickle: bool = False) -> Inspection:
    """Reads a model folder of any stage; a packed model's digest, codes and scales are checked on the way.

    Of a folder with headers alone (`hub.headers_only`), values and content hash stay unknown. TERNARIZE_RUNTIME=torch
    has the skeleton of every model built.

    Args:
        folder: a model folder, as `loading.resolve` returns it.
        allow_pickle: read pytorch_model.bin where there is no safetensors file; trust its author.

    Raises:
        CheckpointError: a file is missing or damaged, or asks for something that a folder may not ask for.
        FormatError: the description of an artifact breaks the format or does not fit the weights, a packed model does
            not match its digest, or a code or scale is invalid.
    """
    if os.environ.get("TERNARIZE_RUNTIME") != "torch" and not hub.is_headers_only(folder):
        with suppress(TernarizeError, SafetensorError, OSError):  # what is wrong, the skeleton's way says
            return inspect_packed(folder)
    from ternarize_cli.compress.skeleton_inspection import inspect_skeleton

    return inspect_skeleton(folder, allow_pickle=allow_pickle)
