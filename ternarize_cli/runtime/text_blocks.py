"""A text encoder: embeddings and blocks, from ids of tokens to the last hidden states."""

from collections.abc import Mapping, Sequence
from itertools import chain
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ternarize_cli.errors import CheckpointError, FormatError, InputError, UnavailableError, named, shown
from ternarize_cli.format.block import Block
from ternarize_cli.runtime.blocks import BATCH_TOKENS, Blocks, head_refusal, norm_weights
from ternarize_cli.runtime.native.library import Library, library
from ternarize_cli.runtime.packed_file import IN_TORCH, FileSource, PackedFile, Table, packed_artifact
from ternarize_cli.runtime.tensor_file import open_tensors
from ternarize_cli.runtime.tokenizing import TextTokenizer, Tokens, read_tokenizer
from ternarize_cli.runtime.transformer_settings import LAST_HIDDEN_STATES, read_settings
from ternarize_cli.storage.bounds import read_object

__all__ = ["PackedText", "TextBlocks", "batches", "open_text"]


class PackedText(NamedTuple):
    """What a packed model has that reads texts.

    Attributes:
        folder: the model's folder.
        config: what config.json holds.
        file: its weights.
        blocks: its embeddings and blocks.
        tokenizer: its tokenizer.
    """

    folder: Path
    config: Mapping[str, Any]
    file: PackedFile
    blocks: "TextBlocks"
    tokenizer: TextTokenizer


def open_text(folder: Path, task: str = "feature-extraction", stack: str = "") -> PackedText:
    """Reads the weights and the tokenizer of a packed model that reads texts.

    Args:
        folder: the model's folder.
        stack: the name of the stack of blocks that reads texts, such as "text_model"; "" for the encoder itself.
        task: the `transformer_task` of sentence-transformers that the model must have.

    Raises:
        CheckpointError: a file is missing or damaged (FormatError: the weights or their description).
        UnavailableError: the compiled library is missing, or the model asks for something that this runtime does not
            do, which the message names.
    """
    config = read_object(folder / "config.json")
    artifact = packed_artifact(config.get("quantization_config"), str(folder))
    block = artifact.block.get(stack)
    if block is None:
        raise UnavailableError(
            f"{folder} has no description of its blocks, which runs without PyTorch",
            hint=f"pack it again with this version; if it stays so, {IN_TORCH}",
        )
    if reason := artifact.torch_only or head_refusal(block):
        raise UnavailableError(f"{folder}: {reason}", hint=IN_TORCH)
    settings = read_settings(folder, config, task)
    if task == "feature-extraction" and not stack and settings.text_output != LAST_HIDDEN_STATES:
        what = f"{folder} takes {shown(settings.text_output)} of its model for texts"
        raise UnavailableError(what, hint=IN_TORCH)
    file = PackedFile(open_tensors(folder), artifact)
    prefix = f"{stack}." if stack else ""
    _check_names(file, block, prefix)
    blocks = TextBlocks(library(), file, block, prefix)
    tokenizer = read_tokenizer(folder, config, settings, blocks.longest)
    if tokenizer.pads_left and blocks.depends_on_padding(tokenizer.padding):
        raise UnavailableError(
            f"{folder} pads texts on the left, and has a table of positions: its vectors depend on the batch",
            hint=IN_TORCH,
        )
    return PackedText(folder, config, file, blocks, tokenizer)


class TextBlocks:
    """The embeddings and blocks of a text encoder, laid out for the compiled library.

    Attributes:
        width: the width of the hidden states.
        longest: the most tokens that there are positions for; None for any number.
    """

    def __init__(self, library: Library, file: PackedFile, block: Block, prefix: str = "") -> None:
        """Reads and lays out the weights.

        Args:
            library: the compiled library.
            file: the packed file.
            block: the description of the blocks.
            prefix: what the names of the modules begin with in the model, such as "text_model.".

        Raises:
            FormatError: the file lacks a tensor, or one has another shape or a wrong value.
            CheckpointError: the description has no embeddings.
        """
        given = block.embeddings
        if given is None:
            raise CheckpointError("the description of the blocks has no embeddings of texts", hint="pack it again")
        source = FileSource(file, block, prefix)
        self._library, self._given, self.width = library, given, block.width
        self._blocks = Blocks(library, source)
        names = [name for name in (given.words, given.types, given.positions) if name is not None]
        self._tables = [file.table(prefix + name, block.width) for name in names]
        self._scales = [self._aligned_scale(table, i) for i, table in enumerate(self._tables)]
        self._norm = norm_weights(source, None, "embeddings", block.width)
        positions = self._tables[-1] if given.positions is not None else None
        self.longest = None if positions is None else len(positions) - given.first_position

    def __call__(self, texts: Sequence[Tokens]) -> tuple[np.ndarray, np.ndarray]:
        """Encodes texts as one batch.

        Returns:
            The last hidden states of all texts, one after the other, float32 `[tokens, width]`; and the row where each
            text begins, then the row where the last ends, int32 `[texts + 1]`.

        Raises:
            InputError: a token is no row of the word table, or a text has more tokens than there are positions.
        """
        lengths = np.array([len(text.ids) for text in texts], dtype=np.int64)
        rows = self._rows(texts, lengths)
        x = self._embedded(rows)
        starts = self._blocks.encode_texts(x, lengths)
        return x, starts

    def depends_on_padding(self, padding: int | None) -> bool:
        """Returns whether a text's positions in PyTorch depend on padding at its left.

        Args:
            padding: the id of the padding token; None if it is not known.
        """
        first = self._given.first_position
        return self._given.positions is not None and (first == 0 or padding != first - 1)

    def _rows(self, texts: Sequence[Tokens], lengths: np.ndarray) -> list[np.ndarray]:
        """Lists for each table the rows that are looked up: int64 `[tokens]` each."""
        words = _numbers([text.ids for text in texts], lengths, "ids")
        found = [words]
        if self._given.types is not None:
            found.append(_numbers([text.types for text in texts], lengths, "types"))
        starts, first = np.cumsum(lengths) - lengths, self._given.first_position
        if self._given.positions is not None and first:  # counted without the padding token, as in RoBERTa
            real = (words != first - 1).astype(np.int64)
            counted = np.concatenate([[0], np.cumsum(real)])
            found.append((counted[1:] - np.repeat(counted[starts], lengths)) * real + first - 1)
        elif self._given.positions is not None:
            found.append(np.arange(len(words)) - np.repeat(starts, lengths))
        self._check(found, lengths)
        return found

    def _check(self, rows: list[np.ndarray], lengths: np.ndarray) -> None:
        if self.longest is not None and len(lengths) and int(lengths.max()) > self.longest:
            raise InputError(
                f"a text has {int(lengths.max()):,} tokens, and the model has positions for {self.longest:,}",
                hint="cut the text",
            )
        for table, some in zip(self._tables, rows, strict=True):
            if some.size and not 0 <= int(some.min()) <= int(some.max()) < len(table):
                wrong = int(some.max()) if int(some.min()) >= 0 else int(some.min())
                raise InputError(
                    f"a token has the id {wrong}, and the model's table has {len(table):,} rows",
                    hint="leave that token out of the text, or fetch the model again: its tokenizer may be another's",
                )

    def _embedded(self, rows: list[np.ndarray]) -> np.ndarray:
        """Computes the embeddings: float32 `[tokens, width]`."""
        if all(table.is_int8 for table in self._tables):
            tables = [(table.rows, scale) for table, scale in zip(self._tables, self._scales, strict=True)]
            return self._library.embed(tables, rows, self._norm)
        parts = [table.look_up(some) for table, some in zip(self._tables, rows, strict=True)]
        x = parts[0] * np.float32(self._given.factor)
        for part in parts[1:]:
            x += part
        if self._norm is not None:
            self._library.norm(self._norm, x)
        return x

    def _aligned_scale(self, table: Table, i: int) -> np.ndarray:
        """Returns the scales of a table as the library reads them, those of the words with the embedding's factor."""
        if table.scale is None or not table.is_int8:
            return np.zeros(0, dtype=np.float32)
        return np.require(table.scale * np.float32(self._given.factor if i == 0 else 1.0), np.float32, ["C", "A"])


def batches(texts: Sequence[Tokens]) -> list[list[int]]:
    """Cuts texts into batches of similar length, of 8,192 tokens at most; returns the places of the texts of each."""
    found: list[list[int]] = []
    room = 0
    for i in sorted(range(len(texts)), key=lambda i: -len(texts[i].ids)):
        length = len(texts[i].ids)
        if not found or length > room:
            found.append([])
            room = BATCH_TOKENS
        found[-1].append(i)
        room -= length
    return found


def _check_names(file: PackedFile, block: Block, prefix: str) -> None:
    """Checks that a file has the tensors of a stack of blocks, and that its linears are packed.

    Raises:
        UnavailableError: it lacks one, or has it by a name that is not known; or a linear is not packed.
    """
    given = block.embeddings
    tables = [] if given is None else [n for n in (given.words, given.types, given.positions) if n is not None]
    names = [*tables, *(block.norms[place].name for place in ("last", "embeddings") if place in block.norms)]
    names += [] if block.relative is None else [block.relative.name]
    linears = []
    for i in range(len(block)):
        where = f"{block.layers}.{i}."
        linears += [where + name for name in block.linears]
        names += [where + norm.name for norm in block.norms_of(i).values()]
    for name in (f"{prefix}{name}" for name in (*names, *linears)):
        if not _has(file, f"{name}.weight"):
            raise UnavailableError(
                f"{file.file.path} has no tensor {named(name)}.weight, or has it by a name that is not known here",
                hint=f"pack the model again with this version of ternarize, or {IN_TORCH}",
            )
    for name in (f"{prefix}{name}" for name in linears):
        if not file.is_packed(name):
            raise UnavailableError(f"{file.file.path}: {named(name)} is not packed", hint=IN_TORCH)


def _has(file: PackedFile, name: str) -> bool:
    try:
        return file.has(name)
    except FormatError:  # the names of several tensors end so
        return False


def _numbers(rows: Sequence[Sequence[int]], lengths: np.ndarray, what: str) -> np.ndarray:
    """Joins the ids, or the types, of the tokens of texts: int64 `[tokens]`.

    Raises:
        InputError: one is no whole number of 64 bits, or a text has not one for each of its tokens.
    """
    if any(len(row) != length for row, length in zip(rows, lengths.tolist(), strict=True)):
        raise InputError(f"a text has not as many {what} as tokens", hint="pass the tokens that tokenize gives")
    try:
        return np.fromiter(map(index, chain.from_iterable(rows)), dtype=np.int64, count=int(lengths.sum()))
    except (TypeError, OverflowError) as e:
        raise InputError(f"the {what} of a text's tokens are no whole numbers", hint="pass integers") from e
