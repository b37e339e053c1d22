"""Compares an exported model, in the runtime that it was made for, with the packed model (`--check`).

The packed model runs on backend `reference`, with activations rounded as it says. Both get the same batches: a hundred
built-in texts of half a sentence to twelve, texts of the user's, or random images. What is compared are pooled vectors.
An export without pooling is compared by the vectors that the model's own pooling makes of its hidden states. Times are
those of a pass, beside backend `native`.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ternarize_cli import kernels
from ternarize_cli.data.texts import read_lines
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.encoders.modalities import modalities_of
from ternarize_cli.encoders.positions import readable_tokens
from ternarize_cli.engines import exports, inputs
from ternarize_cli.engines.baselines import forward_of
from ternarize_cli.errors import GateMissedError, InputError, UnavailableError, reason
from ternarize_cli.export.options import ExportOptions
from ternarize_cli.layers import PackedLinear
from ternarize_cli.measuring.similarity import units
from ternarize_cli.measuring.timing import GridPoint, summarise, time_interleaved

__all__ = ["Run", "Runtime", "check_gate", "compare", "leave_activations", "run_check", "sentences", "texts_of"]

Run = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Runs an export: tensors of a batch by their names in transformers to `last_hidden_state` or `sentence_embedding`."""


@dataclass(frozen=True)
class Runtime:
    """What runs an export.

    Attributes:
        library: the library's name on PyPI.
        open: opens the export; raises any error if the library can't run it.
        hint: what a user may do if it can't.
        compare: compares the opened export with the packed model, given its folder and texts; None: as `compare` does.
    """

    library: str
    open: Callable[[], Run]
    hint: str
    compare: "Callable[[Path, Any, list[str] | None], dict[str, Any]] | None" = None


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


def texts_of(options: ExportOptions, folder: Path) -> list[str] | None:
    """Reads the texts of the check; None if it takes the built-in ones.

    Args:
        options: the options of the export.
        folder: the packed model's folder.

    Raises:
        InputError: an option of the check is set without it, or texts are given for a model that reads none.
        DataError: the file can't be read, or has no texts.
    """
    if not options.check and (options.texts is not None or options.min_cosine is not None):
        named = "--texts" if options.texts is not None else "--min-cosine"
        raise InputError(f"{named} is for the check, and --no-check leaves it out", hint="leave --no-check out")
    if options.texts is None:
        return None
    if "text" not in modalities_of(folder):
        raise InputError(f"{folder} reads images, and --texts are texts", hint="without --texts")
    return read_lines([options.texts])


def run_check(
    folder: Path, runtime: Runtime, texts: list[str] | None, options: ExportOptions, say: Callable[[str], None]
) -> dict[str, Any]:
    """Runs the check if it is wanted, and its runtime is installed.

    Args:
        folder: the packed model's folder.
        runtime: what runs the export.
        texts: as in `compare`.
        options: the options of the export.
        say: is told what is done, or why it is not.

    Returns:
        What export.json says of the check: `runtime` and what `compare` gives, or the reason, `unchecked`.

    Raises:
        UnavailableError: the runtime is missing or can't run the export, and `options.min_cosine` is set.
    """
    if not options.check:
        return {"unchecked": "--no-check"}
    if find_spec(runtime.library) is None:
        why, hint = f"{runtime.library} is not installed", f"pip install {runtime.library}"
        if options.min_cosine is not None:
            raise UnavailableError(f"--min-cosine: {why}", hint=hint)
        say(f"{why}, so the export is unchecked: {hint}")
        return {"unchecked": why}
    named = f"{runtime.library} {version(runtime.library)}"
    try:
        run = runtime.open()
    except Exception as e:  # runtimes raise errors of their own classes, and plain ones
        why = f"{named} can't run it: {reason(e)}"
        if options.min_cosine is not None:
            raise UnavailableError(why, hint=runtime.hint) from e
        say(f"unchecked: {why}")
        return {"unchecked": why}
    say("comparing it with the packed model …")
    return {"runtime": named} | (runtime.compare or compare)(folder, run, texts)


def compare(folder: Path, run: Run, texts: list[str] | None, *, activation_bits: int | None = None) -> dict[str, Any]:
    """Measures how near an export is to its packed model, and how fast.

    Args:
        folder: the packed model's folder.
        run: runs the export.
        texts: the texts to compare; None takes the built-in ones. A model of images takes random images.
        activation_bits: how the packed model rounds activations; None: as it says itself.

    Returns:
        Values of JSON: `inputs` and their `count`, `mean_cosine`, `lowest_cosine`, and `milliseconds`, which gives for
        each shape the medians of the export and of `native`, if that runs here.
    """
    encoder: Any = load_encoder(folder, backend="reference", device="cpu")
    if activation_bits is not None:
        leave_activations(encoder, activation_bits)
    reads_images = inputs.image_shape(folder) is not None
    texts = sentences() if texts is None else texts
    cosines: list[np.ndarray] = []
    with torch.inference_mode():
        for first in range(0, _COUNT if reads_images else len(texts), _BATCH):
            if reads_images:
                pixels = inputs.random_batch(folder, GridPoint(_BATCH), seed=first)[0]
                features = {"pixel_values": pixels, "modality": "image"}
            else:
                features = encoder.preprocess(texts[first : first + _BATCH])
            cosines.append(_cosines(encoder, dict(features), run))
        found = np.concatenate(cosines)
        milliseconds = _times(folder, run)
    return {
        "inputs": "random images" if reads_images else "texts",
        "count": len(found),
        "mean_cosine": round(float(found.mean()), 6),
        "lowest_cosine": round(float(found.min()), 6),
        "threads": torch.get_num_threads(),
        "milliseconds": milliseconds,
    }


def leave_activations(model: nn.Module, bits: int) -> None:
    """Lets the linears of a packed model round activations to `bits` bits; 16 leaves them as they are."""
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.scheme = replace(module.scheme, activation_bits=bits)
            module.release()


def check_gate(found: Mapping[str, Any], least: float | None) -> None:
    """Checks the mean cosine that `compare` has measured against --min-cosine.

    Raises:
        GateMissedError: it is below `least`.
    """
    if least is not None and not found["mean_cosine"] >= least:
        raise GateMissedError(
            f"quality gate missed: the mean cosine to the packed model is {found['mean_cosine']:.4f} (lowest "
            f"{found['lowest_cosine']:.4f}, {found['count']} {found['inputs']}), and --min-cosine asks for {least}"
        )


def _cosines(encoder: Any, features: dict[str, Any], run: Run) -> np.ndarray:
    made = run({name: value for name, value in features.items() if isinstance(value, Tensor)})
    hidden, vectors = made["last_hidden_state"], made.get("sentence_embedding")
    if "pixel_values" in features and len(encoder) == 1:  # no pooling that an export of hidden states could be put in
        output = encoder[0].model(**features)
        theirs = output.last_hidden_state.mean(dim=1) if vectors is None else output.pooler_output
        ours = hidden.mean(dim=1) if vectors is None else vectors
    else:
        output = encoder[0]({**features})
        theirs = _pooled(encoder, output)
        ours = _pooled(encoder, {**output, "token_embeddings": hidden}) if vectors is None else vectors
    cosines: np.ndarray = (units(theirs.numpy()) * units(ours.numpy())).sum(axis=1)
    return cosines


def _pooled(encoder: Any, features: dict[str, Any]) -> Tensor:
    features = {**features}
    for module in list(encoder)[1:]:
        features = module(features)
    vectors: Tensor = features["sentence_embedding"]
    return vectors


def _times(folder: Path, run: Run) -> dict[str, dict[str, float]]:
    """Times a pass of the export and of `native`, in milliseconds, at each shape."""
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
        times = time_interleaved(calls, repeats=_ROUNDS, seconds=_SECONDS, warmup=2)
        name = f"{point.batch}x{point.tokens}" if len(batch) > 1 else f"{point.batch}"
        found[name] = {name: summarise(seconds).median_ms for name, seconds in times.items()}
    return found
