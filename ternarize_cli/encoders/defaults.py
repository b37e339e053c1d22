"""Chooses the pooling and the padding token for a plain transformers folder, which names no pooling.

Of a text encoder:

    bidirectional attention   BERT, ModernBERT, T5's encoder, …     mean over the tokens
    encoder and decoder       M2M100's encoder, BART, …             mean over the tokens, as sentence-transformers
    causal attention          Qwen3, Llama, GPT-2, …                the last token: only it has seen the whole text

`vision` chooses that of an image encoder.

sentence-transformers takes the last token only where the folder was saved as a `…ForCausalLM`. `convert` writes the
choice into the checkpoint as modules.json, so that every later stage, and sentence-transformers itself, agrees.

Decoders often come without a padding token, without which texts can't be batched. Padding is masked, so any token
serves; the end-of-text token is used.
"""

import json
from pathlib import Path
from typing import Any, Literal

from ternarize_cli.encoders import checkpoint, vision
from ternarize_cli.encoders.modalities import modalities_of
from ternarize_cli.encoders.positions import write_limit
from ternarize_cli.errors import InputError
from ternarize_cli.model_folder.folder_check import LOADING
from ternarize_cli.model_folder.model_kind import head_of
from ternarize_cli.storage.bounds import optional_object
from ternarize_cli.storage.library_output import library_output
from ternarize_cli.tokenizers.tokenizer_files import has_tokenizer

__all__ = ["complete", "pad_tokenizer", "pooling_mode"]

Pooling = Literal["mean", "lasttoken"]


def pooling_mode(folder: Path) -> Pooling:
    """Chooses the pooling of a text model whose folder names none, by its `model_type`: "mean" or "lasttoken".

    Raises:
        CheckpointError: config.json is missing or damaged.
    """
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto

    config = checkpoint.read_config(folder)
    kind = str(config.get("model_type"))
    if kind in CONFIG_MAPPING and getattr(CONFIG_MAPPING[kind], "is_encoder_decoder", False):
        return "mean"
    decodes = kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    decodes = decodes and kind not in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    bidirectional = config.get("use_bidirectional_attention") or config.get("is_causal") is False
    return "lasttoken" if decodes and not bidirectional else "mean"


def complete(source: Path, folder: Path) -> list[str]:
    """Writes a pooling and a padding token into a new model folder, if its source names none, and a true length limit.

    Args:
        source: the model folder.
        folder: the new folder, which holds a copy of the companion files of `source`.

    Returns:
        Sentences that tell the user what was written.

    Raises:
        CheckpointError: a config is missing or damaged.
        InputError: the tokenizer has neither a padding token nor an end-of-text token.
    """
    notes: list[str] = []
    plain = not (folder / "modules.json").is_file()
    if plain and modalities_of(source) == {"image"} and vision.has_processor(folder):
        _write_image_modules(source, folder)
        notes.append("wrote modules.json with the pooling of images, so that sentence-transformers agrees")
        return notes
    if not has_tokenizer(folder):
        return notes
    if plain and modalities_of(source) == {"text"} and head_of(source) is None:
        mode = pooling_mode(source)
        _write_modules(source, folder, mode)
        what = "the last token's embedding" if mode == "lasttoken" else "mean pooling"
        notes.append(f"wrote modules.json with {what}, so that sentence-transformers and later stages agree")
    notes += write_limit(checkpoint.skeleton(source), folder)
    settings = folder / "tokenizer_config.json"
    if not any("pad_token" in optional_object(path) for path in (settings, folder / "special_tokens_map.json")):
        from transformers import AutoTokenizer

        with library_output(to_stderr=True):
            tokenizer = AutoTokenizer.from_pretrained(folder, **LOADING)
        if tokenizer.pad_token is None:
            token = pad_tokenizer(tokenizer, source)
            values = optional_object(settings) | {"pad_token": token}
            settings.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            notes.append(f"the tokenizer has no padding token: its end-of-text token {token!r} pads (it is masked)")
    return notes


def pad_tokenizer(tokenizer: Any, name: object) -> str:
    """Makes the end-of-text token of a tokenizer its padding token, and returns that token.

    Args:
        tokenizer: a transformers tokenizer without a padding token.
        name: the name of the model in messages.

    Raises:
        InputError: the tokenizer has neither a padding token nor an end-of-text token.
    """
    if tokenizer.eos_token is None:
        raise InputError(
            f"the tokenizer of {name} has neither a padding token nor an end-of-text token, so texts can't be batched",
            hint='add "pad_token" to its tokenizer_config.json: any token of its vocabulary will do, padding is masked',
        )
    tokenizer.pad_token = tokenizer.eos_token
    return str(tokenizer.pad_token)


def _write_modules(source: Path, folder: Path, mode: Pooling) -> None:
    config = checkpoint.skeleton(source).config.get_text_config()
    pooling = {"word_embedding_dimension": config.hidden_size}
    pooling |= {f"pooling_mode_{name}": name == mode or name == f"{mode}_tokens" for name in _MODES}
    _write(folder, pooling)


def _write_image_modules(source: Path, folder: Path) -> None:
    model = checkpoint.skeleton(source)
    pooling = vision.image_pooling(model)
    whole = pooling == "pooler_output"
    output = pooling if whole else "last_hidden_state"
    reads = {
        "modality_config": {"image": {"method": "forward", "method_output_name": output}},
        "module_output_name": "sentence_embedding" if whole else "token_embeddings",
    }
    (folder / "sentence_bert_config.json").write_text(json.dumps(reads, indent=2) + "\n", encoding="utf-8")
    _write(folder, None if whole else {"embedding_dimension": model.config.hidden_size, "pooling_mode": pooling})


def _write(folder: Path, pooling: dict[str, Any] | None) -> None:
    """Writes modules.json with a Transformer and, if its config is given, a Pooling module."""
    kinds = [("", "Transformer"), *([("1_Pooling", "Pooling")] if pooling else [])]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
    if pooling:
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling, indent=2) + "\n", encoding="utf-8")


_MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
