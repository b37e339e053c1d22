"""Indexes as Python users open them."""

from pathlib import Path

from ternarize_cli.index.options import SearchOptions
from ternarize_cli.index.search import Searcher
from ternarize_cli.vectors.options import EncoderOptions

__all__ = ["open_index"]


def open_index(
    folder: str | Path,
    *,
    model: str | Path | None = None,
    asymmetric: bool = False,
    options: SearchOptions | None = None,
    encoder: EncoderOptions | None = None,
) -> Searcher:
    """Opens an index with the model that made it.

        hits = ternarize.open_index("my-index").search(["a query"], k=10)   # a list of hits for each query
        hits[0][0].id, hits[0][0].score, hits[0][0].text

    Args:
        folder: as `build_index` wrote it.
        model: the index's own model in another place, or a student of it; None: the recorded model.
        asymmetric: take any model whose vectors are as wide.
        options: how thoroughly to search; None: as `index tune` stored it.
        encoder: how queries are encoded; None: `EncoderOptions()`.

    Returns:
        An open index; `search(queries, k)` takes texts, or PIL images for an index of images.

    Raises:
        DataError: the index is missing or damaged.
        InputError: the model is gone or is another one, or an index of this kind has no such setting.
    """
    name = None if model is None else str(model)
    knobs, how = (options or SearchOptions()).knobs, encoder or EncoderOptions()
    return Searcher(Path(folder), model=name, asymmetric=asymmetric, settings=knobs, encoder=how)
