"""What index to make, and how it is searched: the options of `ternarize index build` and `index search`."""

from dataclasses import dataclass
from typing import Annotated

from ternarize_cli.errors import InputError
from ternarize_cli.storage.command_option import MANY, SEED, SKIP_BAD, Option, plain_signature

__all__ = ["DEFAULT_FACTORY", "IndexOptions", "SearchOptions"]

DEFAULT_FACTORY = "auto"
_NO_LIMIT = 1e9  # GB


@plain_signature
@dataclass(frozen=True)
class IndexOptions:
    """What index to make.

    Attributes:
        factory: a name of `presets.PRESETS`, or a FAISS factory string, e.g. HNSW32, IVF256,Flat, OPQ48,IVF1024,PQ48.
        memory: what the index may take if `factory` is "auto", in GB (1e9 bytes); None: no limit.
        metric: "ip" or "l2"; None: as the model compares vectors, or as the preset needs.
        queries: a file of texts by which the index is tuned and judged; None: 1,000 of the documents.
        texts: the corpus that vectors were encoded from, whose texts the index then keeps and shows; None keeps none.
        skip_bad: skip lines and images that can't be read, and count them.
        on_disk: build the lists of an IVF index on disk, and leave them there.
        shard_size: rows per shard, the unit of work that a kill can lose; None: 8,192 texts or 1,024 images.
        resume: continue a build that was killed; shards that it finished are kept.
        seed: of the sample that FAISS trains on where the corpus is larger than it needs, and of queries.
    """

    factory: Annotated[
        str,
        Option(
            "auto, flat (exact), hnsw, ivf, ivf-pq, ivf-rabitq, binary, lsh, or a FAISS factory string.",
            metavar="NAME|STRING",
        ),
    ] = DEFAULT_FACTORY
    memory: Annotated[
        float | None, Option("Memory in GB that the index may take, for `auto`.", metavar="GB", min=0)
    ] = None
    metric: Annotated[str | None, Option("Default: as the model compares (cosine: ip).", metavar="ip|l2")] = None
    queries: Annotated[
        str | None, Option("Texts to tune the index by; default: 1,000 of the documents.", metavar="FILE")
    ] = None
    texts: Annotated[
        str | None,
        Option("For vectors: the corpus they were made of, to keep its texts.", metavar="FILE|DIR"),
    ] = None
    skip_bad: Annotated[bool, SKIP_BAD] = False
    on_disk: Annotated[bool, Option("Build an IVF index larger than memory: its lists stay on disk.")] = False
    shard_size: Annotated[
        int | None,
        Option("Rows per shard that --resume keeps; default: 8,192 texts, 1,024 images.", min=1, max=MANY),
    ] = None
    resume: Annotated[bool, Option("Continue a build that was killed.")] = False
    seed: Annotated[int, SEED] = 0

    @property
    def budget(self) -> int | None:
        """The most bytes that the index may take; None: no limit."""
        return None if self.memory is None or self.memory > _NO_LIMIT else round(1e9 * self.memory)

    def check(self) -> None:
        """Checks that nothing is given that another option makes useless.

        Raises:
            InputError: `memory` with a factory other than "auto", or with `on_disk`.
        """
        if self.budget is not None and (self.factory != "auto" or self.on_disk):
            what = "lists on disk" if self.on_disk else f"an index {self.factory!r}"
            raise InputError(f"--memory lets `auto` choose, and {what} is asked for", hint="leave --memory out")


@plain_signature
@dataclass(frozen=True)
class SearchOptions:
    """How thoroughly an index is searched; None: as `index tune` stored it, or as the index was built.

    Attributes:
        nprobe: clusters that an IVF index looks into.
        ef_search: candidates that an HNSW index keeps.
        refine: an index that refines ranks so many times k candidates by their stored int8 vectors.
    """

    nprobe: Annotated[int | None, Option("IVF: clusters to look into.", min=1, max=10_000_000)] = None
    ef_search: Annotated[int | None, Option("HNSW: candidates to keep.", min=1, max=1_000_000)] = None
    refine: Annotated[
        float | None,
        Option("Indexes that refine: rank so many times -k candidates by int8 vectors.", min=1, max=1000),
    ] = None

    @property
    def knobs(self) -> dict[str, float | None]:
        """The values by FAISS's names, as `search.KNOBS` lists them."""
        return {"nprobe": self.nprobe, "efSearch": self.ef_search, "k_factor_rf": self.refine}
