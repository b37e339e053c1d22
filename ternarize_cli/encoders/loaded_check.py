"""What is looked at when a model is loaded: its tensors beforehand, its modules afterwards.

transformers fills in what a file lacks with random values and leaves out what the model has no place for, both without
an error. `check_full_precision` finds these from the headers of the files, before anything is read; artifacts of ours
are checked by the plug-in (`hf`). `check_loaded` looks at the running encoder: every value is finite, and the widths of
its modules fit each other.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ternarize_cli.encoders import checkpoint
from ternarize_cli.encoders.parts import parts_of
from ternarize_cli.errors import CheckpointError, shown
from ternarize_cli.storage.weights import all_finite

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["check_full_precision", "check_loaded"]

_WIDTH = ("embedding_dimension", "word_embedding_dimension", "in_features", "dimension")
"""What modules call the width of the vectors that they take."""


def check_full_precision(folder: Path, *, allow_pickle: bool = False) -> None:
    """Checks that a full-precision folder holds what its encoder and its Dense modules need, and no layers beyond.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or belongs to a layer that config.json does not have.
    """
    for part in parts_of(folder):
        model = part.skeleton()
        with part.open_source(model, allow_pickle=allow_pickle) as shards:
            checkpoint.check_tensors(model, shards)


def check_loaded(encoder: "SentenceTransformer", folder: Path, *, vocabulary: bool) -> None:
    """Checks a running encoder.

    Args:
        encoder: the model, loaded.
        folder: where it was loaded from, for messages.
        vocabulary: whether to look for tokens beyond the word table, which takes time where there are many. The tables
            of artifacts say so themselves when such a token comes.

    Raises:
        CheckpointError: a weight or bias is not finite, a module takes vectors of another width than the one before it
            gives, no module makes one vector of a text, or the tokenizer has a token that the word table does not have.
    """
    for name, tensor in encoder.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not all_finite(tensor.detach()):
            tensor_name = name.removeprefix("0.model.")
            raise CheckpointError(
                f"{folder}: {tensor_name} holds a value that is not finite", hint="fetch the model again"
            )
    width: int | None = None
    for position, module in enumerate(encoder):
        takes = next((n for key in _WIDTH if isinstance(n := getattr(module, key, None), int)), None)
        if position and width is not None and takes is not None and takes != width:
            raise CheckpointError(
                f"{folder}: the module {type(module).__name__} takes vectors of {takes} numbers, and the one before it "
                f"gives {width}",
                hint="the configs of the modules are of different models: fetch the whole model again",
            )
        width = _width_of(module) or width
    _check_pooling(encoder, folder)
    if vocabulary:
        _check_vocabulary(encoder, folder)


def _check_pooling(encoder: "SentenceTransformer", folder: Path) -> None:
    """Refuses a transformer that gives token embeddings, and no module behind it that pools them."""
    names = [type(module).__name__ for module in encoder]
    tokens = getattr(encoder[0], "module_output_name", None) == "token_embeddings"
    if tokens and not any(name.endswith("Pooling") and name != "WeightedLayerPooling" for name in names):
        raise CheckpointError(
            f"{folder}: none of its modules ({', '.join(names)}) makes one vector of a text's token embeddings",
            hint="modules.json lacks the Pooling module: fetch the file again",
        )


def _check_vocabulary(encoder: "SentenceTransformer", folder: Path) -> None:
    """Refuses a tokenizer with an id beyond the word table, among its own words or what it puts around every text.

    Other tokens that were added may lie beyond: Gemma's stands for an image, and a model of texts has no row for it.
    """
    table = getattr(getattr(encoder[0], "auto_model", None), "get_input_embeddings", lambda: None)
    tokenizer = encoder.tokenizer
    try:
        rows = getattr(table(), "num_embeddings", None)
    except NotImplementedError:  # no table of words
        return
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if rows is None or backend is None:
        return
    known = {name: i for name, i in tokenizer.special_tokens_map.items() if isinstance(i, str)}
    always = {token: tokenizer.convert_tokens_to_ids(token) for token in known.values()}
    ids = {**backend.get_vocab(with_added_tokens=False), **{t: i for t, i in always.items() if isinstance(i, int)}}
    token, highest = max(ids.items(), key=lambda item: item[1], default=("", 0))
    if not 0 <= highest < rows:
        raise CheckpointError(
            f"{folder}: its tokenizer has the token {shown(token)} with id {highest}, its word table {rows} rows",
            hint="the tokenizer is another model's: fetch the whole model again",
        )


def _width_of(module: Any) -> int | None:
    """The width of the vectors that a module gives; None if it does not say."""
    asked = getattr(module, "get_embedding_dimension", None)
    given = asked() if asked is not None else None
    return given if isinstance(given, int) else None
