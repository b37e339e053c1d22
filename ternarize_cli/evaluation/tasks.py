"""Makes MTEB tasks of local files, so that every metric is MTEB's own code.

Each class derives from the MTEB task of its kind and replaces only `load_data`. Main scores:

    STS                    Spearman correlation of cosine similarities and scores
    pair classification    average precision of the best of five similarities (cosine, dot product, Euclidean, …)
    bitext                 F1 of the nearest neighbour being the translation
    retrieval              nDCG@10 of an exhaustive search
    classification         accuracy of a logistic regression on 8 texts per label, the mean of 10 draws
    clustering             V-measure of k-means, the mean of 10 draws of as many texts as there are (at most 16,384),
                           with replacement
    images                 see `ternarize_cli.evaluation.image_tasks`

A classification without a training file is split: the texts of each label are shuffled by the seed, half of them
(rounded down) are for training, the others are the test. Student and teacher get the same split and the same draws.
"""

from typing import Any

from datasets import Dataset, DatasetDict
from mteb.abstasks import (
    AbsTask,
    AbsTaskBitextMining,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)

from ternarize_cli.evaluation.image_tasks import LocalImageClassification, LocalZeroShot
from ternarize_cli.evaluation.labels import Clusters, Labels, halves
from ternarize_cli.evaluation.local_task import LocalTask
from ternarize_cli.evaluation.neighbours import LabelledImages
from ternarize_cli.evaluation.reading import TaskData
from ternarize_cli.evaluation.retrieval import Retrieval
from ternarize_cli.evaluation.scored_pairs import Bitext, LabelledPairs, Pairs
from ternarize_cli.evaluation.zero_shot import ZeroShot

__all__ = [
    "LocalBitext",
    "LocalClassification",
    "LocalClustering",
    "LocalPairClassification",
    "LocalRetrieval",
    "LocalSTS",
    "make_task",
    "metric_name",
]

_MOST_PER_DRAW = 16_384  # the number in MTEB's clustering tasks


def make_task(data: TaskData, *, seed: int = 0) -> AbsTask:
    """Makes the MTEB task of `data`; `seed` decides the split and the draws of a classification or clustering."""
    task: AbsTask = _TASKS[type(data)](data, seed=seed)
    return task


def metric_name(task: AbsTask) -> str:
    """MTEB's name of the main score; for images, an accuracy also names its classifier."""
    name = task.metadata.main_score
    return f"{task.data.classifier}_{name}" if isinstance(task, LocalImageClassification) else name


class LocalSTS(LocalTask, AbsTaskSTS):
    """Semantic textual similarity on scored pairs."""

    kind, main_score = "STS", "cosine_spearman"
    data: Pairs

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        """Hands over the pairs."""
        self.min_score, self.max_score = min(self.data.scores), max(self.data.scores)  # type: ignore[assignment]
        columns = {"sentence1": self.data.first, "sentence2": self.data.second, "score": self.data.scores}
        self.dataset = DatasetDict(test=Dataset.from_dict(columns))


class LocalPairClassification(LocalTask, AbsTaskPairClassification):
    """Classification of pairs of texts: those that belong together, and those that don't."""

    kind, main_score = "PairClassification", "max_ap"
    data: LabelledPairs

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        """Hands over the pairs."""
        columns = {"sentence1": self.data.first, "sentence2": self.data.second, "labels": self.data.labels}
        self.dataset = DatasetDict(test=Dataset.from_dict(columns))


class LocalBitext(LocalTask, AbsTaskBitextMining):
    """Bitext mining: finds each sentence's translation among all translations."""

    kind, main_score = "BitextMining", "f1"
    data: Bitext

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        """Hands over the sentences and their translations."""
        columns = {"sentence1": self.data.first, "sentence2": self.data.second}
        self.dataset = DatasetDict(test=Dataset.from_dict(columns))


class LocalRetrieval(LocalTask, AbsTaskRetrieval):
    """Exhaustive retrieval over a folder's corpus, up to rank 100, since further ranks only cost time."""

    kind, main_score = "Retrieval", "ndcg_at_10"
    k_values = (1, 10, 100)
    data: Retrieval

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        """Hands over corpus, queries and judgements."""
        self.ignore_identical_ids = self.data.among_documents
        queries = self.data.queries
        split = {
            "corpus": Dataset.from_list(self.data.corpus),
            "queries": Dataset.from_dict({"id": list(queries), "text": list(queries.values())}),
            "relevant_docs": self.data.relevant,
            "top_ranked": None,
        }
        self.dataset = {"default": {"test": split}}  # type: ignore[dict-item]


class LocalClassification(LocalTask, AbsTaskClassification):
    """Few-shot classification of labelled texts."""

    kind = "Classification"
    data: Labels

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        """Splits the texts in halves, label by label, unless there is a training file."""
        labels, count = self.data.labels, self.data.learned
        chosen = halves(labels, self.seed) if count is None else (range(count), range(count, len(labels)))
        number = {label: i for i, label in enumerate(sorted(set(labels)))}
        self.dataset = DatasetDict(
            {
                split: Dataset.from_dict(
                    {"text": [self.data.texts[i] for i in rows], "label": [number[labels[i]] for i in rows]}
                )
                for split, rows in zip(("train", "test"), chosen, strict=True)
            }
        )


class LocalClustering(LocalTask, AbsTaskClustering):
    """Clustering of labelled texts into as many clusters as there are labels."""

    kind, main_score = "Clustering", "v_measure"
    max_fraction_of_documents_to_embed = None
    data: Clusters

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        """Hands over the texts."""
        self.max_documents_per_cluster = min(self.data.size, _MOST_PER_DRAW)
        self.dataset = DatasetDict(test=Dataset.from_dict({"sentences": self.data.texts, "labels": self.data.labels}))


_TASKS: dict[type, type] = {
    Pairs: LocalSTS,
    LabelledPairs: LocalPairClassification,
    Bitext: LocalBitext,
    Retrieval: LocalRetrieval,
    Labels: LocalClassification,
    Clusters: LocalClustering,
    LabelledImages: LocalImageClassification,
    ZeroShot: LocalZeroShot,
}
