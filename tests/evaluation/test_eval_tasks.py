"""Each kind of local task is scored by MTEB, and its samples make that score again."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.images import make_labels, make_pixels, write_folder, write_idx
from support.models import WORDS, save_tiny_clip
from support.sentences import load, local, make_sentences
from support.task_files import write_jsonl, write_pairs, write_retrieval, write_task
from ternarize_cli.data.images import read_labelled, read_parts
from ternarize_cli.errors import DataError
from ternarize_cli.evaluation.reading import TaskData, read_tasks

Scored = Callable[..., tuple[float, Any, Any]]


@pytest.fixture
def scored(tmp_path: Path) -> Scored:
    """Evaluates with MTEB: `scored(encoder, data)` → main score, samples, task."""

    def call(encoder: Any, data: TaskData, **attributes: Any) -> tuple[float, Any, Any]:
        import mteb

        from ternarize_cli.evaluation.encoder import quiet_mteb
        from ternarize_cli.evaluation.samples import samples_of
        from ternarize_cli.evaluation.tasks import make_task

        task = make_task(data, seed=1)
        for name, value in attributes.items():
            setattr(task, name, value)
        folder = tmp_path / "predictions"
        quiet = {"co2_tracker": False, "show_progress_bar": False, "cache": None}
        with quiet_mteb():
            result = mteb.evaluate(encoder, task, prediction_folder=folder, **quiet)
        scores = result.task_results[0].scores["test"][0]
        return scores["main_score"], samples_of(task, folder, "test", "default", scores), task

    return call


@pytest.fixture(scope="module")
def encoder(tiny_bert: Path) -> Any:
    return local(load(tiny_bert))


def write_texts(folder: Path) -> dict[str, Path]:
    """A task file for each kind of texts, made so that no score is 0 or 1."""
    chance, sentences = random.Random(3), make_sentences()
    first, second = sentences[:30], sentences[30:]
    write_pairs(
        folder / "pairs.csv",
        [(a, b, len(set(a.split()) & set(b.split())) + chance.random()) for a, b in zip(first, second, strict=True)],
    )
    labelled = [(a, b, float(i % 3 == 0)) for i, (a, b) in enumerate(zip(first, second, strict=True))]
    write_pairs(folder / "same.csv", labelled)
    (folder / "one.txt").write_text("\n".join(sentences[:40]))
    noisy = [" ".join([*s.split()[::-1], chance.choice(WORDS), chance.choice(WORDS)]) for s in sentences[:40]]
    (folder / "two.txt").write_text("\n".join(noisy))
    topics = [(label, f"{label} {chance.choice(WORDS)} {chance.choice(WORDS)}") for label in WORDS[9:15] * 9]
    write_jsonl(folder / "topics.jsonl", [{"label": label, "text": text} for label, text in topics])
    pages = write_retrieval(folder / "pages", [{"_id": f"q{i}", "text": sentences[i]} for i in range(20)])
    write_jsonl(pages / "corpus.jsonl", [{"_id": f"d{i}", "text": text} for i, text in enumerate(noisy)])
    (pages / "qrels").mkdir()
    rows = [f"q{q}\td{d}\t{grade}" for q in range(20) for d, grade in ((q, 1), ((q * 7 + 1) % 40, 2))]
    (pages / "qrels" / "dev.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]))
    kinds = {
        "sts": ["pairs.csv"],
        "pair-classification": ["same.csv"],
        "bitext": ["one.txt", 'translations = "two.txt"'],
        "retrieval": ["pages", 'split = "dev"'],
        "classification": ["topics.jsonl"],
        "clustering": ["topics.jsonl"],
    }
    return {
        kind: write_task(folder, "\n".join([f'type = "{kind}"', f'path = "{path}"', *more]), f"{kind}.toml")
        for kind, (path, *more) in kinds.items()
    }


@pytest.mark.parametrize(
    ("kind", "metric", "statistic", "count", "tolerance"),
    [
        ("sts", "cosine_spearman", "spearman", 30, 1e-6),
        ("pair-classification", "max_ap", "average_precision", 30, 1e-6),
        ("bitext", "f1", "mean", 40, 1e-6),
        ("retrieval", "ndcg_at_10", "mean", 20, 5.1e-6),  # MTEB rounds to five decimals
        ("classification", "accuracy", "mean", 30, 1e-6),
        ("clustering", "v_measure", "mean", 10, 1e-6),
    ],
)
def test_the_samples_of_texts_make_the_main_score(
    kind: str,
    metric: str,
    statistic: str,
    count: int,
    tolerance: float,
    encoder: Any,
    scored: Scored,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from ternarize_cli.evaluation.tasks import metric_name

    (data,) = read_tasks(task_files=[write_texts(tmp_path)[kind]])
    score, samples, task = scored(encoder, data)
    assert metric_name(task) == metric
    assert abs(score) > 0.01
    assert score < 0.99
    assert (samples.statistic, len(samples.values)) == (statistic, count)
    assert samples.value() == pytest.approx(score, abs=tolerance)
    assert (samples.gold is None) == (statistic == "mean")
    assert capfd.readouterr().err == ""  # no bars


@pytest.mark.parametrize("metric", ["similarity_ap", "dot_ap", "euclidean_ap", "manhattan_ap"])
def test_average_precision_is_that_of_the_similarity_in_question(
    metric: str, encoder: Any, scored: Scored, tmp_path: Path
) -> None:
    (data,) = read_tasks(task_files=[write_texts(tmp_path)["pair-classification"]])
    from ternarize_cli.evaluation.tasks import make_task

    metadata = make_task(data).metadata.model_copy(update={"main_score": metric})
    score, samples, _ = scored(encoder, data, metadata=metadata)
    assert samples.value() == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "metric", "known"),
    [
        ("sts", "euclidean_spearman", True),
        ("sts", "cosine_pearson", False),
        ("bitext", "accuracy", True),
        ("bitext", "precision", False),
        ("retrieval", "map_at_100", True),
        ("retrieval", "precision_at_1", True),
        ("retrieval", "mrr_at_10", False),
        ("classification", "f1", False),
        ("clustering", "ami", False),
    ],
)
def test_other_main_scores_have_samples_that_make_them_or_none(
    kind: str, metric: str, known: bool, encoder: Any, scored: Scored, tmp_path: Path
) -> None:
    from ternarize_cli.evaluation.tasks import make_task

    (data,) = read_tasks(task_files=[write_texts(tmp_path)[kind]])
    metadata = make_task(data).metadata.model_copy(update={"main_score": metric})
    score, samples, _ = scored(encoder, data, metadata=metadata)
    assert (samples is not None) == known
    assert samples is None or samples.value() == pytest.approx(score, abs=5.1e-6)


def test_the_samples_of_queries_are_in_the_order_of_the_file(encoder: Any, scored: Scored, tmp_path: Path) -> None:
    (data,) = read_tasks(task_files=[write_texts(tmp_path)["retrieval"]])
    _, samples, task = scored(encoder, data)
    assert list(data.queries) == list(task.dataset["default"]["test"]["queries"]["id"])
    similarity = (
        encoder.model.encode(list(data.queries.values())) @ encoder.model.encode([row["text"] for row in data.corpus]).T
    )
    ids = [row["id"] for row in data.corpus]
    for row, query, value in zip(similarity, data.queries, samples.values, strict=True):
        gains = [data.relevant[query].get(ids[d], 0) for d in np.argsort(-row)[:10]]
        ideal = sorted(data.relevant[query].values(), reverse=True)
        gain, best = (sum(g / np.log2(rank + 2) for rank, g in enumerate(g)) for g in (gains, ideal))
        assert value == pytest.approx(gain / best, abs=1e-5)


def test_a_file_to_learn_from_leaves_the_whole_other_file_to_the_test(tmp_path: Path) -> None:
    from ternarize_cli.evaluation.tasks import make_task

    (tmp_path / "train.tsv").write_text("text\tlabel\ncat\ta\ndog\tb\nbird\tb\n")
    (tmp_path / "test.tsv").write_text("text\tlabel\ntree\tb\nstone\tb\n")
    table = 'type = "classification"\npath = "test.tsv"\ntrain = "train.tsv"\n'
    (data,) = read_tasks(task_files=[write_task(tmp_path, table)])
    splits = make_task(data).dataset
    assert {split: list(splits[split]["text"]) for split in splits} == {
        "train": ["cat", "dog", "bird"],
        "test": ["tree", "stone"],
    }
    assert {split: list(splits[split]["label"]) for split in splits} == {"train": [0, 1, 1], "test": [1, 1]}


def test_no_predictions_are_no_samples(encoder: Any, scored: Scored, tmp_path: Path) -> None:
    from ternarize_cli.evaluation.samples import samples_of

    (data,) = read_tasks(task_files=[write_texts(tmp_path)["sts"]])
    _, samples, task = scored(encoder, data)
    assert samples is not None
    assert samples_of(task, tmp_path, "test", "default") is None
    assert samples_of(task, tmp_path / "predictions", "dev", "default") is None


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """60 images to learn from, 20 to label; labels that the pixels tell only half of the time."""
    for part, count in (("train", 60), ("test", 20)):
        labels = [i // 2 % 3 if i % 4 else i % 2 for i in range(count)]
        write_idx(tmp_path / "pictures", part, make_pixels(count, seed=count), labels)
    return tmp_path / "pictures"


def test_images_are_scored_by_neighbours_and_by_a_linear_probe_over_one_encoding(
    tiny_vit: Path, pictures: Path, scored: Scored
) -> None:
    from sklearn.linear_model import LogisticRegression

    from ternarize_cli.encoders.loading import load_encoder
    from ternarize_cli.evaluation.tasks import metric_name

    encoded: list[int] = []

    def track(batches: Any, description: str) -> Any:
        encoded.append(len(batches))
        return batches

    model = load_encoder(tiny_vit, device="cpu")
    encoder = local(model, track=track)
    knn, linear = read_tasks(images=[pictures], limit=20)
    assert (knn.name, linear.name) == ("pictures", "pictures-linear")
    assert knn.sha256 != linear.sha256
    results = [scored(encoder, data) for data in (knn, linear)]
    assert [metric_name(task) for *_, task in results] == ["knn_accuracy", "linear_accuracy"]
    assert len(encoded) == 2  # the training part and the test part, once
    for score, samples, _ in results:
        assert samples.value() == pytest.approx(score, abs=1e-6)
        assert set(samples.values) == {0.0, 1.0}
    parts = {part: model.encode(list(read_labelled(pictures, part))) for part in ("train", "test")}
    probe = LogisticRegression(max_iter=10_000).fit(parts["train"], read_labelled(pictures, "train").labels)
    right = probe.predict(parts["test"]) == np.asarray(read_labelled(pictures, "test").labels)
    assert results[1][1].values.tolist() == right.tolist()


def test_an_image_that_changes_parts_changes_the_hash(tmp_path: Path) -> None:
    pixels, labels = make_pixels(20, seed=0), [i % 2 for i in range(20)]
    hashes = set()
    for learned in (10, 12):
        for part, rows in (("train", slice(learned)), ("test", slice(learned, None))):
            write_idx(tmp_path / str(learned), part, pixels[rows], labels[rows])
        hashes.add(read_tasks(images=[tmp_path / str(learned)])[0].sha256)
    assert len(hashes) == 2


ZERO_SHOT = 'type = "zero-shot"\npath = "pictures"\nlimit = 18\ntemplate = "a {} light"\n'


def test_zero_shot_gives_an_image_the_label_of_the_nearest_text(pictures: Path, tmp_path: Path, scored: Scored) -> None:
    from ternarize_cli.encoders.loading import load_encoder

    names = {"0": "red", "1": "green", "2": "small dog"}
    table = ZERO_SHOT + "[labels]\n" + "".join(f'{label} = "{name}"\n' for label, name in names.items())
    (data,) = read_tasks(task_files=[write_task(tmp_path, table)])
    assert data.size == 18
    assert data.modalities == {"image", "text"}
    model = load_encoder(save_tiny_clip(tmp_path / "clip"), device="cpu")
    score, samples, _ = scored(local(model), data)
    texts = model.encode([f"a {name} light" for name in names.values()], normalize_embeddings=True)
    nearest = (model.encode(list(data.images)) @ texts.T).argmax(axis=1)
    right = [str(i) == label for i, label in zip(nearest, data.images.labels, strict=True)]
    assert samples.values.tolist() == right
    assert samples.value() == pytest.approx(score, abs=1e-6)
    assert score == pytest.approx(np.mean(right))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('[labels]\n0 = "red"\n1 = "green"\n', "the label '2' has no name"),
        ('[labels]\n0 = "a"\n1 = "b"\n2 = "c"\n3 = "d"\n', "no image has the label '3'"),
    ],
)
def test_names_of_other_labels_are_refused(more: str, message: str, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_tasks(task_files=[write_task(tmp_path, ZERO_SHOT + more)])
    with pytest.raises(DataError, match=r"the template 'a photo' has no \{\}"):
        read_tasks(task_files=[write_task(tmp_path, ZERO_SHOT.replace("a {} light", "a photo"))])


def test_images_that_do_not_decode_are_skipped_and_named_or_refused(tmp_path: Path) -> None:
    for part, count in (("train", 12), ("test", 6)):
        write_folder(tmp_path / "x" / part, make_pixels(count), make_labels(count))
    whole = read_tasks(images=[tmp_path / "x"])
    broken = tmp_path / "x" / "test" / "1" / "bad.png"
    broken.write_bytes(b"no image")
    (tmp_path / "x" / "train" / "0" / "zero.png").touch()
    knn, linear = read_tasks(images=[tmp_path / "x"])
    assert len(knn.skipped) == 2
    assert knn.skipped[1] == f"{broken} can't be read: no image that Pillow knows"
    assert linear.skipped == ()  # said once
    assert [data.sha256 for data in (knn, linear)] == [data.sha256 for data in whole]
    assert (len(knn.neighbours), knn.size) == (12, 6)
    with pytest.raises(DataError, match=r"zero\.png can't be read"):
        read_tasks(images=[tmp_path / "x"], strict=True)
    for file in (tmp_path / "x" / "test").glob("*/*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"none of 7 images can be decoded; .*bad\.png"):
        read_tasks(images=[tmp_path / "x"])


@pytest.mark.parametrize("fine", [False, True])
def test_the_binary_version_of_cifar_is_read(fine: bool, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    labels = np.array([0, 1, 2, 0, 1, 2, 0], dtype=np.uint8)
    head = np.stack([labels * 0 + 9, labels], axis=1) if fine else labels[:, None]
    records = np.concatenate([head, pixels.transpose(0, 3, 1, 2).reshape(7, -1)], axis=1)
    names = ("train.bin", "test.bin") if fine else ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin")
    for name in names:
        (tmp_path / name).write_bytes(records.tobytes())
    assert read_tasks_fails(tmp_path)  # without the names of the classes this is no CIFAR
    (tmp_path / ("fine_label_names.txt" if fine else "batches.meta.txt")).write_text("cat\ndog\nbird\n\n")
    parts = read_parts(tmp_path)
    assert {part: len(images) for part, images in parts.items()} == {"train": 7 if fine else 14, "test": 7}
    assert parts["test"].labels == ["cat", "dog", "bird", "cat", "dog", "bird", "cat"]
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in parts["test"]]), pixels)
    (tmp_path / names[-1]).write_bytes(records.tobytes()[:-1])
    with pytest.raises(DataError, match=r"\.bin: \d+ bytes are no records of 307[34]"):
        read_parts(tmp_path)
    records[3, int(fine)] = 5
    (tmp_path / names[-1]).write_bytes(records.tobytes())
    with pytest.raises(DataError, match=r"\.bin, image 3: the label 5 has no name"):
        read_parts(tmp_path)


def read_tasks_fails(folder: Path) -> bool:
    with pytest.raises(DataError, match="holds no images"):
        read_tasks(images=[folder])
    return True
