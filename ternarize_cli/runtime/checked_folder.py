"""Checks the folder of a packed model, which may come from anybody, before anything in it is read."""

from pathlib import Path

from ternarize_cli.model_folder.config_check import check_layers
from ternarize_cli.model_folder.folder_check import check_folder
from ternarize_cli.model_folder.integrity import verify
from ternarize_cli.runtime.packed_file import packed_artifact
from ternarize_cli.runtime.tensor_file import open_tensors

__all__ = ["check_packed"]


def check_packed(folder: Path) -> None:
    """Checks that a folder holds a packed model as it was packed, and asks for nothing that no folder may ask for.

    Args:
        folder: the model's folder.

    Raises:
        CheckpointError: a file is missing or damaged, or asks for something that no folder may ask for (FormatError: it
            is not the one that was packed, or the model is not packed).
        UnavailableError: the model's linears are of a kind that this runtime does not run.
    """
    config = check_folder(folder)
    packed_artifact(config.get("quantization_config"), str(folder))
    verify(folder)
    check_layers(config, folder / "config.json", len(open_tensors(folder).names))
