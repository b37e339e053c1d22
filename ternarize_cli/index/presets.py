"""Kinds of index by name, as FAISS factory strings that fit the corpus.

    flat        every vector as it is; exact
    hnsw        a graph of neighbours over whole vectors (HNSW32): fast and nearly exact, the most memory
    ivf         whole vectors in clusters, of which a search looks into some
    ivf-pq      clusters of product-quantised vectors, a bit a dimension, and int8 vectors that rank what they find
    ivf-rabitq  clusters of vectors of one bit a dimension (RaBitQ, arXiv 2405.12497), and int8 vectors that rank
    binary      the signs of the rotated vector, compared by Hamming distance, and int8 vectors that rank
    lsh         the signs of two random projections a dimension, and nothing else: the LSH of arXiv 2411.15438
    auto        flat up to 10,000 vectors, then hnsw; ivf or ivf-rabitq where memory is short

The number of clusters is about 4·√n, the lower end of what FAISS's authors advise, a power of two, and at most one for
39 vectors, below which FAISS warns; 16,384 or more are found through a graph of their own.
"""

import math

from ternarize_cli.errors import InputError

__all__ = ["PRESETS", "bytes_of", "clusters", "factory_of"]

PRESETS = ("auto", "flat", "hnsw", "ivf", "ivf-pq", "ivf-rabitq", "binary", "lsh")
_FEW = 10_000
_PER_CLUSTER = 39
_MANY_CLUSTERS = 16_384
_HAMMING = ("binary", "lsh")  # FAISS has these with metric l2 only, which orders vectors of length 1 as ip does
_LINKS = 32
_PQ_CODES = 16


def clusters(count: int) -> int:
    """Chooses the number of clusters for `count` vectors."""
    wanted: int = 2 ** round(math.log2(max(1.0, 4 * math.sqrt(count))))
    while wanted > 1 and wanted * _PER_CLUSTER > count:
        wanted //= 2
    return wanted


def bytes_of(preset: str, count: int, dim: int) -> int:
    """Estimates how many bytes the index of a preset takes; it takes as many in memory as on disk."""
    each = {
        "flat": 4 * dim,
        "hnsw": 4 * dim + 8 * _LINKS + 16,
        "ivf": 4 * dim + 8,
        "ivf-pq": dim // 8 + dim + 8,
        "ivf-rabitq": dim // 8 + 8 + dim + 8,
        "binary": dim // 8 + dim,
        "lsh": dim // 4,
    }[preset]
    centroids = 4 * dim * clusters(count) if preset.startswith("ivf") else 0
    rotation = {"lsh": 8 * dim * dim, "binary": 4 * dim * dim, "ivf-rabitq": 4 * dim * dim}.get(preset, 0)
    return count * each + centroids + rotation


def factory_of(
    name: str, count: int, dim: int, *, normalized: bool = True, memory: int | None = None
) -> tuple[str, str, str | None]:
    """Turns the name of a preset into a FAISS factory string.

    Args:
        name: one of `PRESETS`, or a FAISS factory string, which is returned unchanged.
        count: number of vectors.
        dim: number of their dimensions.
        normalized: whether they have length 1.
        memory: bytes that `auto` may use; None sets no limit.

    Returns:
        The preset's name ("" for a factory string), the factory string, and the metric that it needs ("l2" or None).

    Raises:
        InputError: the preset does not suit `count` or `dim`, or needs vectors of length 1, or nothing fits `memory`.
    """
    if name not in PRESETS:
        return "", name, None
    if name == "auto":
        name = _fitting(count, dim, memory)
    if name == "ivf-pq" and dim % 4:
        raise InputError(
            f"the preset ivf-pq needs a multiple of 4 dimensions, and there are {dim}", hint="--factory ivf-rabitq"
        )
    if name == "ivf-pq" and count < _PQ_CODES:
        raise InputError(f"the preset ivf-pq needs {_PQ_CODES} vectors, and there are {count}", hint="--factory flat")
    if name in _HAMMING and not normalized:
        raise InputError(
            f"the preset {name} needs vectors of length 1, and this model's vectors have other lengths",
            hint="--factory hnsw",
        )
    number = clusters(count)
    lists = f"IVF{number}_HNSW32" if number >= _MANY_CLUSTERS else f"IVF{number}"
    factory = {
        "flat": "Flat",
        "hnsw": f"HNSW{_LINKS}",
        "ivf": f"{lists},Flat",
        "ivf-pq": f"{lists},PQ{dim // 4}x4fsr,Refine(SQ8)",
        "ivf-rabitq": f"RR{dim},{lists},RaBitQ,Refine(SQ8)",
        "binary": "LSHrt,Refine(SQ8)",
        "lsh": f"LSH{2 * dim}r",
    }[name]
    return name, factory, "l2" if name in _HAMMING else None


def _fitting(count: int, dim: int, memory: int | None) -> str:
    wanted = ("flat" if count <= _FEW else "hnsw", "ivf", "ivf-rabitq")
    for preset in wanted:
        if memory is None or bytes_of(preset, count, dim) <= memory:
            return preset
    least = bytes_of(wanted[-1], count, dim)
    raise InputError(
        f"{count} vectors of {dim} dimensions take {least / 1e6:.0f} MB even as {wanted[-1]}; "
        f"--memory allows {memory / 1e6 if memory else 0:.0f}",
        hint="allow more with --memory, or take --factory lsh, which is smallest and has the lowest recall",
    )
