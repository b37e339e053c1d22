"""Opens an index folder for `ternarize serve --index`. Only the command imports this module, which needs FAISS."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ternarize_cli.errors import InputError, UnavailableError
from ternarize_cli.index.documents import Documents
from ternarize_cli.index.format import read_deleted, read_info
from ternarize_cli.index.search import Searcher
from ternarize_cli.serve.search_api import Found
from ternarize_cli.storage import digests
from ternarize_cli.vectors.options import EncoderOptions
from ternarize_cli.vectors.runtime_encoder import RuntimeEncoder

__all__ = ["IndexFolder"]

_AT_ONCE = 16
"""Queries that FAISS gets in one call: of 20 on, it computes products in another way, with other last bits."""
_PART = 4096
"""Documents that are read in one go, to learn their ids."""


class IndexFolder:
    """An index of texts as it was when it was opened, with the model of its queries.

    Attributes:
        count: the number of documents.
    """

    def __init__(self, folder: Path, models: Mapping[str, Path], threads: int | None = None) -> None:
        """Opens an index.

        Args:
            folder: the index folder.
            models: the folders of served models; the one that made the index encodes queries. If none did, the model
                that the index records does.
            threads: CPU threads; None: all cores.

        Raises:
            DataError: the index is damaged.
            InputError: the index is of images, or its model is gone or has changed.
            UnavailableError: the model can't run without PyTorch.
        """
        info = read_info(folder)
        if info.kind != "text":
            raise InputError(f"{folder} is an index of images, and the server searches texts", hint="leave --index out")
        own = (str(model) for model in models.values() if digests.content_hash(model) == info.model_sha256)
        encoder = EncoderOptions(backend="native", device="cpu", threads=threads)
        self._searcher = Searcher(folder, model=next(own, None), encoder=encoder)
        if not isinstance(self._searcher.encode, RuntimeEncoder):
            raise UnavailableError(
                f"the model of {folder} runs in PyTorch only, which the server does without",
                hint="pack the model, and build the index with the packed one",
            )
        self._documents, dead = Documents(folder), read_deleted(folder, self._searcher.info)
        if read_info(folder) != self._searcher.info:
            raise InputError(f"{folder} was changed while it was opened", hint="start the server again")
        self._live = np.setdiff1d(np.arange(self._searcher.info.count), dead)
        self._rows: dict[str, int] | None = None
        self.count = len(self._live)

    def search(self, queries: Sequence[str], k: int) -> list[list[Found]]:
        """Finds up to `k` documents for each query, best first."""
        found = []
        for first in range(0, len(queries), _AT_ONCE):
            some = self._searcher.search(queries[first : first + _AT_ONCE], k)
            found += [[Found(hit.id, hit.score, hit.text) for hit in hits] for hits in some]
        return found

    def by_id(self, ids: Sequence[str]) -> list[tuple[str, str] | None]:
        """Returns the id and text of each document; None where there is none of that id."""
        if self._rows is None:
            self._rows = {}
            for first in range(0, self.count, _PART):
                part = self._documents.of_rows(self._live[first : first + _PART].tolist())
                self._rows |= {identity: row for row, (identity, _) in part.items()}
        rows = [self._rows.get(identity) for identity in ids]
        found = self._documents.of_rows({row for row in rows if row is not None})
        return [None if row is None else found[row] for row in rows]

    def page(self, offset: int, limit: int) -> list[tuple[str, str]]:
        """Returns the id and text of up to `limit` documents, behind the first `offset` ones."""
        rows = self._live[offset : offset + limit].tolist()
        found = self._documents.of_rows(rows)
        return [found[row] for row in rows]
