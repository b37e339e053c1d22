"""Calls the functions of ternarize.h from Python, as a program in C calls them."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ternarize_cli.export.c import weights_of
from ternarize_cli.format.scheme import Artifact
from ternarize_cli.runtime import native
from ternarize_cli.runtime.encoder import Encoder
from ternarize_cli.runtime.tokenizing import Tokens
from ternarize_cli.storage.bounds import read_object

__all__ = ["LIBRARY", "CModel", "RefusedError", "save_weights"]

LIBRARY = next(
    (path for folder in native.__path__ if (path := Path(folder) / "libternarize_alone.so.1").is_file()), None
)
"""The library with threads of its own; None if it is not built."""


def save_weights(packed: Path, path: Path) -> Encoder:
    """Writes the file of weights of a packed model, and returns the model in the runtime."""
    encoder = Encoder(packed)
    block = Artifact.from_dict(read_object(packed / "config.json")["quantization_config"]).block[""]
    path.write_bytes(weights_of(encoder, block)[0])
    return encoder


class RefusedError(Exception):
    """A function failed; the message is what tz_why says."""


class CModel:
    """A model that the library has opened from a file of weights."""

    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(LIBRARY))
        self.c.tz_why.restype = ctypes.c_char_p
        self.c.tz_model_open.restype, self.c.tz_model_open.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
        pointers = [ctypes.c_void_p] * 3
        self.c.tz_model_encode.argtypes = [*pointers, ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
        for name in ("dim", "limit", "close"):
            getattr(self.c, f"tz_model_{name}").argtypes = [ctypes.c_void_p]
        self.handle = self.c.tz_model_open(bytes(path))
        if not self.handle:
            raise RefusedError(self.why())
        self.dim, self.limit = self.c.tz_model_dim(self.handle), self.c.tz_model_limit(self.handle)

    def __del__(self) -> None:
        self.c.tz_model_close(self.handle)

    def why(self) -> str:
        """What the last failed call says."""
        said: bytes = self.c.tz_why()
        return said.decode()

    def encode(self, texts: Sequence[Tokens], threads: int = 0) -> np.ndarray:
        """Encodes texts: float32 `[texts, dim]`."""
        ids = np.array([i for text in texts for i in text.ids], np.int32)
        starts = np.cumsum([0, *(len(text.ids) for text in texts)], dtype=np.int32)
        out = np.full((len(texts), self.dim), np.nan, np.float32)
        code = self.call(ids.ctypes.data, starts.ctypes.data, len(texts), out.ctypes.data, threads)
        if code:
            raise RefusedError(self.why())
        return out

    def call(self, ids: int | None, starts: int | None, sequences: int, out: int | None, threads: int) -> int:
        """Calls tz_model_encode, and returns its code."""
        code: int = self.c.tz_model_encode(self.handle, ids, starts, sequences, out, threads)
        return code
