"""The grids of a model whose linears have different ones: `levels` is "mixed", and a table names what is not ternary.

    "format_version": 3, "levels": "mixed", "module_levels": {"encoder.layer.0.output.dense": "int4", …}

A linear that the table does not name is ternary. Names are those of the encoder's modules, as in
`modules_to_not_convert`.
"""

from typing import Any

from ternarize_cli.errors import FormatError, shown
from ternarize_cli.format.block_values import check_mapping

__all__ = ["MIXED", "MIXED_VERSION", "OTHER_LEVELS", "module_levels_from"]

MIXED = "mixed"
"""The value of `levels` where grids differ by module."""
MIXED_VERSION = 3
"""The format version of artifacts whose grids differ by module; all others are written as the version before."""
OTHER_LEVELS = ("int4",)
"""The grids that a linear may have beside ternary ones."""


def module_levels_from(values: dict[str, Any]) -> dict[str, str]:
    """Reads the grids by module of a `quantization_config`; empty where all linears have one grid.

    Raises:
        FormatError: the table is missing, empty or no table of known grids; or it stands in an artifact of another
            version or other levels.
    """
    if values.get("levels") != MIXED:
        if "module_levels" in values:
            raise FormatError(f"module_levels goes with levels {MIXED!r}, and levels is {shown(values.get('levels'))}")
        return {}
    if values.get("format_version") != MIXED_VERSION:
        raise FormatError(
            f"levels is {MIXED!r} in format_version {values.get('format_version')}; it came with {MIXED_VERSION}"
        )
    found = check_mapping("module_levels", values.get("module_levels"))
    if not found:
        raise FormatError(f"module_levels is empty, and levels is {MIXED!r}")
    for name, levels in found.items():
        if levels not in OTHER_LEVELS:
            raise FormatError(
                f"module_levels gives {shown(name)} the levels {shown(levels)}; "
                f"beside ternary a linear may be {' or '.join(OTHER_LEVELS)}"
            )
    return found
