"""Tokenises a corpus with a model's tokenizer and prompts, without truncation.

sentence-transformers puts a prompt before a text, and a token may cover the end of the prompt and the start of the
text. So a text is tokenised without prompt, and its first words once more behind each of the model's prompts.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ternarize_cli.data.texts import STDIN, read_texts, text_files
from ternarize_cli.errors import CheckpointError, DataError, reason, shown
from ternarize_cli.model_folder.folder_check import LOADING
from ternarize_cli.storage.bounds import MAX_TOKENIZER, optional_object, read_bytes, require_regular, user_path
from ternarize_cli.storage.library_output import library_output

__all__ = [
    "batches",
    "corpus_files",
    "encode",
    "explain_tokenizer",
    "inputs",
    "load_tokenizer",
    "teacher_ids",
    "words",
]

_BATCH = 512
_HEAD = 32


def explain_tokenizer(folder: Path) -> None:
    """Opens the tokenizer.json of a folder that could not be loaded, and says so if it is damaged.

    sentence-transformers opens it through AutoProcessor, which reports a damaged tokenizer as an unknown class.

    Raises:
        CheckpointError: tokenizers can't read the file.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    try:
        Tokenizer.from_str(read_bytes(path, limit=MAX_TOKENIZER).decode())
    except Exception as e:  # tokenizers raises plain Exceptions
        raise CheckpointError(f"{path} is no tokenizer: {reason(e)}", hint="fetch the file again") from e


def load_tokenizer(folder: Path) -> Any:
    """Loads a folder's fast tokenizer with `AutoTokenizer`, and turns off truncation and padding.

    Raises:
        CheckpointError: the folder has no fast tokenizer, or its files are damaged.
    """
    from tokenizers.normalizers import Lowercase
    from tokenizers.normalizers import Sequence as Normalizers
    from transformers import AutoTokenizer

    try:
        with library_output(to_stderr=True):
            tokenizer = AutoTokenizer.from_pretrained(folder, **LOADING)
    except Exception as e:  # damaged tokenizer files can raise any error
        text = " ".join(f"{type(e).__name__}: {e}".split())[:240]
        raise CheckpointError(f"the tokenizer of {folder} can't be loaded: {text}", hint="fetch the files again") from e
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(f"{folder} has no fast tokenizer, and no other can be trimmed")
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    if _settings(folder, "sentence_bert_config.json").get("do_lower_case"):
        backend.normalizer = Normalizers([Lowercase(), *([backend.normalizer] if backend.normalizer else [])])
    return tokenizer


def corpus_files(paths: Iterable[str | Path]) -> Iterator[Path]:
    """Yields the files of a corpus; a folder stands for every .txt, .jsonl and .ndjson in it, compressed or not.

    Raises:
        DataError: a path is stdin or a pipe, which can't be read twice, is missing, or is a folder without such files.
    """
    for path in map(user_path, paths):
        if str(path) == STDIN:
            raise DataError("the corpus of a vocabulary can't be stdin: it is read twice", hint="write it to a file")
        if not os.path.isdir(path):
            if os.path.exists(path):  # `read_texts` raises the error for a missing file
                require_regular(path, DataError)
            yield path
            continue
        found = text_files(path)
        if not found:
            raise DataError(f"{path} holds no .txt and no .jsonl file", hint="one text per line, or JSONL with `text`")
        yield from found


def inputs(model: Path, files: Iterable[Path]) -> Iterator[str]:
    """Yields the texts of some files as the model gets them: without prompt, and their first words behind each prompt.

    Raises:
        DataError: a file can't be read or holds no usable text (see `texts.read_texts`).
        CheckpointError: the model's prompts are no texts.
    """
    name = "config_sentence_transformers.json"
    named = _settings(model, name).get("prompts") or {}
    if not isinstance(named, dict) or not all(isinstance(prompt, str) for prompt in named.values()):
        raise CheckpointError(f"{model / name}: prompts are {shown(named)}, not texts", hint="fetch the file again")
    prompts = dict.fromkeys(named.values())
    for file in files:
        for document in read_texts(file):
            yield document.text
            end = next((i for i, c in enumerate(document.text) if i > _HEAD and c.isspace()), None)
            yield from (prompt + document.text[:end] for prompt in prompts if prompt)


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Cuts texts into lists of some hundred, which `encode` handles efficiently."""
    rest = iter(texts)
    while batch := list(islice(rest, _BATCH)):
        yield batch


def encode(tokenizer: Any, texts: Sequence[str]) -> list[np.ndarray]:
    """Tokenises texts: for each text its ids, special tokens included, int64 `[tokens]`."""
    return [np.array(e.ids, dtype=np.int64) for e in tokenizer.backend_tokenizer.encode_batch_fast(list(texts))]


def teacher_ids(student: Any, teacher: Any) -> Tensor:
    """Maps each id of a student's tokenizer to the teacher's id of that token: int64 `[ids]`.

    Raises:
        CheckpointError: the teacher lacks a token.
    """
    tokens, known = student.get_vocab(), teacher.get_vocab()
    if missing := [token for token in tokens if token not in known]:
        raise CheckpointError(
            f"the student's vocabulary of {len(tokens)} is no part of the teacher's of {len(known)}: {missing[0]!r}",
            hint="the teacher is the full-precision model that the student was converted from",
        )
    ids = torch.zeros(max(tokens.values()) + 1, dtype=torch.int64)
    for token, i in tokens.items():
        ids[i] = known[token]
    return ids


def words(tokenizer: Any, text: str) -> list[str]:
    """Splits a text into the words that the tokenizer passes to its model."""
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)] if backend.pre_tokenizer else [text]


def _settings(folder: Path, name: str) -> dict[str, Any]:
    return optional_object(folder / name)
