"""Opens images, with or without labels, from folders and from files of many images.

    folder of image files     DIR/cat/1.jpg, DIR/dog/a/2.png: the subfolder is the label (the layout of ImageNet);
                              DIR/1.jpg: no labels. Folders may lie in folders; hidden ones are left out
    IDX (MNIST and others)    NAME-images-idx3-ubyte[.gz] and, beside it, NAME-labels-idx1-ubyte[.gz]
    CIFAR-10, CIFAR-100       the binary version: data_batch_1.bin, … or train.bin, with the file of the classes' names
    Parquet                   a column of images as the `datasets` library writes it (a struct of bytes and path) or
                              of plain bytes, and a column `label`; one file or a folder of them
    saved dataset             a folder of `save_to_disk` of the `datasets` library

A folder may hold a training part and a test part: folders `train/` and `test/`, IDX pairs `train-…` and `t10k-…`, files
`train-*.parquet` and `test-*.parquet` (in `data/` too). `read_parts` tells them apart; `read_images` takes the training
part, so that training and calibration never see the test part.

An `Images` is a sequence that decodes an image when it is read and keeps none in memory; nothing is copied to a cache.
They are RGB of 8 bits (`image_decoding`).
"""

import os
import random
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, overload

from ternarize_cli.data.image_decoding import decoded_rgb
from ternarize_cli.data.image_files import (
    IDX_IMAGES,
    ImageFile,
    image_columns,
    is_cifar,
    open_cifar,
    open_idx,
    open_parquet,
)
from ternarize_cli.data.saved_images import image_splits, open_saved_images
from ternarize_cli.data.tables import is_saved_dataset
from ternarize_cli.errors import DataError
from ternarize_cli.storage.bounds import user_path, utf8_name, walk

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Images", "is_images", "read_images", "read_labelled", "read_parts"]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "t10k"), "test"),
}
_LAYOUTS = (
    "a folder of .jpg or .png files (in one subfolder per label), IDX files, CIFAR's binary version, or Parquet files"
)


@dataclass(frozen=True)
class Images(Sequence["Image"]):
    """A sequence of RGB images, each decoded when it is read.

    Attributes:
        path: the file or folder that the images come from.
        ids: the name of each image in results and messages: a path below `path`, or a row number.
        labels: one label for each image; None if the source has none.
        decode: a function from a row of the source to its image; raises DataError if the image can't be read.
        rows: the rows of the source that are in this sequence, in order.
    """

    path: Path
    ids: Sequence[str]
    labels: Sequence[str] | None
    decode: Callable[[int], "Image"]
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> "Image": ...
    @overload
    def __getitem__(self, index: slice) -> "Images": ...
    def __getitem__(self, index: int | slice) -> "Image | Images":
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        return self.decode(self.rows[index])

    def take(self, chosen: Sequence[int]) -> "Images":
        """Selects the images at these positions, as another `Images`."""
        labels = None if self.labels is None else [self.labels[i] for i in chosen]
        return replace(self, ids=[self.ids[i] for i in chosen], labels=labels, rows=[self.rows[i] for i in chosen])

    def sample(self, count: int, seed: int) -> "Images":
        """Draws at most `count` images at random with `seed`, and keeps them in the source's order.

        Labels are drawn in turn, so that each label gets equally many images, as long as it has some left.
        """
        if count >= len(self):
            return self
        order = list(range(len(self)))
        random.Random(seed).shuffle(order)
        if self.labels is not None:
            turns: dict[str, int] = defaultdict(int)
            turn = {}
            for i in order:
                turn[i] = turns[self.labels[i]]
                turns[self.labels[i]] += 1
            order.sort(key=turn.__getitem__)
        return self.take(sorted(order[:count]))


def is_images(path: str | Path) -> bool:
    """Whether `path` holds images, judged by names of files and columns of a Parquet file; `path` need not exist."""
    path = user_path(path)
    if os.path.isdir(path):
        return bool(_layout(path))
    return os.path.isfile(path) and (
        path.suffix.lower() in _SUFFIXES or _is_idx(path) or is_cifar(path) or _is_table(path)
    )


def read_images(path: str | Path, *, limit: int | None = None, seed: int | None = None) -> Images:
    """Opens the images for training or calibration: those of the training part, if the source has parts.

    Args:
        path: a file or folder in a layout that the docstring of this module lists.
        limit: the most images to take; None takes all.
        seed: seed of a random choice (see `Images.sample`); None takes the first images.

    Raises:
        DataError: the source is missing, holds no images, or a file is damaged.
    """
    parts = read_parts(path)
    images = parts.get("train") or next(iter(parts.values()))
    if limit is None:
        return images
    return images[:limit] if seed is None else images.sample(limit, seed)


def read_labelled(path: str | Path, split: str | None = None) -> Images:
    """Opens images that have labels.

    Args:
        path: a file or folder in a layout that the docstring of this module lists.
        split: "train" or "test"; None for a source of one part.

    Raises:
        DataError: the source is missing, holds no images, or a file is damaged; the images have no labels; or the
            source has no part `split`.
    """
    parts = read_parts(path)
    if split is None and len(parts) > 1:
        raise DataError(f"{path} has the parts {', '.join(parts)}", hint="name the file or folder of one of them")
    images = next(iter(parts.values())) if split is None else parts.get(split)
    if images is None:
        raise DataError(f"{path} has no {split} part", hint=f"it has: {', '.join(name or 'all' for name in parts)}")
    if images.labels is None:
        depths = [name.count("/") for name in images.ids]
        if min(depths) < max(depths):
            stray = images.path / images.ids[depths.index(min(depths))]
            raise DataError(f"{stray} lies beside the folders that give the labels", hint="move it into one of them")
        raise DataError(
            f"{path} has images without labels",
            hint="one subfolder per label, a column `label`, or the file of labels beside the IDX file of images",
        )
    return images


def read_parts(path: str | Path) -> dict[str, Images]:
    """Opens the parts of a source: a dict from "train", "validation" or "test", or from "" for a source of one part.

    Raises:
        DataError: the source is missing, holds no images, or a file is damaged; the message names file and value. An
            image that can't be decoded raises its error later, when it is read.
    """
    root = user_path(path)
    if not os.path.exists(root):
        raise DataError(f"there is no file or folder {str(path)[:200]}", hint=_LAYOUTS)
    parts = _layout(root) if root.is_dir() else {"": [root]} if is_images(root) else {}
    if not parts:
        raise DataError(f"{path} holds no images", hint=_LAYOUTS)
    return {part: _open(root, part, files) for part, files in parts.items()}


def _layout(root: Path) -> dict[str, list[Path]]:
    """Finds the files of each part; all files are of one kind: IDX, CIFAR, Parquet, or image files."""
    if is_saved_dataset(root):
        return _parts((name, [path]) for name, path in image_splits(root).items())
    files = sorted(p for p in [*root.glob("*"), *root.glob("data/*")] if p.is_file())
    for wanted in (_is_idx, is_cifar, _is_table):
        if found := [p for p in files if wanted(p)]:
            # CIFAR-10 calls its training part data_batch_1 to 5
            return _parts((re.sub("^data_batch", "train", p.name), [p]) for p in found)
    folders = [(p.name, _pictures(p)) for p in sorted(root.glob("*")) if p.is_dir() and not p.name.startswith(".")]
    folders = [(name, found) for name, found in folders if found]
    if folders and all(name.lower() in _PARTS for name, _ in folders):
        return _parts(folders)
    found = _pictures(root)
    return {"": found} if found else {}


def _is_idx(file: Path) -> bool:
    return IDX_IMAGES.fullmatch(file.name) is not None


def _is_table(file: Path) -> bool:
    return file.suffix.lower() == ".parquet" and image_columns(file) is not None


def _pictures(folder: Path) -> list[Path]:
    """Lists the image files in a folder and all folders below it, without pipes, devices and folders of such names.

    Links to folders are followed one folder down only, so that no link leads in a circle.
    """
    near = (p for p in [*folder.glob("*"), *folder.glob("*/*")] if p.is_file() or not p.exists())
    found = {p for p in (*near, *walk(folder, DataError)) if p.suffix.lower() in _SUFFIXES}
    # a broken link near the top raises its error when it is read
    return sorted(p for p in found if not any(name.startswith(".") for name in p.relative_to(folder).parts))


def _parts(named: Iterable[tuple[str, list[Path]]]) -> dict[str, list[Path]]:
    """Groups files by the part that their names tell; if one name tells none, all files are one part."""
    parts: dict[str, list[Path]] = {}
    for name, files in named:
        words = re.split(r"[^a-z0-9]+", name.lower())
        parts.setdefault(next((_PARTS[word] for word in words if word in _PARTS), ""), []).extend(files)
    if "" in parts:
        return {"": sorted(file for files in parts.values() for file in files)}
    return {part: parts[part] for part in dict.fromkeys(_PARTS.values()) if part in parts}


def _open(root: Path, part: str, files: list[Path]) -> Images:
    if files[0].suffix.lower() in _SUFFIXES and not files[0].is_dir():
        return _open_pictures(root, files)
    readers = ((Path.is_dir, open_saved_images), (_is_idx, open_idx), (is_cifar, open_cifar))
    opened = next((reader for fits, reader in readers if fits(files[0])), open_parquet)
    sources: list[ImageFile] = [opened(p) for p in files]
    ends = list(accumulate(len(source) for source in sources))
    if len({source.labels is None for source in sources}) == 2:
        without = next(source.path for source in sources if source.labels is None)
        raise DataError(f"{without} has no labels, but others beside it have")

    def decode(row: int) -> "Image":
        file = bisect_right(ends, row)
        inner = row - (ends[file - 1] if file else 0)
        return decoded_rgb(sources[file].read(inner), f"{files[file]}, image {inner}")

    return Images(
        path=root,
        ids=[f"{part}/{row}" if part else str(row) for row in range(ends[-1])],
        labels=None if sources[0].labels is None else [label for source in sources for label in source.labels or ()],
        decode=decode,
        rows=range(ends[-1]),
    )


def _open_pictures(root: Path, files: list[Path]) -> Images:
    """Opens image files. Labels are the first folders below the source or its part, if each file lies in one."""
    base = root if root.is_dir() else root.parent
    folders = [p.relative_to(base).parts[:-1] for p in files]
    if all(names and names[0].lower() in _PARTS for names in folders):  # not if one class of several is called "train"
        folders = [names[1:] for names in folders]
    return Images(
        path=root,
        ids=[utf8_name(p.relative_to(base)) for p in files],
        labels=[utf8_name(names[0]) for names in folders] if all(folders) else None,
        decode=lambda row: decoded_rgb(files[row], str(files[row])),
        rows=range(len(files)),
    )
