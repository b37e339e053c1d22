"""What libraries of others need of a model beside its weights: configs, tokenizer, pooling and prompts.

Formats that such libraries open keep the layout of sentence-transformers. The files are the packed model's, but for
configs, which no longer describe codes, and modules Dense, whose weights are multiplied out.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ternarize_cli.encoders.loading import prompts_of
from ternarize_cli.encoders.module_replacement import dequantize
from ternarize_cli.errors import InputError
from ternarize_cli.export.source import Source
from ternarize_cli.model_folder.model_files import module_folders
from ternarize_cli.storage.bounds import read_json, read_object

__all__ = ["check_encoder", "write_companions"]

_SETTINGS = "config_sentence_transformers.json"
_DESCRIPTIONS = ("quantization_config", "requirements")
"""What our configs say of codes, and of the packages that can read them."""


def check_encoder(encoder: Any, folder: Path, form: str, *, pooled: bool) -> None:
    """Checks that a model has hidden states, and if wanted, pooling that depends on them and the mask alone.

    Args:
        encoder: the model, a SentenceTransformer.
        folder: its folder, which messages name.
        form: the name of the format, which messages name.
        pooled: whether the export pools, too.

    Raises:
        InputError: it has no hidden states, or pools in another way.
    """
    first = encoder[0]
    gives = {entry.get("method_output_name") for entry in (getattr(first, "modality_config", None) or {}).values()}
    if not hasattr(first, "auto_model") or not gives <= {"last_hidden_state", "pooler_output"}:
        raise InputError(f"{folder} gives no hidden states of tokens, and --to {form} writes models that do")
    leaves_out = any(getattr(module, "include_prompt", True) is False for module in encoder)
    if pooled and leaves_out and (any(encoder.prompts.values()) or prompts_of(encoder) != [""]):
        raise InputError(
            f"{folder} leaves the tokens of prompts out of pooling, which --pooled can't know", hint="without --pooled"
        )


def write_companions(
    source: Source, files: Mapping[str, Path], encoder: Any, folder: Path, added: Mapping[str, Any] | None = None
) -> None:
    """Writes the files of a model beside its weights.

    Args:
        source: the packed model.
        files: its files, as `Source.files` gives them.
        encoder: the model, a SentenceTransformer, whose modules Dense are multiplied out in place.
        folder: the folder that gets them.
        added: keys that config.json gets.
    """
    for where in module_folders(source.folder):
        (folder / where).mkdir(parents=True, exist_ok=True)
    listed = read_json(source.folder / "modules.json") if "modules.json" in files else []
    for entry, module in zip(listed[1:], list(encoder)[1:], strict=True):
        if f"{entry['path']}/model.safetensors" in files:
            dequantize(module).save(str(folder / entry["path"]))
    for name, path in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.name in ("config.json", _SETTINGS):  # a module Dense has a description of its codes, too
            values = {key: value for key, value in read_object(path).items() if key not in _DESCRIPTIONS}
            if name == "config.json":
                values |= added or {}
            target.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")
        elif ".safetensors" not in path.name:
            target.write_bytes(path.read_bytes())
