"""The format onnx: a folder that ONNX Runtime and the libraries on top of it open as they open a model of the hub.

    onnx/model.onnx      the model, one file; above 2 GB the weights are beside it in model.onnx_data
    config.json          the transformer's config, without our description of its codes
    tokenizer.json …     tokenizer, or image processor
    modules.json …       pooling, Dense (multiplied out) and normalisation, for sentence-transformers
    export.json          what was written, with which versions, and what `--check` has measured
    LICENSE…             the licences of the model and of ternarize

The graph's inputs are `input_ids`, `attention_mask` and, where the model has types of tokens, `token_type_ids`, all
int64 [batch, tokens], or `pixel_values`. Its output is `last_hidden_state`; with `--pooled` also `sentence_embedding`,
what the model's modules make of it. Weights are the packed model's, exactly (`engines.onnx_codes`).
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ternarize_cli import __version__
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.encoders.modalities import modalities_of
from ternarize_cli.engines import exports
from ternarize_cli.engines.onnx_codes import LayerCodes, put_codes
from ternarize_cli.engines.onnx_session import open_session
from ternarize_cli.errors import InputError, TernarizeError, UnavailableError, quoted, reason
from ternarize_cli.export import card, check
from ternarize_cli.export.companions import check_encoder, write_companions
from ternarize_cli.export.formats import Export, register
from ternarize_cli.export.licences import licence_texts
from ternarize_cli.export.options import ExportOptions
from ternarize_cli.export.source import Source
from ternarize_cli.model_folder.model_kind import require_kind
from ternarize_cli.storage.files import atomic_folder, check_output

__all__ = ["Onnx"]

_LIBRARIES = ("onnx", "onnxscript")
_INSTALL = "pip install onnx onnxscript onnxruntime"
_LARGEST = 2_000_000_000
"""The most bytes of a model in one file: one message of protobuf holds at most 2^31."""


@register
class Onnx:
    """Writes a folder for ONNX Runtime."""

    name = "onnx"
    options = frozenset({"pooled", "bits", "check", "texts", "min_cosine"})

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
            UnavailableError: onnx or onnxscript is not installed, or onnxruntime is not and `min_cosine` is set.
            OutputError, OutputExistsError: the output can't be written, or exists and `force` is false.
        """
        _check_options(options)
        require_kind(source.folder, "encoder")
        if len(modalities_of(source.folder)) > 1:
            raise InputError(f"{source.folder} reads texts and images, and --to onnx writes models of one of them")
        texts = check.texts_of(options, source.folder)
        files, licences = source.files(), licence_texts(source.folder)
        encoder: Any = load_encoder(source.folder, backend="reference", device="cpu")
        check_encoder(encoder, source.folder, "onnx", pooled=options.pooled)
        check_output(output, force=force, inputs=[source.folder])
        say(f"writing {output} …")
        with atomic_folder(output, force=force, inputs=[source.folder]) as folder:
            model, products = _graph(source.folder, folder, encoder, options)
            _write_model(model, folder / "onnx")
            # transformers.js looks for onnx/model_quantized.onnx otherwise
            write_companions(source, files, encoder, folder, {"transformers.js_config": {"dtype": "fp32"}})
            facts = _facts(source, model, products, options)
            runtime = check.Runtime("onnxruntime", partial(_open, folder), "install a newer onnxruntime, or --bits 4")
            facts["check"] = check.run_check(source.folder, runtime, texts, options, say)
            (folder / "export.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
            (folder / "README.md").write_text(card.for_onnx(source, facts), "utf-8")
            for name, text in licences.items():
                (folder / name).write_bytes(text)
        written = {path: path.stat().st_size for path in sorted(output.rglob("*")) if path.is_file()}
        gate = partial(check.check_gate, facts["check"], options.min_cosine)
        hint = f"{output}/README.md says how it is opened"
        return Export(written, hint, facts, gate)


def _check_options(options: ExportOptions) -> None:
    """Checks `bits`, and that the libraries that are needed are installed.

    Raises:
        InputError: `bits` is neither 2 nor 4.
        UnavailableError: a library is not installed.
    """
    if options.bits not in (2, 4):
        raise InputError(f"--bits {options.bits}: the operator MatMulNBits is written with 2 or 4", hint="--bits 2")
    needed = (*_LIBRARIES, *(("onnxruntime",) if options.min_cosine is not None else ()))
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise UnavailableError(f"--to onnx needs {', '.join(missing)}", hint=_INSTALL)


class _Pooling(nn.Module):
    """The modules of sentence-transformers behind the transformer."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.behind = nn.ModuleList(list(encoder)[1:])

    def forward(self, output: Any, mask: Tensor | None) -> Tensor:
        features = {"token_embeddings": output.last_hidden_state}
        if mask is not None:
            features["attention_mask"] = mask
        for module in self.behind:
            features = module(features)
        pooled: Tensor = features["sentence_embedding"] if len(self.behind) else output.pooler_output
        return pooled


def _graph(source: Path, folder: Path, encoder: Any, options: ExportOptions) -> tuple[Any, int]:
    """Makes the ONNX model, and counts its products of codes.

    Raises:
        InputError: the model can't be exported, or its codes can't be written.
    """
    import onnx

    layers = LayerCodes()
    pool = layers.dense(_Pooling(encoder)) if options.pooled else None
    with tempfile.TemporaryDirectory(dir=folder) as name:
        try:
            exports.write_onnx(source, Path(name), change=layers.dense, pool=pool, types=True)
        except (InputError, OSError, MemoryError):
            raise
        except Exception as e:  # the exporter runs the model's own code, which can raise any error
            why = str(e) if isinstance(e, TernarizeError) else f"{source} can't be exported to ONNX: {reason(e)}"
            raise InputError(why, hint=f"ternarize export {quoted(source)} --to wheel") from e
        model = onnx.load(Path(name) / "model.onnx")
    products = put_codes(model, layers, options.bits)
    if not products:
        raise InputError(f"no product in the ONNX export of {source} has packed weights")
    _name_sizes(model)
    return model, products


def _name_sizes(model: Any) -> None:
    """Names the free sizes as optimum does, and takes out what the exporter says of its own code."""
    graph = model.graph
    names: dict[str, str] = {}
    for value in graph.input:
        for size, name in zip(value.type.tensor_type.shape.dim, ("batch_size", "sequence_length"), strict=False):
            if size.dim_param:
                names[size.dim_param] = name
    for value in (*graph.input, *graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in names:
                size.dim_param = names[size.dim_param]
    del graph.value_info[:]
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def _write_model(model: Any, folder: Path) -> None:
    import onnx

    folder.mkdir()
    if model.ByteSize() > _LARGEST:
        onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx_data")
        onnx.checker.check_model(folder / "model.onnx")
        return
    onnx.checker.check_model(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))


def _facts(source: Source, model: Any, products: int, options: ExportOptions) -> dict[str, Any]:
    return {
        "content_hash": source.digest,
        "inputs": [value.name for value in model.graph.input],
        "outputs": [value.name for value in model.graph.output],
        "bits": options.bits,
        "products": products,
        "opset": next(opset.version for opset in model.opset_import if not opset.domain),
        "ir_version": model.ir_version,
        "versions": {"ternarize": __version__}
        | {name: version(name) for name in ("torch", "transformers", *_LIBRARIES)},
    }


def _open(folder: Path) -> check.Run:
    with exports.quiet():
        return partial(_run, open_session(folder / "onnx" / "model.onnx"))


def _run(session: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Runs a batch, of which an input that is missing is zeros: types of tokens, which few tokenizers give."""
    fed = {}
    for entry in session.get_inputs():
        given = batch.get(entry.name)
        fed[entry.name] = (torch.zeros_like(batch["input_ids"]) if given is None else given).numpy()
    names = [entry.name for entry in session.get_outputs()]
    return {name: torch.from_numpy(value) for name, value in zip(names, session.run(None, fed), strict=True)}
