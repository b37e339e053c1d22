"""The inputs of a request: checks them, and computes their vectors."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ternarize_cli.errors import InputError, shown
from ternarize_cli.runtime import Encoder, Tokens
from ternarize_cli.serve.answers import Fault, Refusal
from ternarize_cli.serve.fields import Fields
from ternarize_cli.serve.image_urls import DATA_URL
from ternarize_cli.serve.models import Model, Served
from ternarize_cli.serve.options import ServeOptions
from ternarize_cli.serve.request import Request
from ternarize_cli.serve.service import Service
from ternarize_cli.serve.tasks import ImageVectors, Vectors

__all__ = [
    "VectorsMade",
    "check_count",
    "checked_text",
    "compute_vectors",
    "dimensions_of",
    "is_single",
    "prompt_of",
    "read_inputs",
    "vectors_task",
]


class VectorsMade(NamedTuple):
    """The vectors of a request.

    Attributes:
        vectors: float32 `[inputs, dimensions]`.
        tokens: the tokens of all inputs.
        seconds: the seconds of tokenising, in the queue, and in passes of the model.
    """

    vectors: np.ndarray
    tokens: int
    seconds: tuple[float, float, float]


def is_single(value: Any) -> bool:
    """Returns whether the value of a field is one input, a text or a list of token ids, and not a list of inputs."""
    return not isinstance(value, list) or (bool(value) and type(value[0]) is int)


def read_inputs(value: Any, name: str, options: ServeOptions) -> list[str | Tokens]:
    """Reads inputs: a text, a list of texts, a list of token ids, or a list of texts and lists of token ids.

    Args:
        value: the parsed JSON.
        name: the name of the field in messages.
        options: the bounds.

    Returns:
        The texts, images as data URLs, and token ids, in their order.

    Raises:
        Refusal: the value is something else, is empty, or exceeds a bound.
    """
    if isinstance(value, str):
        return [checked_text(value, name, options)]
    if not isinstance(value, list):
        raise Refusal(Fault.INVALID, f"`{name}` is neither a text nor a list of texts or of token ids", param=name)
    if not value:
        raise Refusal(Fault.EMPTY, f"`{name}` is an empty list", param=name)
    if type(value[0]) is int:
        return [_tokens(value, name)]
    check_count(len(value), name, options)
    return [_tokens(i, name) if isinstance(i, list) else checked_text(i, name, options) for i in value]


def _tokens(ids: list[Any], name: str) -> Tokens:
    if not ids:
        raise Refusal(Fault.EMPTY, f"`{name}` has an empty list of token ids", param=name)
    if not all(type(i) is int and 0 <= i < 1 << 31 for i in ids):
        raise Refusal(Fault.INVALID, f"`{name}` has a list that is not of token ids", param=name)
    return Tokens(ids, [0] * len(ids))


def check_count(count: int, name: str, options: ServeOptions) -> None:
    """Checks the number of inputs in a request.

    Raises:
        Refusal: there are more than the server takes.
    """
    if count > options.max_client_batch_size:
        most = f"{options.max_client_batch_size:,} that a request may have"
        raise Refusal(Fault.TOO_LARGE, f"`{name}` has {count:,} elements, more than the {most}", param=name)


def checked_text(text: Any, name: str, options: ServeOptions) -> str:
    """Returns a text, or an image as a data URL.

    Raises:
        Refusal: it is no text, or longer than the server takes.
    """
    if not isinstance(text, str):
        what = "an object" if isinstance(text, dict) else shown(text)
        raise Refusal(Fault.INVALID, f"`{name}` has {what} where a text is expected", param=name)
    if len(text) > options.max_characters and not text.startswith(DATA_URL):
        most = f"{options.max_characters:,} that it may have"
        what = f"a text in `{name}` has {len(text):,} characters, more than the {most}"
        raise Refusal(Fault.TOO_LARGE, what, param=name)
    return text


def dimensions_of(fields: Fields, encoder: Encoder) -> int | None:
    """Reads the field `dimensions`, the number of leading dimensions that are kept; None: as the model does.

    A model that cuts its vectors by itself (`truncate_dim`) gives more dimensions on request.

    Raises:
        Refusal: it is no number from 1 to the dimensions of the model's uncut vectors.
    """
    wanted = fields.optional("dimensions", int)
    if wanted is None:
        return None
    try:  # the encoder knows, and looks at the number first
        (encoder.encode if "text" in encoder.reads else encoder.encode_images)([], dimensions=wanted)
    except InputError as e:
        raise Refusal(Fault.INVALID, f"`dimensions` is {shown(wanted)}: {e}", param="dimensions") from e
    return wanted


def prompt_of(name: str | None, model: Model) -> str:
    """Returns a model's prompt by its name; for None the default, and "" if it has none.

    Raises:
        Refusal: the model has no prompt of that name.
    """
    if name is None:
        return model.prompts[model.default_prompt_name] if model.default_prompt_name is not None else ""
    if name not in model.prompts:
        known = ", ".join(model.prompts) or "none"
        raise Refusal(Fault.INVALID, f"the model has no prompt {shown(name)}, but: {known}", param="prompt_name")
    return model.prompts[name]


def vectors_task(
    fields: Fields, served: Served, encoder: Encoder, *, prompt_name: str | None, truncate: bool, normalize: bool
) -> Vectors:
    """Reads how vectors of a request are made.

    Args:
        fields: the fields of the request, of which `dimensions` is read.
        served, encoder: the model.
        prompt_name: the name of a prompt; None: the model's default.
        truncate: whether a text with too many tokens is cut; otherwise it is refused.
        normalize: whether vectors get length 1.

    Raises:
        Refusal: the model has no such prompt or not so many dimensions.
    """
    dimensions = dimensions_of(fields, encoder)
    by_itself = normalize and served.normalizes and dimensions is None
    return Vectors(encoder, prompt_of(prompt_name, encoder), truncate, None if by_itself else normalize, dimensions)


async def compute_vectors(
    service: Service, request: Request, texts: Vectors, inputs: Sequence[str | Tokens]
) -> VectorsMade:
    """Makes a vector of each input: of texts, of token ids, and of images, if the model reads images.

    Args:
        service: what computes.
        request: the request, for as long as its client waits.
        texts: how vectors of texts are made; those of token ids and images are made alike, without a prompt.
        inputs: the inputs.

    Raises:
        Refusal: an input can't be read or has too many tokens, or too many inputs are waiting.
        ClientGoneError: the client closed the connection.
    """
    tasks = {
        "text": texts,
        "token ids": replace(texts, prompt=""),
        "image": ImageVectors(texts.model, texts.normalize, texts.dimensions, service.options.max_pixels),
    }
    places: dict[str, list[int]] = {}
    for i, item in enumerate(inputs):
        places.setdefault(_kind(item, texts.model), []).append(i)
    if places.keys() - {"image"} and "text" not in texts.model.reads:
        raise Refusal(Fault.INVALID, "the model reads images only, as data:image/TYPE;base64,…")
    if len(places) == 1:
        (kind,) = places
        job = await service.compute(request, tasks[kind], inputs)
        return VectorsMade(job.result, job.tokens, job.seconds)
    vectors, tokens, seconds = np.empty((0, 0), dtype=np.float32), 0, np.zeros(3)
    for kind, rows in places.items():
        job = await service.compute(request, tasks[kind], [inputs[i] for i in rows])
        if not len(vectors):
            vectors = np.empty((len(inputs), job.result.shape[1]), dtype=np.float32)
        vectors[rows] = job.result
        tokens, seconds = tokens + job.tokens, seconds + job.seconds
    return VectorsMade(vectors, tokens, (seconds[0], seconds[1], seconds[2]))


def _kind(item: str | Tokens, encoder: Encoder) -> str:
    if not isinstance(item, str):
        return "token ids"
    return "image" if item.startswith(DATA_URL) and "image" in encoder.reads else "text"
