"""The linears and tables of a packed model by name and size, which its weights file alone does not tell.

    "listing": {"architecture": "BertModel",
                "modules": [["embeddings.word_embeddings", "table", 30522, 384], …],
                "config": "9f86d0…", "weights": "60303a…"}

`pack` writes it from the model's own modules, in their order, so that `inspect` needs neither these nor PyTorch. It is
the listing of one config and one file of weights, whose digests it has, and says nothing about any others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ternarize_cli.errors import FormatError, shown
from ternarize_cli.format.block_values import check_mapping, check_name

__all__ = ["ListedModule", "Listing"]

_KINDS = ("linear", "table")
_WIDEST, _MOST = 1 << 24, 1 << 16


class ListedModule(NamedTuple):
    """A linear or a table of embeddings.

    Attributes:
        name: the name of the module in the model.
        kind: "linear" or "table".
        rows: outputs of a linear, or rows of a table.
        columns: inputs of a linear, or the width of a table.
    """

    name: str
    kind: Literal["linear", "table"]
    rows: int
    columns: int


@dataclass(frozen=True)
class Listing:
    """The linears and tables of a model.

    Attributes:
        architecture: the name of the model's class in transformers.
        modules: the modules that have weights in the file, each once, in the model's order.
        config: the sha256 of config.json without `quantization_config`, as JSON with sorted keys and no blanks.
        weights: the sha256 of the weights file.
    """

    architecture: str
    modules: tuple[ListedModule, ...]
    config: str
    weights: str

    def to_dict(self) -> dict[str, Any]:
        """Converts to the JSON form."""
        modules = [list(module) for module in self.modules]
        return {
            "architecture": self.architecture,
            "modules": modules,
            "config": self.config,
            "weights": self.weights,
        }

    @classmethod
    def from_dict(cls, values: object) -> "Listing":
        """Reads the JSON form strictly.

        Raises:
            FormatError: a key is missing, unknown or of the wrong type, a size is no size, or a name comes twice.
        """
        found: Mapping[str, Any] = check_mapping("listing", values)
        if found.keys() != {"architecture", "modules", "config", "weights"}:
            raise FormatError(f"a listing has the keys {shown(sorted(found))}")
        for key in ("architecture", "config", "weights"):
            check_name(f"the {key} of a listing", found[key])
        rows = found["modules"]
        if not isinstance(rows, list) or len(rows) > _MOST:
            raise FormatError(f"the modules of a listing are {shown(rows)}; they must be a list")
        modules = tuple(map(_module_from, rows))
        if len({module.name for module in modules}) < len(modules):
            raise FormatError("a listing has a module twice")
        return cls(found["architecture"], modules, found["config"], found["weights"])


def _module_from(row: object) -> ListedModule:
    if not isinstance(row, list) or len(row) != 4:
        raise FormatError(f"a module of a listing is {shown(row)}; it must be a name, a kind and two sizes")
    check_name("a module of a listing", row[0])
    if row[1] not in _KINDS or not all(type(size) is int and 0 < size < _WIDEST for size in row[2:]):
        raise FormatError(f"a module of a listing is {shown(row)}; it must be a name, a kind and two sizes")
    return ListedModule(*row)
