"""Writes checkpoints that transformers opens without ternarize, and compares them with the packed model there.

The formats dense and compressed-tensors differ in what stands for a linear, and have the rest from here:

    model.safetensors   the weights by the names that transformers has for them, in shards where they are large
    config.json …       the model's configs, tokenizer or processor, pooling and prompts
    N_Dense/            modules Dense, multiplied out
    README.md …         the last files of each export (`export_folder`)

A model keeps its head. Neither format rounds activations, so the check compares vectors with those of the packed model
under `--activations 16`: what is left is the rounding of values.
"""

import contextlib
import io
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ternarize_cli.encoders.transformers_plugin  # noqa: F401  (lets transformers open packed models)
from ternarize_cli import __version__
from ternarize_cli.compress.result_check import vectors_of
from ternarize_cli.encoders import checkpoint
from ternarize_cli.encoders.anatomy import backbone
from ternarize_cli.encoders.heads import load_with_head
from ternarize_cli.encoders.loading import can_encode
from ternarize_cli.encoders.modalities import modalities_of
from ternarize_cli.engines import exports
from ternarize_cli.errors import InputError, UnavailableError, reason
from ternarize_cli.export import check, nearness
from ternarize_cli.export.companions import check_encoder, write_companions
from ternarize_cli.export.export_folder import complete
from ternarize_cli.export.formats import Export
from ternarize_cli.export.licences import licence_texts
from ternarize_cli.export.options import ExportOptions
from ternarize_cli.export.source import Source
from ternarize_cli.measuring.similarity import units
from ternarize_cli.model_folder.folder_check import LOADING
from ternarize_cli.model_folder.model_kind import head_of, kind_of
from ternarize_cli.storage.files import atomic_folder, check_output

__all__ = ["Weights", "write_checkpoint"]

UNROUNDED = 16
"""Bits of activations that are not rounded, as `Scheme.activation_bits` has them."""


@dataclass(frozen=True)
class Weights:
    """The weights of a checkpoint, as a format makes them of a packed model.

    Attributes:
        config: keys that config.json gets.
        facts: what export.json says of them.
        tensors: the tensors by their names in the model; None: those of the model, which is dense by then.
    """

    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor] | None = None


def write_checkpoint(
    source: Source,
    output: Path,
    options: ExportOptions,
    make: Callable[[Any], Weights],
    readme: Callable[[Source, Mapping[str, Any]], str],
    *,
    library: str,
    force: bool,
    say: Callable[[str], None],
) -> Export:
    """Writes a folder for transformers, atomically.

    Args:
        source: the packed model.
        output: the folder to write.
        options: the options, of which those of the check are read.
        make: makes the weights; may change the model, which transformers has loaded in float32.
        readme: writes the README, given the model and what export.json holds.
        library: the library on PyPI without which the result can't be opened.
        force: replace a folder that exists.
        say: is told what is written when all arguments have been checked.

    Raises:
        InputError: an option of the check can't be used, or the model can't be written in this format.
        DataError: the texts of the check can't be read.
        UnavailableError: transformers, as it is installed here, can't open the result; or the library that it needs
            is missing, and `options.min_cosine` is set.
        OutputError, OutputExistsError: the output can't be written, or exists and `force` is false.
    """
    texts = check.texts_of(options, source.folder)
    files, licences = source.files(), licence_texts(source.folder)
    check_output(output, force=force, inputs=[source.folder])
    model, encoder = _open_packed(source.folder)
    made = make(model)
    say(f"writing {output} …")
    with atomic_folder(output, force=force, inputs=[source.folder]) as folder:
        _save(model, folder, made.tensors)
        write_companions(source, files, encoder, folder, made.config)
        for path in folder.rglob("*.safetensors"):  # that library makes files which no other user can read
            shutil.copymode(folder / "config.json", path)
        del model, encoder
        facts = {"content_hash": source.digest, **made.facts, "versions": _versions()}
        opened = partial(_open_export, source.folder, folder)
        hint = "--to dense" if library != "transformers" else "--no-check writes it without opening it"
        runtime = check.Runtime(library, opened, hint, required=True, compare=_compare)
        facts["check"] = _checked(source.folder, runtime, texts, options, say)
        facts = complete(folder, facts, readme(source, facts), licences)
    return check.exported(output, facts, options)


def _open_packed(folder: Path) -> tuple[Any, Any]:
    """Loads the packed model of transformers, and the model of sentence-transformers around it if the folder has one.

    Returns:
        The model with its head, and the modules from which Dense is taken; `()` for a folder without any.
    """
    if (folder / "modules.json").is_file():
        encoder = load_with_head(folder, backend="reference", device="cpu")
        return backbone(encoder), encoder
    return _class_of(folder).from_pretrained(folder, dtype=torch.float32, **LOADING).eval(), ()


def _class_of(folder: Path) -> Any:
    return type(checkpoint.skeleton(folder, head_of(folder)))


def _save(model: Any, folder: Path, tensors: Mapping[str, Tensor] | None) -> None:
    with exports.quiet(), contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        if tensors is None:
            model.save_pretrained(folder)
        else:
            model.save_pretrained(folder, state_dict=dict(tensors), save_original_format=False)


def _versions() -> dict[str, str]:
    return {"ternarize": __version__} | {name: version(name) for name in ("torch", "transformers")}


def _checked(
    folder: Path, runtime: check.Runtime, texts: list[str] | None, options: ExportOptions, say: Callable[[str], None]
) -> dict[str, Any]:
    if options.check and not can_encode(folder):
        if options.min_cosine is not None:
            raise InputError(
                f"--min-cosine: {folder} has neither tokenizer nor image processor", hint="without --min-cosine"
            )
        return {"unchecked": "the model has neither tokenizer nor image processor"}
    return check.run_check(folder, runtime, texts, options, say)


class _Exported:
    """An export in transformers, which gives its hidden states."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"last_hidden_state": self.model(**batch).last_hidden_state}


def _open_export(folder: Path, made: Path) -> _Exported:
    kind = _class_of(folder)
    with exports.quiet(), contextlib.redirect_stderr(io.StringIO()):
        try:
            return _Exported(kind.from_pretrained(made, dtype=torch.float32, **LOADING).eval())
        except Exception as e:  # of transformers, whose messages speak of its own code
            raise UnavailableError(
                f"transformers {version('transformers')} does not open a {kind.__name__} in this format "
                f"({type(e).__name__}: {reason(e)[:100]})"
            ) from e


def _compare(folder: Path, run: Any, texts: list[str] | None) -> dict[str, Any]:
    """Compares as `nearness.compare` does; a model with a head, or of texts and images, by what it gives in the end."""
    with exports.quiet(), contextlib.redirect_stderr(io.StringIO()):  # compressed-tensors shows a bar in the first pass
        if kind_of(folder) == "encoder" and len(modalities_of(folder)) == 1:
            encoder: Any = load_with_head(folder, backend="reference", device="cpu")
            with contextlib.suppress(InputError):
                check_encoder(encoder, folder, "", pooled=False)
                return nearness.compare(folder, run, texts, activation_bits=UNROUNDED)
        return _compare_outputs(folder, run.model, nearness.sentences() if texts is None else texts)


def _compare_outputs(folder: Path, model: Any, texts: list[str]) -> dict[str, Any]:
    encoder = load_with_head(folder, backend="reference", device="cpu")
    nearness.leave_activations(encoder, UNROUNDED)
    expected = vectors_of(encoder, folder, texts)
    _exchange(encoder, backbone(encoder), model)
    found = vectors_of(encoder, folder, texts)
    cosines = np.concatenate([(units(found[kind]) * units(expected[kind])).sum(axis=1) for kind in expected])
    named = {"cross-encoder": "scores, as one vector"}.get(
        kind_of(folder), " and ".join(f"{kind}s" for kind in expected)
    )
    return {
        "inputs": named,
        "count": len(texts) if kind_of(folder) == "cross-encoder" else len(cosines),
        "mean_cosine": round(float(cosines.mean()), 6),
        "lowest_cosine": round(float(cosines.min()), 6),
        "threads": torch.get_num_threads(),
        "milliseconds": {},
    }


def _exchange(encoder: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts a model in the place of another one, wherever the modules around it refer to it."""
    for parent in list(encoder.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
