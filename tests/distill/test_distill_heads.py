"""Cross-encoders learn their teacher's scores of pairs, sparse encoders its sparse vectors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SparseEncoder

from support.heads import PAIRS, save_headed, write_pairs
from support.models import WORDS
from ternarize_cli.compress.convert import convert
from ternarize_cli.data.pairs import pairs_of
from ternarize_cli.distill import DistillReport, Training, distill
from ternarize_cli.distill.data import Sources, read_corpus
from ternarize_cli.distill.losses import score_error
from ternarize_cli.encoders.heads import load_cross_encoder
from ternarize_cli.errors import CheckpointError, DataError, InputError


def train(source: Path, data: Path, **settings: object) -> DistillReport:
    folder = source.parent
    convert(source, folder / "latent")
    training = Training(steps=60, batch_size=32, learning_rate=1e-3, **settings)  # type: ignore[arg-type]
    return distill(folder / "latent", source, Sources([data]), folder / "trained", training)


def test_a_cross_encoder_comes_nearer_to_its_teacher_s_scores(tmp_path: Path) -> None:
    source, data = save_headed(tmp_path / "source"), write_pairs(tmp_path / "pairs.csv", 400)
    report = train(source, data)
    assert report.scores
    assert report.cosine_after > report.cosine_before
    errors = [
        abs(CrossEncoder(str(tmp_path / name)).predict(PAIRS) - CrossEncoder(str(source)).predict(PAIRS)).mean()
        for name in ("trained", "latent")
    ]
    assert errors[0] < errors[1]


def test_a_sparse_encoder_comes_nearer_to_its_teacher_s_vectors(tmp_path: Path) -> None:
    SparseEncoder(str(save_headed(tmp_path / "plain", "Bert", "MaskedLM"))).save_pretrained(str(tmp_path / "source"))
    rng = np.random.default_rng(0)
    (tmp_path / "texts.txt").write_text("\n".join(" ".join(rng.choice(WORDS, 6)) for _ in range(200)))
    report = train(tmp_path / "source", tmp_path / "texts.txt")
    assert report.cosine_after > report.cosine_before
    assert SparseEncoder(str(tmp_path / "trained")).encode(["the cat"]).shape[1] == len(WORDS) + 5


def test_pairs_are_tokenised_as_the_model_tokenises_them(tmp_path: Path) -> None:
    model = load_cross_encoder(save_headed(tmp_path / "source"))
    data = write_pairs(tmp_path / "pairs.csv", 40)
    corpus, held = read_corpus(model, tmp_path / "source", Sources([data]), max_length=None, seed=0)  # type: ignore[arg-type]
    assert len(corpus.lengths) + len(held.lengths) == 40
    from ternarize_cli.distill.batch_sampler import Piece

    made = corpus.features([Piece((0,), 0, int(corpus.lengths[0]), 0)])
    shown = [model.preprocess([pair]) for pair in pairs_of(data, 100, 0)]
    assert any(all(torch.equal(made[key], other[key]) for key in made) for other in shown)


def test_texts_without_a_partner_get_the_next_one_and_one_at_random(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a\nb\nc\n")
    found = list(pairs_of(tmp_path / "texts.txt", 100, 0))
    assert found[::2] == [("a", "b"), ("b", "c"), ("c", "a")]
    assert len(found) == 6


def test_a_row_with_a_positive_and_a_negative_is_two_pairs(tmp_path: Path) -> None:
    (tmp_path / "triples.jsonl").write_text('{"query": "q", "positive": "p", "negative": "n"}\n')
    assert list(pairs_of(tmp_path / "triples.jsonl", 100, 0)) == [("q", "p"), ("q", "n")]
    (tmp_path / "bad.csv").write_text("query,passage\nq,\n")
    with pytest.raises(DataError, match=r"bad\.csv, line 2: the second text is empty"):
        list(pairs_of(tmp_path / "bad.csv", 100, 0))


def test_the_error_of_scores_is_that_of_their_differences_and_of_their_mean() -> None:
    teacher = torch.tensor([[1.0], [2.0], [3.0]])
    assert score_error(teacher, teacher) == 0
    assert torch.isclose(score_error(teacher + 1, teacher), torch.tensor(1 / (14 / 3)))
    assert torch.isclose(score_error(torch.full((3, 1), 2.0), teacher), torch.tensor(1.0))


def test_losses_and_teachers_of_another_kind_are_refused(tmp_path: Path, tiny_bert: Path) -> None:
    source, data = save_headed(tmp_path / "source"), write_pairs(tmp_path / "pairs.csv")
    with pytest.raises(InputError, match="cosine of the loss is not for this model, which gives scores"):
        train(source, data, losses={"cosine": 1.0})
    convert(tiny_bert, tmp_path / "vectors")
    with pytest.raises(InputError, match="score of the loss is not for this model, which gives vectors"):
        distill(
            tmp_path / "vectors", tiny_bert, Sources([data]), tmp_path / "out", Training(steps=1, losses={"score": 1})
        )
    with pytest.raises(CheckpointError, match="is an encoder"):
        distill(tmp_path / "latent", tiny_bert, Sources([data]), tmp_path / "out", Training(steps=1))
