"""Finds the class in which sentence-transformers runs a model where that is not the class that AutoModel has for it.

    T5, mT5, UMT5, LongT5, Switch, Udop        XEncoderModel: named as in the whole model (`encoder.block.0…`)
    M2M100 (NLLB), Marian, Pegasus, Blender-   XEncoder, the encoder itself: its tensors have no `encoder.` in front
    bot, ProphetNet
    BART, mBART, LED, PLBart                   AutoModel: encoder and decoder run, and the decoder's states are pooled

A checkpoint of a whole M2M100 therefore has no tensor by the names that M2M100Encoder looks for: sentence-transformers
would fill the encoder with random numbers, silently. Such a checkpoint is refused (`require_encoder_tensors`), and the
hint says how to save the encoder alone.
"""

from collections.abc import Iterable
from importlib import import_module
from typing import Any

from ternarize_cli.errors import CheckpointError

__all__ = ["encoder_alone", "refuse_unreadable", "require_encoder_tensors"]


def encoder_alone(config: Any) -> Any:
    """Returns the class of the encoder of an encoder-decoder that sentence-transformers loads; None for AutoModel's.

    Args:
        config: the config that transformers has read. That of a T5Gemma is changed to that of its encoder.
    """
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING

    listed: Any = MODEL_FOR_TEXT_ENCODING_MAPPING.get(type(config), None)
    if listed is not None and listed.__name__.endswith("EncoderModel"):
        return listed
    if config.model_type == "t5gemma":
        from transformers import T5GemmaEncoderModel

        config.is_encoder_decoder = False
        return T5GemmaEncoderModel
    if not getattr(config, "is_encoder_decoder", False):
        return None
    from sentence_transformers.base.modules.transformer import _ENCODER_ONLY_MODELS

    return next((getattr(import_module(m), c) for kind, m, c in _ENCODER_ONLY_MODELS if isinstance(config, kind)), None)


def require_encoder_tensors(model: Any, keys: Iterable[str]) -> None:
    """Checks that the tensors of an encoder that is loaded alone are named as its class names them.

    Args:
        model: the skeleton of the encoder.
        keys: the names of the tensors in the files, as far as the model has no place for them.

    Raises:
        CheckpointError: the files hold the encoder inside a whole encoder-decoder.
    """
    state = model.state_dict()
    for key in keys:
        _, found, inner = key.partition("encoder.")
        if found and inner in state:
            kind = type(model).__name__
            raise CheckpointError(
                f"this is a whole encoder-decoder, and sentence-transformers runs its encoder alone, as {kind}: in the "
                f"files the tensor {inner} is called {key}, so that the encoder would be filled with random numbers",
                hint="save the encoder alone: AutoModel.from_pretrained(MODEL).get_encoder().save_pretrained(NEW), "
                "with the tokenizer's files beside it",
            )


def refuse_unreadable(config: Any, folder: Any) -> None:
    """Refuses a model whose vectors sentence-transformers has no way to read.

    Raises:
        CheckpointError: the model is a DPR encoder or reader.
    """
    if config.model_type == "dpr":
        names = [name for name in config.architectures or [] if name.startswith("DPR")] or ["DPRQuestionEncoder"]
        inner = {"DPRContextEncoder": "ctx_encoder", "DPRReader": "span_predictor.encoder"}.get(names[0])
        raise CheckpointError(
            f"{folder} is a {names[0]}: transformers' AutoModel makes a DPRQuestionEncoder of every DPR, and "
            "sentence-transformers has no way to read the vector of one",
            hint=f"save the BERT inside: {names[0]}.from_pretrained(MODEL).{inner or 'question_encoder'}.bert_model"
            ".save_pretrained(NEW), with the tokenizer's files and a modules.json that pools the CLS token",
        )
