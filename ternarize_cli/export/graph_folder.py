"""The folder of a format that is made of the ONNX graph: what the formats onnx and openvino have in common.

onnx/, openvino/     the model, as the format writes it
config.json          the transformer's config, without our description of its codes
tokenizer.json …     tokenizer, or image processor
modules.json …       pooling, Dense (multiplied out) and normalisation, for sentence-transformers
README.md …          the last files of each export (`export_folder`)
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from ternarize_cli import __version__
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.encoders.modalities import modalities_of
from ternarize_cli.errors import InputError, UnavailableError
from ternarize_cli.export import check
from ternarize_cli.export.companions import check_encoder, write_companions
from ternarize_cli.export.export_folder import complete
from ternarize_cli.export.formats import Export
from ternarize_cli.export.licences import licence_texts
from ternarize_cli.export.nearness import Run
from ternarize_cli.export.onnx_graph import make_graph
from ternarize_cli.export.options import ExportOptions
from ternarize_cli.export.source import Source
from ternarize_cli.model_folder.model_kind import require_kind
from ternarize_cli.storage.files import atomic_folder, check_output

__all__ = ["GraphFolder", "fed"]


class GraphFolder(ABC):
    """Writes a folder with a model that is made of the ONNX graph.

    Attributes:
        libraries: the libraries that are needed to write it.
        runtime: the library that runs it.
        hint: what a user may do if the runtime can't run it.
        rival: the runtime's int8, which the check times beside it.
        config: keys that config.json gets.
    """

    name: str
    options = frozenset({"pooled", "bits", "check", "texts", "min_cosine"})
    libraries: ClassVar[tuple[str, ...]]
    runtime: ClassVar[str]
    hint: ClassVar[str]
    rival: ClassVar[str]
    config: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def place(self, model: Any, folder: Path) -> None:
        """Writes an `onnx.ModelProto` into the folder of the export, in the form and the place of the format."""

    @abstractmethod
    def open(self, folder: Path) -> Run:
        """Opens the model in the folder of the export."""

    @abstractmethod
    def card(self, source: Source, facts: Mapping[str, Any]) -> str:
        """Makes the README of a model, of what export.json holds."""

    def write(
        self, source: Source, output: Path, options: ExportOptions, *, force: bool, say: Callable[[str], None]
    ) -> Export:
        """Writes the folder.

        Args:
            source: the model.
            output: the folder to write.
            options: the options, of which only `pooled`, `bits` and those of the check may be set.
            force: replace a folder that exists.
            say: is told what is written when all arguments have been checked.

        Raises:
            InputError: an option has a value that can't be used, the model gives no vectors, or torch can't export it.
            UnavailableError: a library that writes is not installed, or the runtime is not and `min_cosine` is set.
            OutputError, OutputExistsError: the output can't be written, or exists and `force` is false.
        """
        self._check_options(options)
        require_kind(source.folder, "encoder")
        if len(modalities_of(source.folder)) > 1:
            raise InputError(
                f"{source.folder} reads texts and images, and --to {self.name} writes models of one of them"
            )
        texts = check.texts_of(options, source.folder)
        files, licences = source.files(), licence_texts(source.folder)
        encoder: Any = load_encoder(source.folder, backend="reference", device="cpu")
        check_encoder(encoder, source.folder, self.name, pooled=options.pooled)
        check_output(output, force=force, inputs=[source.folder])
        say(f"writing {output} …")
        with atomic_folder(output, force=force, inputs=[source.folder]) as folder:
            model, products = make_graph(source.folder, folder, encoder, bits=options.bits, pooled=options.pooled)
            self.place(model, folder)
            write_companions(source, files, encoder, folder, self.config)
            facts = self._facts(source, model, products, options)
            runtime = check.Runtime(self.runtime, partial(self.open, folder), self.hint, rival=self.rival)
            facts["check"] = check.run_check(source.folder, runtime, texts, options, say)
            facts = complete(folder, facts, self.card(source, facts), licences)
        return check.exported(output, facts, options)

    def _check_options(self, options: ExportOptions) -> None:
        """Checks `bits`, and that the libraries that are needed are installed.

        Raises:
            InputError: `bits` is neither 2 nor 4.
            UnavailableError: a library is not installed.
        """
        if options.bits not in (2, 4):
            raise InputError(f"--bits {options.bits}: products are written with codes of 2 or 4", hint="--bits 2")
        needed = dict.fromkeys((*self.libraries, *((self.runtime,) if options.min_cosine is not None else ())))
        missing = [name for name in needed if find_spec(name) is None]
        if missing:
            install = " ".join(dict.fromkeys((*self.libraries, self.runtime)))
            raise UnavailableError(f"--to {self.name} needs {', '.join(missing)}", hint=f"pip install {install}")

    def _facts(self, source: Source, model: Any, products: int, options: ExportOptions) -> dict[str, Any]:
        return {
            "content_hash": source.digest,
            "inputs": [value.name for value in model.graph.input],
            "outputs": [value.name for value in model.graph.output],
            "bits": options.bits,
            "products": products,
            "opset": next(opset.version for opset in model.opset_import if not opset.domain),
            "ir_version": model.ir_version,
            "versions": {"ternarize": __version__}
            | {name: version(name) for name in ("torch", "transformers", *self.libraries)},
        }


def fed(names: list[str], batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """Gives the inputs of a graph as arrays; one that is missing is zeros: types of tokens, which few tokenizers give.

    Args:
        names: the names of the inputs.
        batch: tensors by their names in transformers.
    """
    return {
        name: (batch[name] if name in batch else torch.zeros_like(batch["input_ids"])).contiguous().numpy()
        for name in names
    }
