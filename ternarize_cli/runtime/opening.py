"""Opens the folder of a packed model that may come from anybody: checks it first, then reads it."""

from pathlib import Path

from ternarize_cli.model_folder.folder_check import check_folder
from ternarize_cli.model_folder.integrity import verify
from ternarize_cli.model_folder.model_kind import require_kind
from ternarize_cli.runtime.encoder import Encoder

__all__ = ["open_model"]


def open_model(folder: Path) -> Encoder:
    """Opens a packed model.

    Raises:
        CheckpointError: a file is missing or damaged, asks for something that no folder may ask for, or is not the one
            that was packed.
        UnavailableError: the compiled library is missing, or the model asks for something that this runtime does not
            do, which the message names.
    """
    require_kind(folder, "encoder")
    check_folder(folder)
    verify(folder)
    return Encoder(folder)
