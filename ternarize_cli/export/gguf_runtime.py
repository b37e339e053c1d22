"""Runs a GGUF file in llama.cpp, by the C functions that llama-cpp-python has, on the CPU."""

import ctypes
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["LlamaModel"]

_LEAST_TOKENS, _SEQUENCES = 1024, 16
_ERROR = 4
"""The level of errors among messages of ggml."""


class LlamaModel:
    """A GGUF file that is open in llama.cpp.

    Attributes:
        width: the number of dimensions of a vector.
    """

    def __init__(self, path: Path) -> None:
        """Opens a file.

        Raises:
            RuntimeError: llama.cpp can't read the file, or does not know the model.
        """
        import llama_cpp

        self._llama: Any = llama_cpp
        self._errors = _kept_errors()
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = 0
        model = llama_cpp.llama_model_load_from_file(bytes(path), settings)
        if not model:
            raise RuntimeError("; ".join(self._errors) or "llama_model_load_from_file gave nothing")
        self._model, self._vocabulary = model, llama_cpp.llama_model_get_vocab(model)
        self._contexts: list[Any] = []
        weakref.finalize(self, _free, llama_cpp, model, self._contexts)
        self.width: int = llama_cpp.llama_model_n_embd_out(model)
        self._most = 0

    def tokenize(self, text: str) -> list[int]:
        """Returns the ids of a text's tokens, with those that llama.cpp adds at the ends."""
        content = text.encode()
        count = len(content) + 8
        ids = (ctypes.c_int32 * count)()
        found = self._llama.llama_tokenize(self._vocabulary, content, len(content), ids, count, True, True)
        if found < 0:  # more tokens than bytes: the number that is needed, negated
            ids = (ctypes.c_int32 * -found)()
            found = self._llama.llama_tokenize(self._vocabulary, content, len(content), ids, -found, True, True)
        return list(ids[:found])

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Computes the pooled vectors of a batch.

        Args:
            batch: `input_ids` and, unless all tokens are real, `attention_mask`: int64 [texts, tokens].

        Returns:
            `sentence_embedding`: float32 [texts, width], not normalised.
        """
        ids = batch["input_ids"]
        mask = batch.get("attention_mask", torch.ones_like(ids)).bool()
        rows = [row[seen].numpy().astype(np.int32) for row, seen in zip(ids, mask, strict=True)]
        vectors: list[np.ndarray] = []
        while len(vectors) < len(rows):
            left = rows[len(vectors) :][:_SEQUENCES]
            sums = np.cumsum([len(row) for row in left])
            vectors += self._vectors(left[: max(1, int((sums <= _LEAST_TOKENS).sum()))])
        return {"sentence_embedding": torch.from_numpy(np.stack(vectors))}

    def _vectors(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Computes the vectors of texts in one call of llama.cpp."""
        llama, lengths = self._llama, [len(row) for row in rows]
        count = sum(lengths)
        self._make_room(count)
        tokens = np.concatenate(rows)
        positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
        ones, wanted = np.ones(count, np.int32), np.ones(count, np.int8)
        texts = np.repeat(np.arange(len(rows), dtype=np.int32), lengths)
        places = (texts.ctypes.data + 4 * np.arange(count)).astype(np.uintp)  # pointers to each token's text
        arrays = {"token": tokens, "pos": positions, "n_seq_id": ones, "seq_id": places, "logits": wanted}
        batch = llama.llama_batch(n_tokens=count)
        for name, kind in llama.llama_batch._fields_:
            if name in arrays:
                setattr(batch, name, ctypes.cast(arrays[name].ctypes.data, kind))
        llama.llama_memory_clear(llama.llama_get_memory(self._contexts[0]), True)
        if status := llama.llama_decode(self._contexts[0], batch):
            raise RuntimeError(f"llama_decode gave {status} for {count} tokens: {'; '.join(self._errors)}")
        found = [llama.llama_get_embeddings_seq(self._contexts[0], i) for i in range(len(rows))]
        return [np.ctypeslib.as_array(pointer, (self.width,)).copy() for pointer in found]

    def _make_room(self, tokens: int) -> None:
        """Makes a context for so many tokens, unless there is one."""
        if tokens <= self._most:
            return
        llama = self._llama
        self._most = max(tokens, _LEAST_TOKENS)
        settings = llama.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = self._most
        settings.n_seq_max, settings.kv_unified, settings.embeddings = _SEQUENCES, True, True
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        context = llama.llama_init_from_model(self._model, settings)
        if not context:
            raise RuntimeError("; ".join(self._errors) or "llama_init_from_model gave nothing")
        self._contexts.append(context)
        while len(self._contexts) > 1:
            llama.llama_free(self._contexts.pop(0))


def _free(llama: Any, model: Any, contexts: list[Any]) -> None:
    for context in contexts:
        llama.llama_free(context)
    llama.llama_model_free(model)


@cache
def _kept_errors() -> deque[str]:
    """Lets llama.cpp say nothing, and returns where its last errors are kept. It calls what it was given for ever."""
    import llama_cpp

    kept: deque[str] = deque(maxlen=3)

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def keep(level: int, text: bytes, _: object) -> None:
        if level == _ERROR:
            kept.append(text.decode(errors="replace").strip())

    llama_cpp.llama_log_set(keep, None)
    _callbacks.append(keep)
    return kept


_callbacks: list[Any] = []
