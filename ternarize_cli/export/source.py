"""The model that is exported: its folder, and what its card and its files say of it."""

import re
from dataclasses import dataclass
from pathlib import Path

from ternarize_cli.compress.card_file import read_card
from ternarize_cli.errors import CheckpointError, FormatError, quoted
from ternarize_cli.format.module_levels import MIXED
from ternarize_cli.format.scheme import METHOD, Artifact
from ternarize_cli.model_folder.folder_check import check_folder
from ternarize_cli.model_folder.integrity import verify
from ternarize_cli.model_folder.model_files import contained, model_files
from ternarize_cli.storage.digests import content_hash

__all__ = ["Source", "open_source"]

_UNUSUAL = re.compile(r"[^\w.@+-]")
_MOST = 200
_PICKLES = (".bin", ".bin.index.json")


@dataclass(frozen=True)
class Source:
    """A packed model whose files have been checked.

    Attributes:
        folder: its folder.
        name: its short name, of letters, digits and _ . @ + -.
        artifact: its description.
        licence: its licence, as its card's metadata name it, such as "apache-2.0"; None if they name none.
        digest: its content hash, 64 hex digits.
    """

    folder: Path
    name: str
    artifact: Artifact
    licence: str | None
    digest: str

    @property
    def weights(self) -> str:
        """The weights of the linears in words: "ternary weights", or "ternary and int4 weights" if levels are mixed."""
        levels = self.artifact.levels
        return f"{'ternary and int4' if levels == MIXED else levels} weights"

    def files(self) -> dict[str, Path]:
        """Returns the files that decide what the model computes, by their relative paths.

        Raises:
            CheckpointError: a file is a link to a place outside the folder, whose content an export would give away.
        """
        found = {name: self.folder / name for name in model_files(self.folder) if not name.endswith(_PICKLES)}
        for path in found.values():
            if not contained(self.folder, path):
                raise CheckpointError(
                    f"{path} is a link to a place outside the model's folder, and is not exported",
                    hint=f"if you trust it, use a copy with the files themselves: cp -rL {quoted(self.folder)} COPY",
                )
        return found


def open_source(folder: Path, name: str) -> Source:
    """Checks a packed model, and reads what its card says.

    Args:
        folder: the model's folder.
        name: its short name.

    Raises:
        CheckpointError: a file is missing or damaged, or asks for something that no folder may ask for.
        FormatError: the model is not packed, or a file is not the one that was packed.
    """
    config = check_folder(folder)
    described = config.get("quantization_config")
    artifact = None
    if isinstance(described, dict) and described.get("quant_method") == METHOD:
        artifact = Artifact.from_dict(described)
    if artifact is None or artifact.stage != "packed":
        raise FormatError(f"{folder} is no packed model", hint="ternarize convert, then ternarize pack")
    verify(folder, always=True)
    return Source(
        folder, _UNUSUAL.sub("_", name)[:_MOST], artifact, _licence(folder / "README.md"), content_hash(folder)
    )


def _licence(card: Path) -> str | None:
    """Returns the licence that a card's metadata name; None if they name none, or can't be read."""
    known, _ = read_card(card)
    listed = known.get("license"), known.get("license_name")
    words = [word for word in listed if isinstance(word, str) and 0 < len(word) <= _MOST and word.isprintable()]
    return words[-1] if words else None
