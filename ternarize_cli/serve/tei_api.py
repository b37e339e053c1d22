"""The paths of text-embeddings-inference (TEI): /embed, /embed_all, /rerank, /predict, /tokenize and /info.

Where a server has several models, a request names one in the field `model` (/info: in the query, ?model=NAME).
Otherwise the first model answers that can: to /embed the first encoder, to /rerank the first reranker.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from ternarize_cli import __version__
from ternarize_cli.runtime import Encoder
from ternarize_cli.serve.answers import JSON, Answer, Fault, Headers, Refusal, json_answer
from ternarize_cli.serve.fields import Fields
from ternarize_cli.serve.inputs import (
    VectorsMade,
    check_count,
    checked_text,
    compute_vectors,
    is_single,
    prompt_of,
    read_inputs,
    vectors_task,
)
from ternarize_cli.serve.jobs import Job
from ternarize_cli.serve.models import Model
from ternarize_cli.serve.request import Request
from ternarize_cli.serve.service import Service
from ternarize_cli.serve.tasks import Scores, Tokenization, TokenVectors

__all__ = ["TeiApi"]

_VALUES = 1 << 15
"""Numbers that are written as JSON in one go, before others get their turn."""


class TeiApi:
    """Answers requests in TEI's format."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def embed(self, request: Request) -> Answer:
        """POST /embed: makes a vector of each input."""
        began = time.perf_counter()
        fields = await request.fields()
        self._service.begin(request, single=is_single(fields.value("inputs")))
        served, encoder = self._service.models.encoder(_name(fields))
        inputs = read_inputs(fields.required("inputs"), "inputs", self._service.options)
        task = vectors_task(
            *(fields, served, encoder),
            prompt_name=fields.optional("prompt_name", str),
            truncate=_truncate(fields),
            normalize=fields.get("normalize", bool, True),
        )
        made = await compute_vectors(self._service, request, task, inputs)
        return Answer(200, [JSON, *_told(made, began)], await _rows(made.vectors))

    async def embed_all(self, request: Request) -> Answer:
        """POST /embed_all: makes a vector of each token of each input."""
        began = time.perf_counter()
        fields = await request.fields()
        self._service.begin(request, single=is_single(fields.value("inputs")))
        encoder = self._reader(fields)
        inputs = read_inputs(fields.required("inputs"), "inputs", self._service.options)
        task = TokenVectors(encoder, _prompt(fields, encoder), _truncate(fields))
        job = await self._service.compute(request, task, inputs)
        pieces = [b"["]
        for i, vectors in enumerate(job.result):
            pieces += (b"," if i else b"", *await _rows(vectors))
        return Answer(200, [JSON, *_told(job, began)], [*pieces, b"]"])

    async def rerank(self, request: Request) -> Answer:
        """POST /rerank: scores texts for a query, best first."""
        began = time.perf_counter()
        fields = await request.fields()
        self._service.begin(request, single=False)
        _, model = self._service.models.headed(_name(fields), ranks=True)
        options = self._service.options
        query, texts = checked_text(fields.required("query"), "query", options), fields.required("texts")
        if not isinstance(texts, list):
            raise Refusal(Fault.INVALID, "`texts` is no list", param="texts")
        if not texts:
            raise Refusal(Fault.EMPTY, "`texts` is an empty list", param="texts")
        check_count(len(texts), "texts", options)
        pairs = [(query, checked_text(text, "texts", options)) for text in texts]
        task = Scores(model, prompt_of(None, model), _truncate(fields), fields.get("raw_scores", bool, False))
        job = await self._service.compute(request, task, pairs)
        scores = job.result[:, 0]
        with_text = fields.get("return_text", bool, False)
        ranks = [
            {"index": i, "score": scores[i]} | ({"text": texts[i]} if with_text else {})
            for i in np.argsort(-scores, kind="stable").tolist()
        ]
        return json_answer(ranks, headers=_told(job, began))

    async def predict(self, request: Request) -> Answer:
        """POST /predict: scores the labels of each text, or pair of texts, best first."""
        began = time.perf_counter()
        fields = await request.fields()
        inputs = fields.value("inputs")
        single = not (isinstance(inputs, list) and inputs and isinstance(inputs[0], list))
        self._service.begin(request, single=single)
        _, model = self._service.models.headed(_name(fields), ranks=False)
        items = self._sequences(fields.required("inputs"), single=single)
        task = Scores(model, prompt_of(None, model), _truncate(fields), fields.get("raw_scores", bool, False))
        job = await self._service.compute(request, task, items)
        labels, answers = model.labels, []
        for scores in job.result:
            order = np.argsort(-scores, kind="stable").tolist()
            answers.append([{"score": scores[i], "label": labels[i]} for i in order])
        return json_answer(answers[0] if single else answers, headers=_told(job, began))

    async def tokenize(self, request: Request) -> Answer:
        """POST /tokenize: lists the tokens of each text; their places count bytes of UTF-8, prompt included."""
        fields = await request.fields()
        self._service.begin(request, single=not isinstance(fields.value("inputs"), list))
        encoder = self._reader(fields)
        options = self._service.options
        inputs = fields.required("inputs")
        texts = [inputs] if isinstance(inputs, str) else inputs
        if not isinstance(texts, list):
            raise Refusal(Fault.INVALID, "`inputs` is neither a text nor a list of texts", param="inputs")
        if not texts:
            raise Refusal(Fault.EMPTY, "`inputs` is an empty list", param="inputs")
        check_count(len(texts), "inputs", options)
        items = [checked_text(text, "inputs", options) for text in texts]
        special = fields.get("add_special_tokens", bool, True)
        prompt = _prompt(fields, encoder)
        job = await self._service.compute(request, Tokenization(encoder, prompt), items)
        listed = [_simple_tokens(f"{prompt}{text}", spans) for text, spans in zip(items, job.result, strict=True)]
        return json_answer([[token for token in tokens if special or not token["special"]] for tokens in listed])

    async def info(self, request: Request) -> Answer:
        """GET /info: describes a model, and the bounds of this server."""
        served, options = self._service.models.any(request.query("model")), self._service.options
        return json_answer(
            {
                "model_id": served.name,
                "model_sha": served.sha256,
                "model_dtype": "ternary",
                "served_model_name": served.name,
                "model_type": served.type,
                "max_concurrent_requests": options.max_queue,
                "max_input_length": served.model.limit,
                "max_batch_tokens": options.batch_tokens,
                "max_batch_requests": None,
                "max_client_batch_size": options.max_client_batch_size,
                "auto_truncate": True,
                "tokenization_workers": 1,
                "version": __version__,
                "sha": None,
                "docker_label": None,
            }
        )

    def _reader(self, fields: Fields) -> Encoder:
        """Returns the encoder of texts that a request names.

        Raises:
            Refusal: there is none of that name, or it reads no texts.
        """
        served, encoder = self._service.models.encoder(_name(fields))
        if "text" not in encoder.reads:
            raise Refusal(Fault.WRONG_KIND, f"the model {served.name} reads no texts", param="model")
        return encoder

    def _sequences(self, inputs: Any, *, single: bool) -> list[str | tuple[str, ...]]:
        """Reads what /predict takes, as TEI does; returns its texts and pairs.

        A single one is "a" or ["a"], a text, or ["a", "b"], a pair. [["a"], ["a", "b"]] is a list of a text and a pair.

        Raises:
            Refusal: the inputs are something else, or too many.
        """
        if isinstance(inputs, str):
            inputs = [inputs]
        if not isinstance(inputs, list):
            raise Refusal(Fault.INVALID, "`inputs` is neither a text, nor a pair, nor a list of these", param="inputs")
        if not inputs:
            raise Refusal(Fault.EMPTY, "`inputs` is an empty list", param="inputs")
        sequences = [inputs] if single else inputs
        check_count(len(sequences), "inputs", self._service.options)
        found: list[str | tuple[str, ...]] = []
        for sequence in sequences:
            if not isinstance(sequence, list) or not 1 <= len(sequence) <= 2:
                what = "`inputs` has an element that is neither a list of a text nor of two texts"
                raise Refusal(Fault.INVALID, what, param="inputs")
            texts = tuple(checked_text(text, "inputs", self._service.options) for text in sequence)
            found.append(texts if len(texts) == 2 else texts[0])
        return found


def _name(fields: Fields) -> str | None:
    return fields.optional("model", str)


def _prompt(fields: Fields, model: Model) -> str:
    return prompt_of(fields.optional("prompt_name", str), model)


def _truncate(fields: Fields) -> bool:
    """Reads whether long texts are cut.

    Raises:
        Refusal: they are to be cut on the left.
    """
    if fields.choice("truncation_direction", "right", "left") == "left":
        raise Refusal(
            Fault.INVALID, "texts are cut where the model's tokenizer cuts them", param="truncation_direction"
        )
    return fields.get("truncate", bool, True)


def _simple_tokens(text: str, spans: Sequence[tuple[int, str, int, int, bool]]) -> list[dict[str, Any]]:
    """Describes the tokens of a text as TEI does."""
    ends = np.cumsum([0, *(len(character.encode()) for character in text)]).tolist() if not text.isascii() else None
    made = []
    for i, string, begin, end, special in spans:
        start, stop = (begin, end) if ends is None else (ends[begin], ends[end])
        place = {"start": None, "stop": None} if special else {"start": start, "stop": stop}
        made.append({"id": i, "text": string if special else text[begin:end], "special": special, **place})
    return made


def _told(made: VectorsMade | Job, began: float) -> Headers:
    """Makes TEI's headers, which say how much was computed, and the milliseconds that it took."""
    preparing, queued, computing = made.seconds
    total = b"%d" % ((time.perf_counter() - began) * 1000)
    return [
        (b"x-compute-type", b"cpu"),
        (b"x-compute-time", total),
        (b"x-compute-tokens", b"%d" % made.tokens),
        (b"x-total-time", total),
        (b"x-tokenization-time", b"%d" % (preparing * 1000)),
        (b"x-queue-time", b"%d" % (queued * 1000)),
        (b"x-inference-time", b"%d" % (computing * 1000)),
    ]


async def _rows(vectors: np.ndarray) -> list[bytes]:
    """Writes float32 `[rows, dim]` as a JSON list of lists; others get their turn in between."""
    step = max(_VALUES // max(vectors.shape[1], 1), 1)
    pieces = []
    for first in range(0, len(vectors), step):
        if first:
            await asyncio.sleep(0)
        pieces.append(b"," if first else b"[")
        part = np.ascontiguousarray(vectors[first : first + step])
        pieces.append(orjson.dumps(part, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1])
    return [*pieces, b"]"]
