"""ternarize: any encoder, with every linear weight in {-1, 0, +1}.

    import ternarize_cli as ternarize

    ternarize.convert("my-model", "my-model-ternary")
    ternarize.distill("my-model-ternary", "texts.txt", "my-model-distilled", teacher="my-model")
    ternarize.pack("my-model-distilled", "my-model-packed")
    vectors = ternarize.load("my-model-packed").encode(["a text", "another one"])

A model is named as on the command line: a folder, a hub id, or `package:NAME` for a checkpoint carried by an installed
Python package. Errors are subclasses of `ternarize_cli.errors.TernarizeError`. What takes many options takes a frozen
dataclass of them, whose fields are the options of the command of that name.

Importing this package is cheap: torch, transformers and numpy are loaded by the first call. Where it is installed,
`AutoModel.from_pretrained` and `SentenceTransformer` open our models themselves (`encoders.import_hook`).
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.2.0"
__all__ = [
    "Calibration",
    "CompressOptions",
    "ConvertOptions",
    "DistillOptions",
    "EncoderOptions",
    "EvaluationOptions",
    "ExportOptions",
    "IndexOptions",
    "PublishOptions",
    "Scheme",
    "SearchOptions",
    "Training",
    "__version__",
    "build_index",
    "compress",
    "convert",
    "distill",
    "evaluate",
    "export",
    "load",
    "open_index",
    "pack",
    "publish",
    "register_in_mteb",
]

_MODULES = {
    "Calibration": "compress.options",
    "CompressOptions": "pipeline.options",
    "ConvertOptions": "compress.options",
    "DistillOptions": "distill.options",
    "EncoderOptions": "vectors.options",
    "EvaluationOptions": "evaluation.options",
    "ExportOptions": "export.options",
    "IndexOptions": "index.options",
    "PublishOptions": "publish.options",
    "Scheme": "format.scheme",
    "SearchOptions": "index.options",
    "Training": "distill.options",
    "build_index": "index.build",
    "compress": "pipeline.session",
    "convert": "compress.session",
    "distill": "distill.session",
    "evaluate": "evaluation.session",
    "export": "export.session",
    "load": "encoders.loading",
    "open_index": "index.session",
    "pack": "compress.session",
    "publish": "publish.session",
    "register_in_mteb": "evaluation.registration",
}
"""Where the names of the face are. Type checkers read them in `__init__.pyi`: imports here, even those that only a type
checker runs, would make a cycle of the modules that take `__version__` from this one."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


class _Face(ModuleType):
    """This module. The import system binds the package `distill` to it, which must not hide the function `distill`."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in _MODULES):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
