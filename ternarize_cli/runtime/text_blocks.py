"""A text encoder: embeddings and blocks, from ids of tokens to the last hidden states."""

from collections.abc import Sequence

import numpy as np

from ternarize_cli.errors import CheckpointError, InputError
from ternarize_cli.format.block import Block
from ternarize_cli.runtime.blocks import Blocks, norm_weights
from ternarize_cli.runtime.native.library import Library
from ternarize_cli.runtime.packed_file import FileSource, PackedFile, Table
from ternarize_cli.runtime.tokenizing import Tokens

__all__ = ["TextBlocks"]


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

    def _rows(self, texts: Sequence[Tokens], lengths: np.ndarray) -> list[np.ndarray]:
        """Lists for each table the rows that are looked up: int64 `[tokens]` each."""
        words = np.fromiter((i for text in texts for i in text.ids), dtype=np.int64, count=int(lengths.sum()))
        found = [words]
        if self._given.types is not None:
            types = np.fromiter((t for text in texts for t in text.types), dtype=np.int64, count=len(words))
            found.append(types)
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
