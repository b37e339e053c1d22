"""Data for distillation: what is read, how texts become inputs, and in which order."""

import gzip
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from support.models import WORDS, save_tiny_bert, save_tiny_vit
from ternarize_cli.data.images import read_images
from ternarize_cli.data.length_buckets import width_of
from ternarize_cli.distill.batch_sampler import Mixture, Piece, SamplingPlan, epoch
from ternarize_cli.distill.data import Sources, mixture_of, read_corpus
from ternarize_cli.distill.pixels import finished, preparation
from ternarize_cli.distill.training_corpus import ImageCorpus, TrainingCorpus
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.errors import CheckpointError, DataError, InputError

LENGTHS = np.random.default_rng(0).integers(2, 60, size=500)


def read(
    folder: Path, *paths: Path, max_length: int | None = None, **options: object
) -> tuple[TrainingCorpus, TrainingCorpus]:
    encoder = load_encoder(folder, device="cpu")
    return read_corpus(encoder, folder, Sources(paths, **options), max_length=max_length, seed=0)  # type: ignore[arg-type]


def pairs() -> list[tuple[str, str]]:
    return [(f"{a} {b}", f"{b} {c} {a}") for a, b, c in zip(WORDS, WORDS[1:], WORDS[2:], strict=False)]


def seen_first(plan: SamplingPlan) -> list[int]:
    """The rows of an epoch, sorted, without those that fill up its last batch."""
    rows = [row for batch in plan[:-1] for piece in batch for row in piece.rows]
    rest = [row for piece in plan[-1] for row in piece.rows]
    return sorted(rows + [row for row in rest if row not in set(rows)])


def test_an_epoch_sees_every_text_once_in_batches_of_like_length() -> None:
    plan = epoch(LENGTHS, Mixture(limit=100), 8, seed=1, number=0)
    assert seen_first(plan) == list(range(500))
    budget = 8 * round(float(LENGTHS.mean()))
    assert all(len(batch) * width_of(max(p.length for p in batch)) <= budget for batch in plan)
    shapes = Counter((width_of(max(p.length for p in batch)), len(batch)) for batch in plan[:-1])
    assert len(shapes) == len({width for width, _ in shapes})  # one number of inputs for a width
    spread = [max(p.length for p in batch) - min(p.length for p in batch) for batch in plan]
    assert np.mean(spread) < 6
    assert [*epoch(LENGTHS, Mixture(limit=100), 8, seed=1, number=0)] == [*plan]
    assert epoch(LENGTHS, Mixture(limit=100), 8, seed=1, number=1)[:] != plan[:]
    assert epoch(LENGTHS, Mixture(limit=100), 8, seed=2, number=0)[:] != plan[:]


def test_a_share_of_the_tokens_is_in_joined_texts_of_all_lengths() -> None:
    plan = epoch(LENGTHS, Mixture(limit=200, joined=0.3), 8, seed=0, number=0)
    joined = [piece for batch in plan for piece in batch if len(piece.rows) > 1]
    assert sum(p.length for p in joined) / LENGTHS.sum() == pytest.approx(0.3, abs=0.05)
    assert min(p.length for p in joined) < 120
    assert max(p.length for p in joined) > 150
    assert seen_first(plan) == list(range(500))


def test_of_long_texts_the_beginning_and_windows_are_seen() -> None:
    plan = epoch(np.full(400, 100), Mixture(limit=30), 8, seed=0, number=0)
    pieces = [piece for batch in plan for piece in batch]
    starts = [piece.start for piece in pieces]
    assert all(piece.length == 30 for piece in pieces)
    assert 0.4 < np.mean([start == 0 for start in starts]) < 0.6
    assert max(starts) == 70
    assert len(set(starts)) > 40


def test_widths_go_in_steps_of_at_most_an_eighth_above_64() -> None:
    widths = [width_of(length) for length in range(1, 513)]
    assert all(length <= width for length, width in enumerate(widths, 1))
    assert all(width - length < max(8, length / 8) for length, width in enumerate(widths, 1))
    assert len(set(widths)) == 39


def test_without_windows_only_beginnings_are_seen() -> None:
    plan = epoch(np.full(50, 100), Mixture(limit=30, windows=False), 8, seed=0, number=0)
    assert {(p.start, p.length) for batch in plan for p in batch} == {(0, 30)}


def test_weights_say_how_often_a_source_is_seen() -> None:
    sources = np.array([0] * 100 + [1] * 100)
    plan = epoch(np.full(200, 5), Mixture(50, sources=sources, weights=(2.0, 0.5)), 8, seed=0, number=0)
    seen = Counter(sources[row] for batch in plan[:-1] for piece in batch for row in piece.rows)
    assert 194 <= seen[0] <= 200  # the last batch, filled up from both, has the rest
    assert 44 <= seen[1] <= 50
    assert max(Counter(row for batch in plan[:-1] for piece in batch for row in piece.rows).values()) == 2


def test_a_small_rest_is_filled_up_with_the_next_shortest_inputs() -> None:
    lengths = np.array([1, 1, *range(60, 124)] * 10)
    plan = epoch(lengths, Mixture(limit=200), 64, seed=0, number=0)
    budget = 64 * round(float(lengths.mean()))
    assert seen_first(plan) == list(range(len(lengths)))
    width = width_of(max(piece.length for piece in plan[-1]))
    assert len(plan[-1]) * width <= budget < (len(plan[-1]) + 1) * width_of(max(piece.length for piece in plan[-1]) + 8)


def test_prompts_are_drawn_in_turn() -> None:
    plan = epoch(LENGTHS, Mixture(limit=100, prompts=3), 8, seed=0, number=0)
    assert set(Counter(piece.prompt for batch in plan for piece in batch)) == {0, 1, 2}


def test_from_the_second_epoch_on_some_tokens_of_a_share_of_the_inputs_are_changed(tmp_path: Path) -> None:
    mixture = Mixture(limit=100, changed=0.5)
    unchanged = epoch(LENGTHS, Mixture(limit=100), 8, seed=0, number=0)
    assert epoch(LENGTHS, mixture, 8, seed=0, number=0)[:] == unchanged[:]
    seeds = [piece.change for batch in epoch(LENGTHS, mixture, 8, seed=0, number=1) for piece in batch]
    assert np.mean([seed > 0 for seed in seeds]) == pytest.approx(0.5, abs=0.07)
    model = save_tiny_bert(tmp_path / "model")
    (tmp_path / "a.txt").write_text("\n".join(f"{a} {b}" for a, b in pairs()))
    corpus, _ = read(model, tmp_path / "a.txt", held_out=0)
    rows = tuple(range(10))
    pieces = [Piece(rows, 0, 99, 0), *(Piece(rows, 0, 99, 0, change=i) for i in range(1, 60)), Piece((0,), 0, 99, 0)]
    made = corpus.features(pieces)
    assert torch.equal(made["input_ids"], corpus.features(pieces)["input_ids"])
    whole, changed, short = made["input_ids"][0], made["input_ids"][1:-1], made["input_ids"][-1]
    assert torch.equal(whole, corpus.features(pieces[:1])["input_ids"][0])
    alone = corpus.features(pieces[-1:])["input_ids"][0]
    assert torch.equal(short[: len(alone)], alone)
    assert not short[len(alone) :].any()
    shares = (changed != whole).float().mean(dim=1)
    assert 0.05 < float(shares.mean()) < 0.2
    assert float(shares.max()) < 0.5
    assert (changed[:, [0, -1]] == whole[[0, -1]]).all()  # [CLS] and [SEP]
    assert set(changed.flatten().tolist()) <= {int(i) for ids in corpus.ids for i in ids} | set(whole.tolist())  # type: ignore[attr-defined]


def test_features_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    model = save_tiny_bert(tmp_path / "model")
    (tmp_path / "a.txt").write_text("\n".join(f"{a} {b}" for a, b in pairs()))
    corpus, _ = read(model, tmp_path / "a.txt", held_out=0)
    encoder = load_encoder(model, device="cpu")
    texts = [" ".join(encoder.tokenizer.convert_ids_to_tokens(corpus.ids[i])) for i in (3, 7)]  # type: ignore[attr-defined]
    wanted = encoder.preprocess([texts[0], f"{texts[0]} {texts[1]}"])
    made = corpus.features([Piece((3,), 0, 99, 0), Piece((3, 7), 0, 99, 0)])
    assert torch.equal(made["input_ids"], wanted["input_ids"])
    assert torch.equal(made["attention_mask"], wanted["attention_mask"])
    cut = corpus.features([Piece((3, 7), 2, 2, 0)])["input_ids"]
    assert cut.shape == (1, 4)
    assert torch.equal(cut[0, 1:3], wanted["input_ids"][1, 3:5])


def test_prompts_come_before_texts_and_leave_less_room(tmp_path: Path) -> None:
    model = save_tiny_bert(tmp_path / "model")
    config = {"prompts": {"query": "search index ", "document": "file "}, "default_prompt_name": "query"}
    (model / "config_sentence_transformers.json").write_text(json.dumps(config))
    (tmp_path / "a.txt").write_text("\n".join(f"{a} {b}" for a, b in pairs()))
    corpus, _ = read(model, tmp_path / "a.txt", max_length=20, held_out=0)
    assert corpus.prompts == 2
    assert corpus.limit == 20 - 4
    encoder = load_encoder(model, device="cpu")
    tokens = [
        encoder.tokenizer.convert_ids_to_tokens(corpus.features([Piece((0,), 0, 9, p)])["input_ids"][0]) for p in (0, 1)
    ]
    assert tokens[0][:2] == ["[CLS]", "file"]
    assert tokens[1][:3] == ["[CLS]", "search", "index"]
    with pytest.raises(InputError, match="no room"):
        read(model, tmp_path / "a.txt", max_length=4)


def test_pairs_and_triples_are_texts_wherever_they_are(tiny_bert: Path, tmp_path: Path) -> None:
    columns = {"anchor": [a for a, _ in pairs()], "positive": [b for _, b in pairs()], "id": ["x"] * len(pairs())}
    pq.write_table(pa.table(columns), tmp_path / "pairs.parquet")
    records = [{"query": a, "pos": [b], "neg": []} for a, b in pairs()]
    with gzip.open(tmp_path / "pairs.jsonl.gz", "wt") as stream:
        stream.write("\n".join(map(json.dumps, records)))
    for name in ("pairs.parquet", "pairs.jsonl.gz"):
        corpus, held = read(tiny_bert, tmp_path / name)
        assert len(corpus.lengths) + len(held.lengths) == 2 * len(pairs())
        assert Counter([*corpus.lengths, *held.lengths]) == {2: len(pairs()), 3: len(pairs())}


def test_held_out_texts_are_set_aside_and_repeated_ones_dropped(tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(2 * [a for a, _ in pairs()]))
    corpus, held = read(tiny_bert, tmp_path / "a.txt")
    texts = [tuple(ids) for part in (corpus, held) for ids in part.ids]  # type: ignore[attr-defined]
    assert len(texts) == len(set(texts)) == len(pairs())
    assert len(held.lengths) == len(pairs()) // 10


@pytest.mark.parametrize("content", ["", "one sentence\n", "the same\n" * 100])
def test_too_few_texts_are_refused(tiny_bert: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(DataError, match=r"no text|at least 20"):
        read(tiny_bert, tmp_path / "a.txt")


def test_texts_of_another_language_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(f"chat {i} maison" for i in range(50)))
    with pytest.raises(DataError, match="100% of the texts' tokens are unknown"):
        read(tiny_bert, tmp_path / "a.txt")


def test_a_text_without_spaces_is_read(tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join([*(a for a, _ in pairs()), "cat" * 30_000]))
    corpus, _ = read(tiny_bert, tmp_path / "a.txt", held_out=0)
    assert len(corpus.lengths) == len(pairs()) + 1


def test_weights_must_fit_the_sources(tiny_bert: Path) -> None:
    with pytest.raises(InputError, match="2 weights for 1 sources"):
        Sources(["a.txt"], (1.0, 2.0))
    with pytest.raises(InputError, match="positive"):
        Sources(["a.txt"], (0.0,))


def test_images_are_read_lazily_from_several_sources(tiny_vit: Path, tmp_path: Path) -> None:
    for name, count in (("a", 20), ("b", 12)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("RGB", (8, 8), (i * 8, 100 if name == "a" else 200, 0)).save(tmp_path / name / f"{i:02}.png")
    corpus, _ = read(tiny_vit, tmp_path / "a", tmp_path / "b", held_out=0)
    assert Counter(corpus.sources) == {0: 20, 1: 12}
    pixels = corpus.features([Piece((19,), 0, 1, 0), Piece((20,), 0, 1, 0)])["pixel_values"]
    assert pixels.shape[:2] == (2, 3)
    assert pixels[0, 1].float().mean() < pixels[1, 1].float().mean()
    assert mixture_of(corpus, Sources([]), 0.5).joined == 0
    (tmp_path / "t.txt").write_text("a\nb")
    with pytest.raises(DataError, match="holds images"):
        read(tiny_vit, tmp_path / "a", tmp_path / "t.txt")
    with pytest.raises(CheckpointError, match="reads images, not text"):
        read(tiny_vit, tmp_path / "t.txt")


@pytest.mark.parametrize("change", [{}, {"do_normalize": False}, {"do_resize": False}])
def test_pixels_stay_bytes_and_become_what_the_processor_makes_of_them(tmp_path: Path, change: dict[str, bool]) -> None:
    model = save_tiny_vit(tmp_path / "model")
    file = model / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "image_mean": [0.5, 0.4, 0.3], **change}))
    encoder = load_encoder(model, device="cpu")
    images = [Image.effect_noise((8, 8), spread).convert("RGB") for spread in (20, 200)]
    made, wanted = preparation(encoder)(images), encoder.preprocess(images)
    assert (made["pixel_values"].dtype == torch.uint8) == (change == {})
    assert set(finished(made)) == set(wanted)
    assert torch.allclose(finished(made)["pixel_values"], wanted["pixel_values"], rtol=0, atol=1e-5)


def test_images_that_are_to_be_changed_are_cropped_and_mirrored_by_the_seed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    across, down = np.meshgrid(np.arange(30) * 8, np.arange(20) * 12)
    source = np.stack([across, down, across * 0], axis=-1).astype(np.uint8)
    Image.fromarray(source).save(tmp_path / "images" / "1.png")
    corpus = ImageCorpus([read_images(tmp_path / "images")], np.array([0]), lambda images: {"images": images})

    def seen(change: int) -> np.ndarray:
        return np.asarray(corpus.features([Piece((0,), 0, 1, 0, change)])["images"][0]).astype(int)

    assert (seen(0) == source).all()
    mirrored, kept = [], []
    for seed in range(1, 40):
        made = seen(seed)
        assert (made == seen(seed)).all()
        assert made.shape == source.shape
        red, green = made[10, :, 0], made[:, 15, 1]
        mirrored.append(bool(red[0] > red[-1]))
        steps = np.diff(red[::-1] if mirrored[-1] else red)
        assert steps.min() >= 0
        assert np.diff(green).min() >= 0
        kept.append((abs(red[-1] - red[0]) / 232, (green[-1] - green[0]) / 228))
    assert 5 < sum(mirrored) < 35
    assert 0.75 < np.min(kept) < 0.9
    assert np.max(kept) <= 1


def test_changed_images_fit_a_processor_that_does_not_resize(tiny_vit: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_vit, tmp_path / "vit")
    file = tmp_path / "vit" / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "do_resize": False}))
    encoder = load_encoder(tmp_path / "vit", device="cpu")
    (tmp_path / "images").mkdir()
    for i in range(30):
        Image.effect_noise((8, 8), 10 + 5 * i).convert("RGB").save(tmp_path / "images" / f"{i:02}.png")
    corpus, _ = read_corpus(encoder, tmp_path / "vit", Sources([tmp_path / "images"]), max_length=None, seed=0)
    pieces = [Piece((i,), 0, 1, 0, change) for i, change in enumerate((0, 7, 0, 9, 11))]
    assert finished(corpus.features(pieces))["pixel_values"].shape == (5, 3, 8, 8)


def test_a_text_that_is_too_long_is_cut_on_the_side_that_the_tokenizer_truncates(tmp_path: Path) -> None:
    folder = save_tiny_bert(tmp_path / "m")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncation_side": "left"}))
    texts = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    encoder = load_encoder(folder, device="cpu")
    corpus, _ = read(folder, tmp_path / "texts.txt", max_length=10)
    read_by_model = {tuple(ids) for ids in encoder.tokenizer(texts, truncation=True, max_length=10)["input_ids"]}
    for rows in ((0,), (0, 1)):
        made = corpus.features([Piece(rows, 0, corpus.limit, 0)])["input_ids"][0].tolist()
        assert tuple(made) in read_by_model
    made = corpus.features([Piece((0,), 3, corpus.limit, 0)])["input_ids"][0].tolist()
    assert made[4:-1] == corpus.features([Piece((0,), 0, corpus.limit, 0)])["input_ids"][0].tolist()[1:-4]
