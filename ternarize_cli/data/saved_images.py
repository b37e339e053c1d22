"""Reads images of a dataset that `save_to_disk` of the library `datasets` wrote."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from ternarize_cli.data.tables import load_saved, saved_splits
from ternarize_cli.errors import DataError, reason
from ternarize_cli.storage.bounds import read_object

__all__ = ["SavedImages", "image_splits", "open_saved_images"]

_LABELS = ("label", "labels", "fine_label")


def image_splits(folder: Path) -> dict[str, Path]:
    """Finds the splits with images of a saved dataset: a dict from name to folder; a dataset of one split has no name.

    Raises:
        DataError: a JSON file of the dataset is damaged.
    """
    return {name: path for name, path in saved_splits(folder).items() if _image_column(path)}


def _image_column(folder: Path) -> str | None:
    path = folder / "dataset_info.json"
    features = read_object(path, error=DataError).get("features") if path.is_file() else None
    kinds = features.items() if isinstance(features, dict) else ()
    return next((name for name, kind in kinds if isinstance(kind, dict) and kind.get("_type") == "Image"), None)


@dataclass(frozen=True)
class SavedImages:
    """The images of one split, which are read from the dataset's Arrow files when they are needed."""

    path: Path
    labels: Sequence[str] | None = field(repr=False)
    column: str
    _rows: Any = field(repr=False)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, row: int) -> IO[bytes]:
        """Reads the encoded image of a row.

        Raises:
            DataError: the row can't be read, or holds no image.
        """
        try:
            value = self._rows[row][self.column]
        except Exception as e:  # a damaged file can raise any error in `datasets`
            raise DataError(f"{self.path}, row {row} can't be read: {reason(e)}", hint="save the dataset again") from e
        content = value.get("bytes") if isinstance(value, dict) else None
        if not isinstance(content, bytes):
            raise DataError(f"{self.path}, row {row}: there is no image in the column {self.column!r}")
        return BytesIO(content)


def open_saved_images(folder: Path) -> SavedImages:
    """Opens a split with images; a column `label` gives the labels.

    Raises:
        DataError: the dataset is damaged, has no rows, or has no column of images.
    """
    import datasets

    column, found = _image_column(folder), load_saved(folder)
    if column is None:
        raise DataError(f"{folder} holds no images", hint="a dataset with a column of the feature Image")
    labels = None
    try:
        if (name := next((name for name in _LABELS if name in found.column_names), None)) is not None:
            kind = found.features[name]
            named = kind.int2str if isinstance(kind, datasets.ClassLabel) else str
            labels = [named(value) for value in found[name]]
        rows = found.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except Exception as e:
        raise DataError(f"{folder} can't be read as a saved dataset: {reason(e)}", hint="save it again") from e
    return SavedImages(folder, labels, column, rows)
