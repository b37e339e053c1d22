"""Measures how near an export is to its packed model, and how fast it is beside others.

The packed model runs on backend `reference`. Both get the same batches: a hundred built-in texts of half a sentence to
twelve, texts of the user's, or random images. What is compared are pooled vectors. An export without pooling is
compared by the vectors that the model's own pooling makes of its hidden states. Times are those of a pass.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from ternarize_cli import kernels
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.encoders.positions import readable_tokens
from ternarize_cli.engines import exports, inputs
from ternarize_cli.engines.baselines import Forward, forward_of
from ternarize_cli.errors import UnavailableError
from ternarize_cli.layers import PackedLinear
from ternarize_cli.measuring.similarity import units
from ternarize_cli.measuring.timing import GridPoint, summarise, time_interleaved

__all__ = ["Run", "Tokenizing", "compare", "leave_activations", "sentences", "vectors_of"]

Run = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Runs an export: tensors of a batch by their names in transformers to `last_hidden_state` or `sentence_embedding`."""

_COUNT, _BATCH = 100, 10
_POINTS = GridPoint(1, 16), GridPoint(8, 128)
_ROUNDS, _SECONDS = 10, 2.0
_SENTENCES = (
    "The ferry leaves at half past six, and nobody waits for passengers who are late.",
    "How do I change the margins of a page before I print it?",
    "Two cats slept on the warm roof of the car.",
    "The committee rejected the proposal because its costs had doubled since the spring.",
    "A function that calls itself needs a case in which it stops.",
    "Rain is expected in the north, with strong winds along the coast until Friday.",
    "She planted tomatoes and beans behind the house, and forgot to water them.",
    "The battery lasts nine hours if the screen is dimmed.",
    "Prices of wheat fell by 3.5% in October 2019.",
    "Where can I find a doctor who speaks Portuguese?",
    "The enzyme binds to the receptor and slows the growth of the cells.",
    "Error 404: the page that you asked for was not found.",
    "He played the second sonata slowly, almost without expression.",
    "A contract may be ended by either side with four weeks' notice.",
    "Das Museum ist montags geschlossen.",
    "今天的会议改到下午三点。",
    "La recette demande trois œufs, de la farine et un peu de sel.",
    "The telescope sees light that left those galaxies ten billion years ago.",
    "Press the red button only in an emergency!",
    "Most of the village was rebuilt after the flood, except for the old mill.",
)


def sentences() -> list[str]:
    """Makes the hundred built-in texts, from half a sentence to twelve sentences."""
    size = len(_SENTENCES)
    fragments = [text[: len(text) // 2] for text in _SENTENCES]
    joined = [
        " ".join(_SENTENCES[(first + 7 * i) % size] for i in range(count))
        for count in (1, 2, 5, 12)
        for first in range(size)
    ]
    return fragments + joined


@runtime_checkable
class Tokenizing(Protocol):
    """What a runtime that makes tokens of texts itself has beside being called."""

    def tokenize(self, text: str) -> list[int]:
        """Returns the ids of a text's tokens, with those that are added at its ends."""


def compare(
    folder: Path,
    run: Run,
    texts: list[str] | None,
    rivals: Mapping[str, Forward] = MappingProxyType({}),
    activation_bits: int | None = None,
) -> dict[str, Any]:
    """Measures how near an export is to its packed model, and how fast.

    Args:
        folder: the packed model's folder.
        run: runs the export.
        texts: the texts to compare; None takes the built-in ones. A model of images takes random images.
        rivals: what else is timed, by names.
        activation_bits: how the packed model rounds activations; None: as it says itself.

    Returns:
        Values of JSON: `inputs` and their `count`, `mean_cosine`, `lowest_cosine`, and `milliseconds`, which gives for
        each shape the medians of the export, of `native`, if that runs here, and of `rivals`. For a runtime that
        tokenises also `tokens_differ`, the number of texts whose ids are not the packed model's.
    """
    encoder: Any = load_encoder(folder, backend="reference", device="cpu")
    if activation_bits is not None:
        leave_activations(encoder, activation_bits)
    reads_images = inputs.image_shape(folder) is not None
    texts = sentences() if texts is None else texts
    cosines: list[np.ndarray] = []
    differing = 0
    with torch.inference_mode():
        for first in range(0, _COUNT if reads_images else len(texts), _BATCH):
            if reads_images:
                pixels = inputs.random_batch(folder, GridPoint(_BATCH), seed=first)[0]
                features = {"pixel_values": pixels, "modality": "image"}
            else:
                features = encoder.preprocess(texts[first : first + _BATCH])
            call = run
            if isinstance(run, Tokenizing):
                fed = _tokenized(run, texts[first : first + _BATCH], encoder.max_seq_length)
                differing += sum(a != b for a, b in zip(_ids(features), _ids(fed), strict=True))
                call = partial(_with, run, fed)
            theirs, ours = vectors_of(encoder, dict(features), call)
            cosines.append((units(theirs) * units(ours)).sum(axis=1))
        found = np.concatenate(cosines)
        milliseconds = _times(folder, run, rivals)
    return {
        "inputs": "random images" if reads_images else "texts",
        "count": len(found),
        "mean_cosine": round(float(found.mean()), 6),
        "lowest_cosine": round(float(found.min()), 6),
        **({"tokens_differ": differing} if isinstance(run, Tokenizing) else {}),
        "threads": torch.get_num_threads(),
        "milliseconds": milliseconds,
    }


def leave_activations(model: nn.Module, bits: int) -> None:
    """Lets the linears of a packed model round activations to `bits` bits; 16 leaves them as they are."""
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.scheme = replace(module.scheme, activation_bits=bits)
            module.release()


def _with(run: Run, fed: Mapping[str, Tensor], _: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return run(fed)


def _tokenized(run: Tokenizing, texts: Sequence[str], limit: int | None) -> dict[str, Tensor]:
    """Makes a batch of what a runtime makes of texts, cut as transformers cuts: the token that ends a text stays."""
    rows = [run.tokenize(text) for text in texts]
    rows = [row if limit is None or len(row) <= limit else [*row[: limit - 1], row[-1]] for row in rows]
    batch = torch.zeros(2, len(rows), max(map(len, rows)), dtype=torch.int64)
    for i, row in enumerate(rows):
        batch[0, i, : len(row)], batch[1, i, : len(row)] = torch.tensor(row), 1
    return {"input_ids": batch[0], "attention_mask": batch[1]}


def _ids(batch: Mapping[str, Tensor]) -> list[list[int]]:
    """Lists the ids of each text of a batch, without padding."""
    return [row[seen.bool()].tolist() for row, seen in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


def vectors_of(encoder: Any, features: dict[str, Any], run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Computes the vectors of a batch, by an encoder and by an export.

    Args:
        encoder: the encoder, a SentenceTransformer.
        features: what its `preprocess` gives.
        run: runs the export, whose hidden states the encoder pools if it does not itself.

    Returns:
        The encoder's vectors and the export's, float32 [batch, dim].
    """
    made = run({name: value for name, value in features.items() if isinstance(value, Tensor)})
    vectors = made.get("sentence_embedding")
    hidden = made["last_hidden_state"] if vectors is None else vectors
    if "pixel_values" in features and len(encoder) == 1:  # no pooling that an export of hidden states could be put in
        output = encoder[0].model(**features)
        theirs = output.last_hidden_state.mean(dim=1) if vectors is None else output.pooler_output
        ours = hidden.mean(dim=1) if vectors is None else vectors
    else:
        output = encoder[0]({**features})
        theirs = _pooled(encoder, output)
        ours = _pooled(encoder, {**output, "token_embeddings": hidden}) if vectors is None else vectors
    return theirs.numpy(), ours.numpy()


def _pooled(encoder: Any, features: dict[str, Any]) -> Tensor:
    features = {**features}
    for module in list(encoder)[1:]:
        features = module(features)
    vectors: Tensor = features["sentence_embedding"]
    return vectors


def _times(folder: Path, run: Run, rivals: Mapping[str, Forward]) -> dict[str, dict[str, float]]:
    """Times a pass of the export, of `native` and of the rivals, in milliseconds, at each shape."""
    model = exports.transformer(folder)
    names, longest = inputs.names(model), readable_tokens(model)
    native = None
    with suppress(UnavailableError):
        kernels.use_backend(model, "native")
        native = forward_of(model)
    found = {}
    for point in _POINTS:
        point = GridPoint(point.batch, min(point.tokens, longest or point.tokens))
        batch = inputs.random_batch(folder, point, seed=0)
        fed = dict(zip(names, batch, strict=True))
        calls: dict[str, Callable[[], object]] = {"export": lambda fed=fed: run(fed)}  # type: ignore[misc]
        if native is not None:
            calls["native"] = lambda batch=batch: native(*batch)  # type: ignore[misc]
        calls |= {name: (lambda forward=forward, batch=batch: forward(*batch)) for name, forward in rivals.items()}  # type: ignore[misc]
        times = time_interleaved(calls, repeats=_ROUNDS, seconds=_SECONDS, warmup=2)
        name = f"{point.batch}x{point.tokens}" if len(batch) > 1 else f"{point.batch}"
        found[name] = {name: summarise(seconds).median_ms for name, seconds in times.items()}
    return found
