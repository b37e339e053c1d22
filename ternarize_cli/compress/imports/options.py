"""What may be changed when a model of others becomes a packed model."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ternarize_cli.storage.command_option import Option

__all__ = ["METHODS", "ImportOptions"]

METHODS = ("bitnet", "compressed-tensors", "torchao")
"""The methods of other quantisers whose models can be taken over, as `quant_method` of config.json names them."""


@dataclass(frozen=True)
class ImportOptions:
    """How a model that others have quantised is taken over; by default nothing changes.

    Attributes:
        round: round scales and large tensors that float16 does not hold exactly, by at most 0.05%.
        activations: bits of activations: 8 rounds them per token, 16 leaves them as they are; None: as the source says.
    """

    round: Annotated[bool, Option("Models of others: round scales that float16 does not hold.")] = False
    activations: Annotated[
        Literal[8, 16] | None, Option("Models of others: bits of activations; default: as they have them.")
    ] = None

    @property
    def first_flag(self) -> str:
        """The flag of the first option that is set."""
        return "--round" if self.round else "--activations"
