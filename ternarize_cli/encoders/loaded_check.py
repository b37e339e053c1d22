"""Checks a model when it is loaded: its tensors before, its modules after.

transformers fills in missing tensors with random values and drops tensors that the model has no place for, both without
an error. `check_full_precision` finds these from the headers of the files, before any tensor is read; the plug-in
(`transformers_plugin`) checks artifacts. `check_loaded` checks the running encoder: every value is finite, and the
dimensions of its modules fit each other.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ternarize_cli.encoders import checkpoint
from ternarize_cli.encoders.anatomy import word_table
from ternarize_cli.encoders.parts import parts_of
from ternarize_cli.errors import CheckpointError, shown
from ternarize_cli.storage.weights import all_finite

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["check_full_precision", "check_loaded"]

_WIDTH = ("embedding_dimension", "word_embedding_dimension", "in_features", "dimension")
"""Attributes in which modules of sentence-transformers give the number of dimensions of the vectors that they take."""


def check_full_precision(folder: Path, *, allow_pickle: bool = False) -> None:
    """Checks that a full-precision folder holds the tensors of its encoder and Dense modules, and no further layers.

    Args:
        folder: the model folder.
        allow_pickle: read pytorch_model.bin if there is no safetensors file.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or belongs to a layer that config.json does not have;
            or a weights file is missing or damaged.
    """
    for part in parts_of(folder):
        model = part.skeleton()
        with part.open_source(model, allow_pickle=allow_pickle) as shards:
            checkpoint.check_tensors(model, shards)


def check_loaded(encoder: "SentenceTransformer", folder: Path, *, vocabulary: bool) -> None:
    """Checks the values and the modules of a running encoder.

    Args:
        encoder: the loaded model.
        folder: the folder that it was loaded from, for messages.
        vocabulary: also compare the tokenizer's ids with the rows of the word table, which takes time for a large
            vocabulary. Artifacts do not need this check: their tables raise an error for an id beyond their rows.

    Raises:
        CheckpointError: a weight or bias is not finite, a module takes vectors of another dimension than the one before
            it gives, no module pools token embeddings, or a token's id is beyond the word table.
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
    _check_length(encoder, folder)
    if vocabulary:
        _check_vocabulary(encoder, folder)


def _check_pooling(encoder: "SentenceTransformer", folder: Path) -> None:
    """Checks that an encoder whose first module gives token embeddings has a module that pools them."""
    names = [type(module).__name__ for module in encoder]
    tokens = getattr(encoder[0], "module_output_name", None) == "token_embeddings"
    if getattr(encoder[0], "transformer_task", None) == "sequence-classification":
        return
    if tokens and not any(name.endswith("Pooling") and name != "WeightedLayerPooling" for name in names):
        raise CheckpointError(
            f"{folder}: none of its modules ({', '.join(names)}) makes one vector of a text's token embeddings",
            hint="modules.json lacks the Pooling module: fetch the file again",
        )


def _check_length(encoder: "SentenceTransformer", folder: Path) -> None:
    """Checks that a text may have more tokens than the special ones, which its library adds whatever the limit is."""
    backend = getattr(getattr(encoder, "tokenizer", None), "backend_tokenizer", None)
    length = getattr(encoder, "max_seq_length", None)
    if backend is not None and length is not None and length <= backend.num_special_tokens_to_add(is_pair=False):
        raise CheckpointError(
            f"{folder}: a text of {length} tokens has no room for a token beside the special ones",
            hint="raise max_seq_length in sentence_bert_config.json, or model_max_length in tokenizer_config.json",
        )


def _check_vocabulary(encoder: "SentenceTransformer", folder: Path) -> None:
    """Checks that the word table has a row for each token of the vocabulary and for each special token.

    Other added tokens may lie beyond the table: Gemma's image token has no row in a text model.
    """
    tokenizer = encoder.tokenizer
    rows = getattr(word_table(getattr(encoder[0], "auto_model", None)), "num_embeddings", None)
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
            hint="the tokenizer belongs to another model: fetch the whole model again",
        )


def _width_of(module: Any) -> int | None:
    """Returns the number of dimensions of the vectors that a module gives; None if the module does not say."""
    asked = getattr(module, "get_embedding_dimension", None)
    given = asked() if asked is not None else None
    return given if isinstance(given, int) else None
