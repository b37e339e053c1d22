"""Makes MTEB tasks of local images: classification by neighbours, by a linear probe, and zero-shot.

    knn          accuracy of a vote among the 5 nearest neighbours by cosine
    linear       accuracy of MTEB's logistic regression on all training vectors, with as many iterations as it needs to
                 converge (MTEB stops it after 100)
    zero-shot    accuracy of the label whose text is nearest by cosine

Images are decoded when they are read, since all of them in memory, decoded or as PNG, would take gigabytes.
"""

from typing import Any

from datasets import Dataset, DatasetDict, Features, Image, Value
from mteb.abstasks import AbsTaskClassification, AbsTaskZeroShotClassification
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from ternarize_cli.data.images import Images
from ternarize_cli.evaluation.local_task import LocalTask
from ternarize_cli.evaluation.neighbours import NEIGHBOURS, LabelledImages
from ternarize_cli.evaluation.zero_shot import ZeroShot

__all__ = ["LocalImageClassification", "LocalZeroShot"]


class LocalImageClassification(LocalTask, AbsTaskClassification):
    """Classification of images with a classifier that is trained once, on all training images."""

    kind, category = "ImageClassification", "i2c"
    input_column_name = "image"
    n_experiments = 1
    data: LabelledImages

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        """Hands over rows that are decoded when they are asked for."""
        self.samples_per_label = len(self.data.neighbours)
        self.evaluator_model = (
            KNeighborsClassifier(n_neighbors=NEIGHBOURS, metric="cosine")
            if self.data.classifier == "knn"
            else LogisticRegression(max_iter=10_000)
        )
        number = {label: i for i, label in enumerate(sorted(set(self.data.neighbours.labels or ())))}
        self.dataset = DatasetDict(
            train=_lazy_dataset(self.data.neighbours, number), test=_lazy_dataset(self.data.queries, number)
        )


class LocalZeroShot(LocalTask, AbsTaskZeroShotClassification):
    """Zero-shot classification of images: each gets the label of the nearest text."""

    kind, category = "ZeroShotClassification", "i2t"
    data: ZeroShot

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        """Hands over rows that are decoded when they are asked for."""
        number = {label: i for i, label in enumerate(self.data.prompts)}
        self.dataset = DatasetDict(test=_lazy_dataset(self.data.images, number))

    def get_candidate_labels(self) -> list[str]:
        """The text of each label, in the order of the labels' numbers."""
        return list(self.data.prompts.values())


def _lazy_dataset(images: Images, number: dict[str, int]) -> Dataset:
    """Makes a dataset of images, decoded when read: each row holds the image's number in place of a path."""
    rows = {
        "image": [{"bytes": None, "path": str(row)} for row in range(len(images))],
        "label": [number[label] for label in images.labels or ()],
    }
    features = Features({"image": Image(decode=False), "label": Value("int64")})

    def decode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if "image" in batch:
            batch["image"] = [images[int(row["path"])] for row in batch["image"]]
        return batch

    return Dataset.from_dict(rows, features=features).with_transform(decode)
