"""The paths of OpenAI's API: /v1/embeddings and /v1/models.

A list of numbers, or of lists of numbers, is taken as token ids of the model itself, special tokens included; ids of
OpenAI's own tokenizers mean nothing to another model. A text that begins with `data:image/` is an image, if the model
reads images. Vectors have length 1.
"""

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from ternarize_cli.serve.answers import JSON, Answer, json_answer
from ternarize_cli.serve.inputs import compute_vectors, is_single, read_inputs, vectors_task
from ternarize_cli.serve.request import Request
from ternarize_cli.serve.service import Service

__all__ = ["OpenAiApi"]

_ROWS = 64
"""Vectors that are written as JSON in one go, before others get their turn."""


class OpenAiApi:
    """Answers requests in OpenAI's format."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def models(self, request: Request) -> Answer:
        """GET /v1/models: lists the models."""
        listed = [model.listed for model in self._service.models.all.values()]
        return json_answer({"object": "list", "data": listed})

    async def model(self, request: Request) -> Answer:
        """GET /v1/models/NAME: describes a model."""
        return json_answer(self._service.models.named(request.path.removeprefix("/v1/models/")).listed)

    async def embeddings(self, request: Request) -> Answer:
        """POST /v1/embeddings: makes a vector of each input."""
        fields = await request.fields()
        self._service.begin(request, single=is_single(fields.value("input")))
        served, encoder = self._service.models.encoder(fields.optional("model", str))
        encoding = fields.choice("encoding_format", "float", "base64")
        task = vectors_task(fields, served, encoder, prompt_name=None, truncate=True, normalize=True)
        inputs = read_inputs(fields.required("input"), "input", self._service.options)
        made = await compute_vectors(self._service, request, task, inputs)
        pieces = [b'{"object":"list","data":[']
        for first in range(0, len(made.vectors), _ROWS):
            if first:
                pieces.append(b",")
                await asyncio.sleep(0)
            pieces.append(_embeddings(made.vectors[first : first + _ROWS], first, encoding))
        usage = {"prompt_tokens": made.tokens, "total_tokens": made.tokens}
        pieces.append(b'],"model":%s,"usage":%s}' % (orjson.dumps(served.name), orjson.dumps(usage)))
        return Answer(200, [JSON], pieces)


def _embeddings(vectors: np.ndarray, first: int, encoding: str) -> bytes:
    """Writes some elements of the list `data`, with commas between them.

    Args:
        vectors: float32 `[rows, dimensions]`.
        first: the place of the first of them among all inputs.
        encoding: "float" or "base64".
    """
    values: Sequence[Any] = list(vectors)
    if encoding == "base64":
        values = [base64.b64encode(vector.astype("<f4", copy=False)).decode() for vector in vectors]
    data = [{"object": "embedding", "index": first + i, "embedding": value} for i, value in enumerate(values)]
    return orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
