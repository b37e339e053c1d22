"""Encodes texts with an export as its users do: in a runtime of others, in an environment that need not have ternarize.

    python docs/results/encode_elsewhere.py RUNTIME EXPORT TEXTS VECTORS

TEXTS is a JSON list. VECTORS becomes a file of NumPy, float32 [texts, dim]. The versions of the packages that ran are
printed as JSON. sentence-transformers puts the model's default prompt in front of texts, and the others do not.
"""

import json
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np

BATCH = 16
Encode = Callable[[Path, list[str]], Iterable[object]]


def by_sentence_transformers(backend: str) -> Encode:
    """Makes the encoding by a backend of sentence-transformers."""

    def encode(export: Path, texts: list[str]) -> Iterable[object]:
        from sentence_transformers import SentenceTransformer

        found: Iterable[object] = SentenceTransformer(str(export), backend=backend, device="cpu").encode(
            texts, batch_size=BATCH
        )
        return found

    return encode


def by_fastembed(export: Path, texts: list[str]) -> Iterable[object]:
    """Encodes by a custom model of fastembed, read from the folder; pooling is the mean, and vectors have length 1."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    dim = json.loads((export / "config.json").read_text())["hidden_size"]
    TextEmbedding.add_custom_model(
        model="ternary",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="ternary"),
        dim=dim,
        model_file="onnx/model.onnx",
    )
    return TextEmbedding("ternary", specific_model_path=str(export)).embed(texts, batch_size=BATCH)


def by_llama(export: Path, texts: list[str]) -> Iterable[object]:
    """Encodes by llama-cpp-python's own call, which also makes the tokens."""
    from llama_cpp import Llama

    model = Llama(str(next(export.glob("*.gguf"))), embedding=True, n_ctx=512, n_batch=512, verbose=False)
    found: Iterable[object] = model.embed(texts, normalize=True)
    return found


RUNTIMES: dict[str, tuple[Encode, tuple[str, ...]]] = {
    "onnx": (
        by_sentence_transformers("onnx"),
        ("sentence-transformers", "transformers", "optimum-onnx", "onnxruntime", "torch"),
    ),
    "openvino": (
        by_sentence_transformers("openvino"),
        ("sentence-transformers", "transformers", "optimum-intel", "openvino", "torch"),
    ),
    "torch": (
        by_sentence_transformers("torch"),
        ("sentence-transformers", "transformers", "compressed-tensors", "torch"),
    ),
    "fastembed": (by_fastembed, ("fastembed", "onnxruntime")),
    "llama": (by_llama, ("llama-cpp-python",)),
}
"""How each runtime encodes, and its packages."""


def main() -> None:
    """Encodes, writes and prints."""
    runtime, export, texts, vectors = sys.argv[1:]
    encode, packages = RUNTIMES[runtime]
    made = encode(Path(export), json.loads(Path(texts).read_text("utf-8")))
    np.save(vectors, np.asarray(list(made), np.float32))
    print(json.dumps({name: version(name) for name in packages}))


if __name__ == "__main__":
    main()
