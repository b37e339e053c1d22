"""Reads labelled images for zero-shot classification: an image gets the label whose text is nearest by cosine.

This is for models that read both images and texts (CLIP, SigLIP). The text of a label is the template with the label's
name in place of `{}`, as in CLIP's paper (arXiv 2103.00020, section 3.1.4). Nothing is trained, so only the test part
of the source is used (or the validation part, or the only part).
"""

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ternarize_cli.data.images import Images
from ternarize_cli.errors import DataError
from ternarize_cli.evaluation.neighbours import QUERIES, decodable, labelled_parts

__all__ = ["TEMPLATE", "ZeroShot", "read_zero_shot"]

TEMPLATE = "a photo of a {}"
"""CLIP's own template, which MTEB's tasks use too."""


@dataclass(frozen=True)
class ZeroShot:
    """Images with labels, and a text for each label.

    Attributes:
        name: name of the task.
        path: path of its source.
        pixels: the sha256 of all pixels and labels.
        images: the images.
        prompts: a dict from each label to its text.
        skipped: names of images that could not be decoded, with the reasons.
    """

    name: str
    path: Path
    pixels: str
    images: Images
    prompts: dict[str, str]
    skipped: tuple[str, ...] = ()
    modalities: ClassVar = frozenset({"image", "text"})

    @property
    def sha256(self) -> str:
        """The sha256 of everything that is scored: pixels, labels and texts."""
        return hashlib.sha256("\n".join([self.pixels, *self.prompts.values()]).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.images)


def read_zero_shot(
    path: Path,
    name: str,
    *,
    template: str = TEMPLATE,
    labels: Mapping[str, str] | None = None,
    limit: int = QUERIES,
    seed: int = 0,
    strict: bool = False,
) -> ZeroShot:
    """Reads, samples and decodes the images, and writes the texts of their labels.

    Args:
        path: a source of images, as `images.read_parts` takes it.
        name: name of the task.
        template: template of the texts; `{}` stands for the label's name.
        labels: a dict from each label to its name in the text; None uses the labels themselves.
        limit: the most images; each label gives equally many.
        seed: seed of the sample.
        strict: refuse an image that can't be decoded, instead of skipping it.

    Raises:
        DataError: there are no images or labels, no image can be decoded (or one can't, if `strict`), there is only one
            label, the template has no `{}`, or `labels` are not those of the images.
    """
    if "{}" not in template:
        raise DataError(f"the template {template!r} has no {{}} where the label goes", hint=repr(TEMPLATE))
    parts = labelled_parts(path)
    source = parts.get("test") or parts.get("validation") or next(iter(parts.values()))
    known = sorted({label for part in parts.values() for label in part.labels or ()})
    if len(known) < 2:
        raise DataError(f"{path}: every image has the label {known[0]!r}", hint="use images of two labels or more")
    if labels is not None:
        if missing := sorted(set(known) - set(labels)):
            raise DataError(f"{path}: the label {missing[0]!r} has no name", hint="add it to the table of labels")
        if strange := sorted(set(labels) - set(known)):
            near = difflib.get_close_matches(strange[0], known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"labels: {', '.join(known[:12])}"
            raise DataError(f"{path}: no image has the label {strange[0]!r}", hint=hint)
    prompts = {label: template.replace("{}", labels[label] if labels is not None else label) for label in known}
    (images,), pixels, skipped = decodable(source.sample(limit, seed), strict=strict)
    return ZeroShot(name, path, pixels, images, prompts, skipped)
