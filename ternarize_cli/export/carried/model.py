"""The model of a wheel, from the files that the wheel carries.

NAME/
    __init__.py     `Encoder` and `encode`, from here
    check.json      texts and the vectors that they had when the wheel was made
    model/          the packed model
    _runtime/       the runtime, and these modules
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from ternarize_cli.runtime.encoder import Encoder as PackedEncoder

__all__ = ["PACKAGE", "Encoder", "encode", "encoder"]

PACKAGE = Path(__file__).resolve().parents[3]
"""The folder of the wheel's package: this file is NAME/_runtime/export/carried/model.py."""


class Encoder(PackedEncoder):
    """The encoder of this package.

        vectors = Encoder().encode(["a text", "another one"])   # float32 [2, dim]

    `encode` has one of its own, which all callers share.
    """

    def __init__(self) -> None:
        """Reads the model's files."""
        super().__init__(PACKAGE / "model")


@cache
def encoder() -> Encoder:
    """Returns the encoder that `encode` uses, which is read on the first call."""
    return Encoder()


def encode(
    texts: Sequence[str],
    *,
    prompt_name: str | None = None,
    prompt: str | None = None,
    normalize: bool | None = None,
    dimensions: int | None = None,
) -> np.ndarray:
    """Encodes texts: float32 `[texts, dimensions]`, in their order.

    Args:
        texts: the texts.
        prompt_name: the name of the prompt that is put before each; None: the model's default, if it has one.
        prompt: the prompt itself, instead of its name.
        normalize: whether vectors get length 1; None: as the model does.
        dimensions: the number of leading dimensions that are kept; None: as the model does.

    Raises:
        InputError: a text is no text, there is no prompt of that name, or a vector has fewer dimensions.
    """
    return encoder().encode(texts, prompt_name=prompt_name, prompt=prompt, normalize=normalize, dimensions=dimensions)
