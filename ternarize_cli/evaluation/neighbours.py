"""Reads labelled images for a classification by neighbours or by a linear probe, and checks them.

The classification measures how well the vectors alone give the labels. `knn`: each query image gets the label that most
of its 5 nearest neighbours have, by cosine. `linear`: a logistic regression on the vectors of all possible neighbours.
Neighbours come from the training part of the source, and queries from its test part (or validation part, if there is no
test part); a source of one part is split in halves, label by label, by the seed. Encoding takes most of the time, so
both are sampled, with equally many images of each label.

All images are decoded here once, for their hash. An image that can't be decoded is skipped and named, unless `strict`.
"""

import hashlib
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ternarize_cli.data.images import Images, read_parts
from ternarize_cli.errors import DataError, InputError, counted

__all__ = [
    "NEIGHBOURS",
    "PER_QUERY",
    "QUERIES",
    "LabelledImages",
    "decodable",
    "labelled_parts",
    "read_labelled_images",
]

NEIGHBOURS = 5
"""Number of neighbours that vote."""
QUERIES = 200
"""Default number of queries, which takes minutes on two cores."""
PER_QUERY = 5
"""Number of images, for each query, among which neighbours are searched."""


@dataclass(frozen=True)
class LabelledImages:
    """Training images, and query images to classify.

    Attributes:
        name: name of the task.
        path: path of its source.
        pixels: the sha256 of all pixels and labels.
        neighbours: the images to train on, or among which neighbours are searched.
        queries: the images to classify.
        classifier: "knn" or "linear".
        skipped: names of images that could not be decoded, with the reasons.
    """

    name: str
    path: Path
    pixels: str
    neighbours: Images
    queries: Images
    classifier: str = "knn"
    skipped: tuple[str, ...] = ()
    modalities: ClassVar = frozenset({"image"})

    @property
    def sha256(self) -> str:
        """The sha256 of everything that is scored: pixels, labels and the classifier."""
        return self.pixels if self.classifier == "knn" else hashlib.sha256(f"{self.pixels} linear".encode()).hexdigest()

    @property
    def size(self) -> int:
        """Number of queries."""
        return len(self.queries)


def read_labelled_images(
    path: Path, name: str, *, limit: int = QUERIES, seed: int = 0, strict: bool = False
) -> LabelledImages:
    """Reads, samples and decodes the images of an evaluation.

    Args:
        path: a source of images, as `images.read_parts` takes it.
        name: name of the task.
        limit: the most queries; there are up to PER_QUERY times as many neighbours.
        seed: seed of the samples, and of the split if the source has one part only.
        strict: refuse an image that can't be decoded, instead of skipping it.

    Raises:
        DataError: there are no images or labels, no image can be decoded (or one can't, if `strict`), there is only one
            label, no neighbour has a label of the queries, or there are fewer than NEIGHBOURS neighbours.
        InputError: `limit` is below 1.
    """
    if limit < 1:
        raise InputError(f"--limit {limit} leaves no image", hint="--limit 200")
    parts = labelled_parts(path)
    queries = parts.get("test") or parts.get("validation")
    neighbours = parts.get("train")
    if neighbours is None or queries is None:
        if len(parts) > 1:
            raise DataError(f"{path} has the parts {', '.join(parts)}, but neighbours come from a train part")
        neighbours, queries = _halves(next(iter(parts.values())), seed)
    (neighbours, queries), pixels, skipped = decodable(
        neighbours.sample(PER_QUERY * limit, seed), queries.sample(limit, seed), strict=strict
    )
    known = set(neighbours.labels or ())
    if len(known) < 2:
        raise DataError(
            f"{path}: every image has the label {next(iter(known), None)!r}", hint="use images of two labels or more"
        )
    if missing := sorted(set(queries.labels or ()) - known):
        raise DataError(
            f"{path}: no image to find neighbours among has the label {missing[0]!r}",
            hint="each label needs images in both parts (two if there is one part), and --limit must reach them",
        )
    if len(neighbours) < NEIGHBOURS:
        few = counted(len(neighbours), "image")
        raise DataError(f"{path}: {few}, fewer than the {NEIGHBOURS} neighbours that vote")
    return LabelledImages(name, path, pixels, neighbours, queries, skipped=skipped)


def labelled_parts(path: Path) -> dict[str, Images]:
    """Opens the parts of a source, and checks that all have labels.

    Raises:
        DataError: there are no images, or no labels.
    """
    parts = read_parts(path)
    for part, images in parts.items():
        if images.labels is None:
            raise DataError(
                f"{path / part} has images without labels",
                hint="one subfolder per label, a column `label`, or the IDX file of labels beside that of the images",
            )
    return parts


def decodable(*parts: Images, strict: bool) -> tuple[list[Images], str, tuple[str, ...]]:
    """Finds the images that can be decoded; also returns the sha256 of their pixels and labels, and errors of others.

    Raises:
        DataError: no image of a part can be decoded, or one can't and `strict` is true.
    """
    digest, skipped, kept = hashlib.sha256(), [], []
    for images in parts:
        digest.update(b"part\n")  # an image that moves to the other part changes the hash
        places = []
        for place, label in enumerate(images.labels or ()):
            try:
                image = images[place]
            except DataError as e:
                if strict:
                    raise
                skipped.append(str(e))
                continue
            digest.update(f"{image.size} {label}\n".encode())
            digest.update(image.tobytes())
            places.append(place)
        if not places:
            raise DataError(f"{images.path}: none of {len(images)} images can be decoded; {skipped[-1]}")
        kept.append(images.take(places))
    return kept, digest.hexdigest(), tuple(skipped)


def _halves(images: Images, seed: int) -> tuple[Images, Images]:
    """Splits each label's images in two halves, the larger one (if they differ) first."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, label in enumerate(images.labels or ()):
        places[label].append(place)
    shuffle = random.Random(seed).shuffle
    halves: tuple[list[int], list[int]] = [], []
    for label in sorted(places):
        shuffle(places[label])
        middle = (len(places[label]) + 1) // 2
        halves[0].extend(places[label][:middle])
        halves[1].extend(places[label][middle:])
    return images.take(sorted(halves[0])), images.take(sorted(halves[1]))
