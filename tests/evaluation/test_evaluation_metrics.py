"""MTEB's metrics on local files agree with their formulas written out by hand."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.images import make_pixels, write_idx
from support.models import WORDS
from support.sentences import cosines, load, local, make_sentences
from support.task_files import write_jsonl, write_pairs, write_retrieval
from ternarize_cli.data.images import read_labelled
from ternarize_cli.errors import CheckpointError
from ternarize_cli.evaluation.reading import read_tasks


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    return make_sentences()


def main_score(encoder: Any, **files: Any) -> float:
    from ternarize_cli.evaluation.compare import score

    task, *_ = read_tasks(**files)
    return score(local(encoder), task).value


def test_sts_is_the_rank_correlation_of_cosines_and_scores(
    tiny_bert: Path, sentences: list[str], tmp_path: Path
) -> None:
    from scipy.stats import spearmanr

    first, second, encoder = sentences[:30], sentences[30:], load(tiny_bert)
    scores = [float(i * 7 % 5) for i in range(30)]
    file = write_pairs(tmp_path / "pairs.csv", list(zip(first, second, scores, strict=True)))
    by_hand = spearmanr(cosines(encoder, first, second), scores)[0]
    assert main_score(encoder, sts=[file]) == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("layout", ["relevant", "qrels"])
def test_retrieval_is_ndcg_at_10(layout: str, tiny_bert: Path, sentences: list[str], tmp_path: Path) -> None:
    encoder, folder = load(tiny_bert), tmp_path / "pages"
    corpus, queries = sentences[:40], sentences[40:50]
    judged = {q: {(q * 3 + k) % 40: 1 + (k if layout == "qrels" else 0) for k in range(0, 12, 4)} for q in range(10)}
    write_jsonl(folder / "corpus.jsonl", [{"_id": f"d{i}", "text": t} for i, t in enumerate(corpus)])
    records = [{"_id": f"q{i}", "text": t} for i, t in enumerate(queries)]
    if layout == "relevant":
        records = [r | {"relevant": [f"d{d}" for d in judged[i]]} for i, r in enumerate(records)]
    else:
        records.append({"_id": "of another split", "text": "stone"})
        rows = [f"q{q}\td{d}\t{grade}" for q, grades in judged.items() for d, grade in grades.items()]
        (folder / "qrels").mkdir()
        (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]))
    write_jsonl(folder / "queries.jsonl", records)

    similarity = encoder.encode(queries) @ encoder.encode(corpus).T
    total = 0.0
    for q, grades in judged.items():
        ranked = sorted(range(40), key=lambda d: -similarity[q, d])[:10]
        gain = sum(grades.get(d, 0) / math.log2(rank + 2) for rank, d in enumerate(ranked))
        ideal = sum(g / math.log2(rank + 2) for rank, g in enumerate(sorted(grades.values(), reverse=True)))
        total += gain / ideal
    assert 0 < total / 10 < 1
    assert main_score(encoder, retrieval=[folder]) == pytest.approx(total / 10, abs=1e-5)


def test_a_query_does_not_find_the_document_of_its_own_id_as_in_beir(tiny_bert: Path, tmp_path: Path) -> None:
    texts = {"x1": "cat dog", "x2": "cat dog house", "x3": "river stone", "x4": "river stone light"}
    folder = write_retrieval(
        tmp_path / "pages",
        [
            {"_id": "x1", "text": "cat dog", "relevant": ["x2"]},
            {"_id": "x3", "text": "river stone", "relevant": ["x4"]},
        ],
    )
    write_jsonl(folder / "corpus.jsonl", [{"_id": key, "text": text} for key, text in texts.items()])
    assert main_score(load(tiny_bert), retrieval=[folder]) == 1.0
    # ids that only happen to be equal: a query is answered by the document of its own id
    write_jsonl(folder / "queries.jsonl", [{"_id": "x1", "text": "cat dog", "relevant": ["x1"]}])
    assert main_score(load(tiny_bert), retrieval=[folder]) == 1.0


def test_a_title_is_part_of_the_document(tiny_bert: Path, tmp_path: Path) -> None:
    folder = write_retrieval(tmp_path / "pages", [{"_id": "q", "text": "river stone light", "relevant": ["d1"]}])
    documents = [{"_id": "d1", "title": "river", "text": "stone light"}, {"_id": "d2", "text": "mouse"}]
    write_jsonl(folder / "corpus.jsonl", documents)
    assert main_score(load(tiny_bert), retrieval=[folder]) == 1.0


@pytest.mark.slow
def test_classification_learns_what_is_separable_and_not_what_is_random(tiny_bert: Path, tmp_path: Path) -> None:
    chance, clear, noise = random.Random(0), tmp_path / "clear.tsv", tmp_path / "noise.tsv"
    texts = [f"{word} {' '.join([word] * (i % 5))}" for i in range(30) for word in ("fire", "keyboard")]
    clear.write_text("".join(f"{t.split()[0]}\t{t}\n" for t in texts))
    noise.write_text("".join(f"{chance.choice('ab')}\t{' '.join(chance.choices(WORDS, k=5))}\n" for _ in range(200)))
    encoder = load(tiny_bert)
    assert main_score(encoder, classification=[clear]) == 1.0
    assert 0.3 < main_score(encoder, classification=[noise]) < 0.7


def test_images_get_the_label_of_most_of_their_nearest_neighbours(tiny_vit: Path, tmp_path: Path) -> None:
    from collections import Counter

    from ternarize_cli.encoders.loading import load_encoder

    labels = {"train": [i // 2 % 3 for i in range(24)], "test": [i % 3 for i in range(9)]}
    for part, numbers in labels.items():
        write_idx(tmp_path, part, make_pixels(len(numbers), seed=len(numbers)), numbers)
    encoder = load_encoder(tiny_vit, device="cpu")
    kept, queries = (encoder.encode(list(read_labelled(tmp_path, part)), normalize_embeddings=True) for part in labels)
    right = 0
    for vector, label in zip(queries, labels["test"], strict=True):
        votes = Counter(labels["train"][i] for i in np.argsort(-(kept @ vector), kind="stable")[:5])
        # scikit-learn gives a tie to the smallest label
        right += min(votes, key=lambda vote: (-votes[vote], vote)) == label
    assert 0 < right < 9
    assert main_score(encoder, images=[tmp_path], limit=9) == pytest.approx(right / 9)


def test_the_seed_decides_a_split_that_holds_every_text_once(tmp_path: Path) -> None:
    from ternarize_cli.evaluation.tasks import make_task

    file = tmp_path / "topics.tsv"
    file.write_text("".join(f"{'ab'[i % 3 == 0]}\ttext {i}\n" for i in range(31)))
    (data,) = read_tasks(classification=[file])
    splits = [make_task(data, seed=seed).dataset for seed in (0, 0, 1)]
    texts = [(list(s["train"]["text"]), list(s["test"]["text"])) for s in splits]
    assert texts[0] == texts[1] != texts[2]
    assert sorted(texts[0][0] + texts[0][1]) == sorted(data.texts)
    assert len(texts[0][0]) == 15


def encoded(encoder: Any, texts: list[str], prompt_type: Any = None) -> Any:
    from types import SimpleNamespace

    metadata = SimpleNamespace(name="local/x", type="Retrieval")
    batches = [{"text": texts[:7]}, {"text": texts[7:]}]
    return encoder.encode(
        batches, task_metadata=metadata, hf_split="", hf_subset="", prompt_type=prompt_type, batch_size=4
    )


def test_vectors_come_back_in_the_order_of_the_texts(tiny_bert: Path, sentences: list[str]) -> None:
    encoder = load(tiny_bert)
    assert encoded(local(encoder), sentences) == pytest.approx(encoder.encode(sentences), abs=1e-6)


def test_queries_get_the_models_query_prompt(tiny_bert: Path, sentences: list[str]) -> None:
    from mteb.types import PromptType

    encoder = load(tiny_bert)
    encoder.prompts["query"] = "search for "
    expected = encoder.encode([f"search for {s}" for s in sentences])
    assert encoded(local(encoder), sentences, PromptType.query) == pytest.approx(expected, abs=1e-6)
    assert encoded(local(encoder), sentences, PromptType.document) == pytest.approx(encoder.encode(sentences), abs=1e-6)


def test_two_models_of_one_name_differ_in_mtebs_eyes(tiny_bert: Path) -> None:
    encoder = load(tiny_bert)
    metas = [local(encoder, name="m", content_hash=digit * 64).mteb_model_meta for digit in "12"]
    assert [(m.name, m.revision) for m in metas] == [("local/m", "1" * 64), ("local/m", "2" * 64)]


def test_vectors_that_are_not_finite_are_refused(tiny_bert: Path) -> None:
    encoder = load(tiny_bert)
    encoder[0].auto_model.embeddings.word_embeddings.weight.data.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="tiny gives vectors that are not finite"):
        encoded(local(encoder), ["cat", "dog"])


def test_a_collapsed_model_has_no_spearman(tiny_bert: Path, tmp_path: Path) -> None:
    encoder = load(tiny_bert)
    for parameter in encoder.parameters():
        parameter.data.zero_()
    file = write_pairs(tmp_path / "pairs.csv", [("cat", "dog", 1.0), ("tree", "house", 2.0), ("fire", "bird", 3.0)])
    with pytest.raises(CheckpointError, match="tiny on pairs: cosine_spearman is undefined"):
        main_score(encoder, sts=[file])
