"""What `convert` leaves as it is, and what it reads: options of `ternarize convert`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ternarize_cli.storage.option import ALLOW_PICKLE, SEED, Option, check_sequences

__all__ = ["ConvertOptions"]


@dataclass(frozen=True)
class ConvertOptions:
    """What a conversion leaves as it is, and what it may read.

    Attributes:
        skip: shell patterns of module names to leave as they are.
        keep_dense: leave the Dense modules of a sentence-transformers model as they are.
        trim: files or folders of texts; of the vocabulary only the tokens that they use are kept.
        allow_pickle: read pytorch_model.bin where there is no safetensors file; trust its author.
        seed: the seed by which the data of a calibration is drawn; recorded in the checkpoint.

    Raises:
        InputError: `skip` or `trim` is a lone string.
    """

    skip: Annotated[
        Sequence[str], Option("Leave modules of this name as they are; repeatable.", metavar="PATTERN")
    ] = ()
    keep_dense: Annotated[bool, Option("Leave the Dense modules of a sentence-transformers model as they are.")] = False
    trim: Annotated[
        Sequence[str | Path],
        Option(
            "Keep only the tokens that these texts use; repeatable, folders too.",
            name="trim_vocabulary",
            metavar="FILE",
        ),
    ] = ()
    allow_pickle: Annotated[bool, ALLOW_PICKLE] = False
    seed: Annotated[int, SEED] = 0

    def __post_init__(self) -> None:
        check_sequences(self)
