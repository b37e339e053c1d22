"""MTEB tasks made of local files, so that every metric is MTEB's own code.

Each class derives from the MTEB task of its kind and replaces only `load_data`, which downloads there; here the data is
in memory already and is handed over at once (MTEB would otherwise unload a task, and its metadata with it). Main
scores: Spearman correlation of cosine similarities (STS), nDCG@10 of an exhaustive search (retrieval), and accuracy of
a logistic regression on 8 texts per label, the mean of 10 draws (classification), and accuracy of a vote among the 5
nearest neighbours by cosine (images).

Classification files have no split of their own: the texts of each label are shuffled by the seed, half of them are
there to learn from (rounded down), the others are the test. Student and teacher get the same split and the same draws.
"""

import random
from collections import defaultdict
from typing import Any

from datasets import Dataset, DatasetDict, Features, Image, Value
from mteb.abstasks import AbsTask, AbsTaskClassification, AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from sklearn.neighbors import KNeighborsClassifier

from ternarize_cli.evaluation.neighbours import NEIGHBOURS, LabelledImages
from ternarize_cli.evaluation.reading import Labels, Pairs, TaskData
from ternarize_cli.evaluation.retrieval import Retrieval
from ternarize_cli.images import Images

__all__ = ["LocalClassification", "LocalNeighbours", "LocalRetrieval", "LocalSTS", "make_task", "metric_name"]

_METRICS = {
    "STS": "cosine_spearman",
    "Retrieval": "ndcg_at_10",
    "Classification": "accuracy",
    "ImageClassification": "accuracy",
}


def make_task(data: TaskData, *, seed: int = 0) -> AbsTask:
    """The MTEB task of `data`; `seed` decides the split and the draws of a classification."""
    if isinstance(data, Pairs):
        return LocalSTS(data, seed=seed)
    if isinstance(data, Retrieval):
        return LocalRetrieval(data, seed=seed)
    if isinstance(data, LabelledImages):
        return LocalNeighbours(data, seed=seed)
    return LocalClassification(data, seed=seed)


def metric_name(task: AbsTask) -> str:
    """MTEB's name of the main score; an accuracy of neighbours says so."""
    name = task.metadata.main_score
    return f"knn_{name}" if isinstance(task, LocalNeighbours) else name


def _metadata(data: TaskData, kind: str) -> TaskMetadata:
    pictures = kind == "ImageClassification"
    # "local/" keeps a file called query.csv from being taken for the model's prompt of that name.
    return TaskMetadata(
        name=f"local/{data.name}",
        description=f"{kind} on {data.path.name}",
        dataset={"path": str(data.path), "revision": data.sha256},
        type=kind,
        category="i2c" if pictures else "t2t",
        modalities=["image" if pictures else "text"],
        eval_langs=["und-Zyyy"],
        main_score=_METRICS[kind],
    )


class LocalSTS(AbsTaskSTS):
    """Semantic textual similarity on a CSV of scored pairs."""

    def __init__(self, data: Pairs, *, seed: int = 0) -> None:
        self.data = data
        self.metadata = _metadata(data, "STS")
        self.min_score, self.max_score = min(data.scores), max(data.scores)
        super().__init__(seed=seed)
        self.load_data()

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        """Hands over the pairs; nothing is downloaded."""
        columns = {"sentence1": self.data.first, "sentence2": self.data.second, "score": self.data.scores}
        self.dataset = DatasetDict(test=Dataset.from_dict(columns))
        self.data_loaded = True


class LocalRetrieval(AbsTaskRetrieval):
    """Retrieval over a folder's corpus, exhaustively. Ranks beyond 100 are not asked for: they only cost time."""

    k_values = (1, 10, 100)

    def __init__(self, data: Retrieval, *, seed: int = 0) -> None:
        self.data = data
        self.metadata = _metadata(data, "Retrieval")
        super().__init__(seed=seed)
        self.load_data()

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        """Hands over corpus, queries and judgements; nothing is downloaded."""
        queries = self.data.queries
        split = {
            "corpus": Dataset.from_list(self.data.corpus),
            "queries": Dataset.from_dict({"id": list(queries), "text": list(queries.values())}),
            "relevant_docs": self.data.relevant,
            "top_ranked": None,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class LocalClassification(AbsTaskClassification):
    """Few-shot classification on a file of labelled lines."""

    def __init__(self, data: Labels, *, seed: int = 0) -> None:
        self.data = data
        self.metadata = _metadata(data, "Classification")
        super().__init__(seed=seed)
        self.load_data()

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        """Splits the texts in halves, label by label; nothing is downloaded."""
        rows = defaultdict(list)
        for row, label in enumerate(self.data.labels):
            rows[label].append(row)
        shuffle = random.Random(self.seed).shuffle
        splits: dict[str, list[int]] = {"train": [], "test": []}
        for label in sorted(rows):
            shuffle(rows[label])
            half = len(rows[label]) // 2
            splits["train"] += rows[label][:half]
            splits["test"] += rows[label][half:]
        number = {label: i for i, label in enumerate(sorted(rows))}
        self.dataset = DatasetDict(
            {
                split: Dataset.from_dict(
                    {
                        "text": [self.data.texts[i] for i in sorted(chosen)],
                        "label": [number[self.data.labels[i]] for i in sorted(chosen)],
                    }
                )
                for split, chosen in splits.items()
            }
        )
        self.data_loaded = True


class LocalNeighbours(AbsTaskClassification):
    """Classification of images by a vote of their nearest neighbours, all of which are used, once."""

    input_column_name = "image"
    n_experiments = 1
    evaluator_model = KNeighborsClassifier(n_neighbors=NEIGHBOURS, metric="cosine")

    def __init__(self, data: LabelledImages, *, seed: int = 0) -> None:
        self.data = data
        self.metadata = _metadata(data, "ImageClassification")
        self.samples_per_label = len(data.neighbours)
        super().__init__(seed=seed)
        self.load_data()

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        """Hands over rows that are decoded when they are asked for; nothing is downloaded."""
        number = {label: i for i, label in enumerate(sorted(set(self.data.neighbours.labels or ())))}
        self.dataset = DatasetDict(
            train=_lazy_dataset(self.data.neighbours, number), test=_lazy_dataset(self.data.queries, number)
        )
        self.data_loaded = True


def _lazy_dataset(images: Images, number: dict[str, int]) -> Dataset:
    """Images in memory, decoded or as PNG, would be gigabytes; so each row holds its number in place of a path."""
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
