"""Tells which of sentence-transformers' three kinds of model a folder holds, and which head its weights have.

    kind            class                 gives                        what says so in the folder
    encoder         SentenceTransformer   a vector of a text           nothing says otherwise
                                          or an image
    cross-encoder   CrossEncoder          scores of a pair of texts    "model_type": "CrossEncoder", or the head
                                                                       sequence-classification
    sparse          SparseEncoder         a weight for each token      "model_type": "SparseEncoder", or the module
                                          of the vocabulary            SpladePooling

The head is named after the task that sentence-transformers writes into sentence_bert_config.json. Without modules.json,
the class in `architectures` of config.json decides. A masked language model (XForMaskedLM) of which nothing says that
it is a sparse encoder is an encoder without a head: SentenceTransformer pools its hidden states.
"""

from pathlib import Path
from typing import Any, Literal

from ternarize_cli.errors import CheckpointError, quoted
from ternarize_cli.model_folder.config_check import architectures_of
from ternarize_cli.storage.bounds import optional_object, read_json, read_object

__all__ = ["Head", "Kind", "head_notes", "head_of", "kind_of", "left_out", "require_kind"]

Kind = Literal["encoder", "cross-encoder", "sparse"]
Head = Literal["sequence-classification", "fill-mask"]
_HEADS: dict[str, Head] = {"ForSequenceClassification": "sequence-classification", "ForMaskedLM": "fill-mask"}
_NEEDS: dict[Any, Head] = {"CrossEncoder": "sequence-classification", "SparseEncoder": "fill-mask"}
_GIVES = {
    "cross-encoder": "is a cross-encoder: it scores pairs of texts, and gives no vectors",
    "sparse": "is a sparse encoder: it gives a weight for each token of its vocabulary, and no dense vectors",
    "encoder": "is an encoder: it gives vectors, and scores no pairs of texts by itself",
}
_INSTEAD = {
    "cross-encoder": "ternarize eval MODEL --pairs FILE, or sentence_transformers.CrossEncoder(MODEL).predict(pairs)",
    "sparse": "sentence_transformers.SparseEncoder(MODEL).encode(texts)",
    "encoder": "ternarize encode MODEL FILE, or ternarize eval MODEL --sts FILE",
}

_AS_SPARSE = "; if it is a sparse encoder (SPLADE), save it first: SparseEncoder(MODEL).save_pretrained(FOLDER)"


def kind_of(folder: Path) -> Kind:
    """Returns the kind of the model in a folder.

    Raises:
        CheckpointError: a config is missing or damaged.
    """
    named = optional_object(folder / "config_sentence_transformers.json").get("model_type")
    if named == "SparseEncoder" or "SpladePooling" in _modules(folder):
        return "sparse"
    return "cross-encoder" if named == "CrossEncoder" or head_of(folder) == "sequence-classification" else "encoder"


def head_of(folder: Path) -> Head | None:
    """Returns the head beside the encoder that belongs to the model in a folder; None if the model is an encoder alone.

    Raises:
        CheckpointError: a config is missing or damaged, or without modules.json the folder says that it holds a
            cross-encoder or a sparse encoder, and the class in config.json lacks the head, such as a causal language
            model whose logits are the scores.
    """
    kinds = _modules(folder)
    named = optional_object(folder / "config_sentence_transformers.json").get("model_type")
    architecture = _architecture(folder)
    if kinds:
        task = _task(folder) or ("fill-mask" if kinds[0] == "MLMTransformer" else None)
        return next((head for head in _HEADS.values() if head == task), None)
    found = next((head for ending, head in _HEADS.items() if architecture.endswith(ending)), None)
    if found == "fill-mask" and named != "SparseEncoder":
        return None
    if named in _NEEDS and found != _NEEDS[named]:
        raise CheckpointError(
            f"{folder} is a {named} (config_sentence_transformers.json), and its config.json names the class "
            f"{architecture or 'of no model'}, which has no head for {_NEEDS[named]}",
            hint="fetch the whole model again, or save it anew with sentence-transformers",
        )
    return found


def require_kind(folder: Path, wanted: Kind) -> None:
    """Checks that a folder holds a model of a kind.

    Raises:
        CheckpointError: the model is of another kind, or a config is missing or damaged.
    """
    kind = kind_of(folder)
    if kind != wanted:
        raise CheckpointError(f"{folder} {_GIVES[kind]}", hint=_INSTEAD[kind].replace("MODEL", quoted(folder)))


def left_out(folder: Path) -> str | None:
    """Returns the class in config.json if it has a head that does not belong to the model; None if it has none.

    sentence-transformers loads such a folder without the head, and so does ternarize.

    Raises:
        CheckpointError: a config is missing or damaged.
    """
    architecture = _architecture(folder)
    return architecture if "For" in architecture and head_of(folder) is None else None


def head_notes(folder: Path) -> list[str]:
    """Tells a user in sentences what becomes of the head in the class that config.json names; empty if it has none.

    Raises:
        CheckpointError: a config is missing or damaged.
    """
    architecture = left_out(folder)
    if architecture is not None:
        return [
            f"config.json names {architecture}, and sentence-transformers loads the encoder alone: so is it converted, "
            "and the layers beside it are left out" + (_AS_SPARSE if architecture.endswith("ForMaskedLM") else "")
        ]
    return []


def _architecture(folder: Path) -> str:
    path = folder / "config.json"
    return next(iter(architectures_of(optional_object(path), path)), "")


def _modules(folder: Path) -> list[str]:
    """Lists the names of the classes in modules.json; empty if there is none, or if it is damaged."""
    path = folder / "modules.json"
    listed = read_json(path) if path.is_file() else []
    entries = [module for module in listed if isinstance(module, dict)] if isinstance(listed, list) else []
    return [str(module.get("type")).rpartition(".")[2] for module in entries]


def _task(folder: Path) -> str | None:
    for path in sorted(folder.glob("sentence_*_config.json")):
        task = read_object(path).get("transformer_task")
        if isinstance(task, str):
            return task
    return None
