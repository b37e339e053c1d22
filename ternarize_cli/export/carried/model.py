"""The model of a wheel: a class of the runtime that finds its files, and functions that share one such object."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from ternarize_cli import runtime
from ternarize_cli.export.carried.place import FOLDER, reading

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Classifier", "Encoder", "Reranker", "classify", "encode", "encode_images", "score"]


class Encoder(runtime.Encoder):
    """The encoder of this package.

        vectors = Encoder().encode(["a text", "another one"])   # float32 [2, dim]
        vector = Encoder().encode("a text")   # float32 [dim]

    The functions `encode` and `encode_images` share one, which is made when the first of them is called.
    """

    def __init__(self) -> None:
        """Reads the model's files.

        Raises:
            CheckpointError: a file is missing or damaged.
            UnavailableError: the compiled library is missing or can't be loaded.
        """
        with reading():
            super().__init__(FOLDER)


class Reranker(runtime.Reranker):
    """The reranker of this package.

        scores = Reranker().score([("a query", "a passage"), ("a query", "another one")])   # float32 [2]

    The function `score` keeps one, which is made at its first call.
    """

    def __init__(self) -> None:
        """Reads the model's files.

        Raises:
            CheckpointError: a file is missing or damaged.
            UnavailableError: the compiled library is missing or can't be loaded.
        """
        with reading():
            super().__init__(FOLDER)


class Classifier(runtime.Classifier):
    """The classifier of this package.

        scores = Classifier().classify(["a text", "another one"])   # float32 [2, labels]

    The function `classify` keeps one, which is made at its first call.
    """

    def __init__(self) -> None:
        """Reads the model's files.

        Raises:
            CheckpointError: a file is missing or damaged.
            UnavailableError: the compiled library is missing or can't be loaded.
        """
        with reading():
            super().__init__(FOLDER)


_encoder, _reranker, _classifier = cache(Encoder), cache(Reranker), cache(Classifier)


def encode(
    texts: str | Sequence[str],
    *,
    prompt_name: str | None = None,
    prompt: str | None = None,
    normalize: bool | None = None,
    dimensions: int | None = None,
) -> np.ndarray:
    """Encodes texts: float32 `[texts, dimensions]`, in their order; one string gives its vector, `[dimensions]`.

    Args:
        texts: the texts, or a single one.
        prompt_name: the name of the prompt that is put before each text; None takes the model's default, if it has one.
        prompt: the prompt itself; it excludes `prompt_name`.
        normalize: True gives vectors length 1, False leaves them as they are before the model's module Normalize, and
            None does what the model does.
        dimensions: the number of leading dimensions that are kept; None keeps as many as the model does.

    Raises:
        InputError: a text is no string, there is no prompt of that name, a prompt and a name are given, or a vector
            has fewer dimensions.
        CheckpointError: a file of the model is missing or damaged.
        UnavailableError: the compiled library is missing or can't be loaded.
    """
    return _encoder().encode(texts, prompt_name=prompt_name, prompt=prompt, normalize=normalize, dimensions=dimensions)


def encode_images(
    images: "Sequence[Image]", *, normalize: bool | None = None, dimensions: int | None = None
) -> np.ndarray:
    """Encodes images of PIL: float32 `[images, dimensions]`, in their order.

    Args:
        images: the images, upright: their EXIF orientation is not followed.
        normalize: True gives vectors length 1, False leaves them as they are before the model's module Normalize, and
            None does what the model does.
        dimensions: the number of leading dimensions that are kept; None keeps as many as the model does.

    Raises:
        InputError: an image can't be read, or a vector has fewer dimensions.
        CheckpointError: a file of the model is missing or damaged.
        UnavailableError: the compiled library is missing or can't be loaded.
    """
    return _encoder().encode_images(images, normalize=normalize, dimensions=dimensions)


def score(pairs: Sequence[tuple[str, str]], *, prompt: str | None = None, raw: bool = False) -> np.ndarray:
    """Scores pairs of texts: float32 `[pairs]`, or `[pairs, labels]` if the model has several labels.

    Args:
        pairs: the pairs, such as a query and a passage.
        prompt: what is put before the first text of each pair; None takes the model's default, if it has one.
        raw: leave out the activation that the model applies to what its head gives.

    Raises:
        InputError: something is no pair of texts.
        CheckpointError: a file of the model is missing or damaged.
        UnavailableError: the compiled library is missing or can't be loaded.
    """
    return _reranker().score(pairs, prompt=prompt, raw=raw)


def classify(texts: Sequence[str | tuple[str, str]], *, prompt: str | None = None, raw: bool = False) -> np.ndarray:
    """Scores each label for texts, or for pairs of texts: float32 `[texts, labels]`.

    Args:
        texts: the texts or pairs.
        prompt: what is put before each text, or before the first of each pair; None takes the model's default, if it
            has one.
        raw: leave out the activation that the model applies to what its head gives.

    Raises:
        InputError: something is neither a text nor a pair.
        CheckpointError: a file of the model is missing or damaged.
        UnavailableError: the compiled library is missing or can't be loaded.
    """
    return _classifier().classify(texts, prompt=prompt, raw=raw)
