"""Diagnosis: what a damaged layer looks like, and what the similarity measures are invariant to."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from support.families import IMAGE_FAMILIES, TEXT_FAMILIES, save_family, save_processor, save_text, stages
from support.images import make_labels, make_pixels, write_folder
from support.models import WORDS, save_gpt2, save_tiny_bert, save_tiny_vit
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.options import ConvertOptions
from ternarize_cli.data.images import Images, read_images
from ternarize_cli.errors import CheckpointError, InputError
from ternarize_cli.evaluation.diagnose import diagnose, inputs_of
from ternarize_cli.evaluation.reading import read_tasks
from ternarize_cli.measuring.similarity import (
    LinearCKA,
    attention_divergence,
    first_component,
    mean_cosine,
    neighbour_overlap,
)


def make_texts(count: int = 40, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(2, 12))) for _ in range(count)]


def cka(x: torch.Tensor, y: torch.Tensor, parts: int = 3) -> float:
    found = LinearCKA()
    for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
        found.add(a, b)
    assert found.value is not None
    return found.value


def test_cka_in_parts_is_that_of_the_definition() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(50, 6) + 100, torch.randn(50, 9) - 30
    y[:, :6] += x
    a, b = (v.double() - v.double().mean(dim=0) for v in (x, y))
    by_gram = ((a @ a.T) * (b @ b.T)).sum() / ((a @ a.T).norm() * (b @ b.T).norm())
    assert cka(x, y) == pytest.approx(float(by_gram), abs=1e-6)
    assert 0.1 < float(by_gram) < 0.9


def test_cka_does_not_see_rotation_scale_and_shift() -> None:
    torch.manual_seed(0)
    x = torch.randn(80, 8)
    rotation = torch.linalg.qr(torch.randn(8, 8)).Q
    assert cka(x, 3 * x @ rotation + 5) == pytest.approx(1, abs=1e-6)
    assert cka(x, torch.randn(80, 8)) < 0.3


def test_cka_of_features_that_do_not_vary_is_undefined() -> None:
    found = LinearCKA()
    assert found.value is None
    found.add(torch.ones(4, 2), torch.randn(4, 2))
    assert found.value is None


def test_attention_divergence_is_the_kl_of_real_tokens() -> None:
    p = torch.tensor([[[[0.5, 0.5], [0.9, 0.1]]]])
    q = torch.tensor([[[[0.25, 0.75], [0.0, 1.0]]]])
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert attention_divergence(p, q, torch.tensor([[1, 0]])) == (pytest.approx(expected, abs=1e-6), 1)
    assert attention_divergence(p, p) == (pytest.approx(0, abs=1e-6), 2)
    total, rows = attention_divergence(p, q)
    assert (np.isfinite(total), rows) == (True, 2)


def test_space_statistics_are_those_of_simple_spaces() -> None:
    axes = np.eye(4, dtype=np.float32)
    assert mean_cosine(axes) == pytest.approx(0)
    assert first_component(np.concatenate([axes, -axes])) == pytest.approx(1 / 4)
    line = np.array([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0]])
    assert mean_cosine(line) == pytest.approx(-1 / 3)
    assert first_component(line) == pytest.approx(1)
    assert first_component(np.ones((3, 2))) is None


def test_neighbour_overlap_counts_shared_neighbours() -> None:
    angles = np.radians([0, 10, 100, 115])
    a = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert neighbour_overlap(a, 2 * a, 1) == 1
    assert neighbour_overlap(a, a[[0, 2, 1, 3]], 1) == 0
    assert neighbour_overlap(a, a[[0, 2, 1, 3]], 3) == 1


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A BERT of 4 layers, and the same with layer 3 drawn anew."""
    from transformers import BertModel

    folders = [save_tiny_bert(tmp_path_factory.mktemp("models") / name, num_hidden_layers=4) for name in ("a", "b")]
    model = BertModel.from_pretrained(folders[1])
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in model.encoder.layer[2].parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folders[1])
    return folders[0], folders[1]


def test_a_model_is_like_itself(tiny_bert: Path) -> None:
    found = diagnose(tiny_bert, tiny_bert, make_texts(), batch_size=7, device="cpu")
    assert [layer.name for layer in found.layers] == ["embeddings", "1", "2"]
    for layer in found.layers:
        assert layer.cka == pytest.approx(1, abs=1e-6)
        assert layer.cosine == pytest.approx(1, abs=1e-6)
    assert [layer.attention_kl for layer in found.layers[1:]] == [pytest.approx(0, abs=1e-6)] * 2
    assert found.layers[0].attention_kl is None
    assert (found.overlap, found.neighbours) == (1, 10)
    assert found.cosine == pytest.approx(1, abs=1e-6)
    assert found.student == found.teacher
    assert json.loads(json.dumps(found.to_dict()))["layers"][1]["name"] == "1"


def test_a_damaged_layer_is_the_first_whose_similarity_falls(damaged: tuple[Path, Path]) -> None:
    teacher, student = damaged
    found = diagnose(student, teacher, make_texts(), device="cpu")
    by_name = {layer.name: layer for layer in found.layers}
    for name in ("embeddings", "1", "2"):
        assert by_name[name].cka == pytest.approx(1, abs=1e-6)
        assert by_name[name].cosine == pytest.approx(1, abs=1e-6)
    assert by_name["3"].cka < 0.9
    assert by_name["3"].cosine < 0.9
    assert by_name["2"].attention_kl == pytest.approx(0, abs=1e-6)
    assert by_name["3"].attention_kl > 0.01
    assert found.overlap < 1


def test_numbers_are_those_of_the_models_own_outputs(tiny_bert: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    student = save_tiny_bert(tmp_path / "student", seed=1)
    texts = make_texts(12)
    found = diagnose(student, tiny_bert, texts, batch_size=5, device="cpu")
    tokens = AutoTokenizer.from_pretrained(tiny_bert)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        s, t = (
            AutoModel.from_pretrained(folder, attn_implementation="eager")(
                **tokens, output_attentions=True, output_hidden_states=True
            )
            for folder in (student, tiny_bert)
        )
    real = tokens["attention_mask"].bool()
    assert found.tokens == int(real.sum())
    for i, layer in enumerate(found.layers):
        x, y = s.hidden_states[i][real], t.hidden_states[i][real]
        assert layer.cka == pytest.approx(cka(x, y), abs=1e-5)
        assert layer.cosine == pytest.approx(float(torch.cosine_similarity(x, y).mean()), abs=1e-5)
    for layer, p, q in zip(found.layers[1:], t.attentions, s.attentions, strict=True):
        total, rows = attention_divergence(p, q, real)
        assert layer.attention_kl == pytest.approx(total / rows, rel=1e-4)
    a, b = (SentenceTransformer(str(folder), device="cpu").encode(texts) for folder in (student, tiny_bert))
    cosines = (a * b).sum(axis=1)
    assert found.cosine == pytest.approx(float(cosines.mean()), abs=1e-5)
    assert found.moved[0].input == texts[int(cosines.argmin())]
    assert found.moved[0].cosine == pytest.approx(float(cosines.min()), abs=1e-5)
    assert [m.cosine for m in found.moved] == sorted(m.cosine for m in found.moved)
    assert len(found.moved) == 10
    pooled = (t.last_hidden_state * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True)
    assert found.teacher.norm == pytest.approx(float(pooled.norm(dim=1).mean()), rel=1e-4)


def test_ternary_and_packed_students_are_diagnosed(tiny_bert: Path, tmp_path: Path) -> None:
    from ternarize_cli.compress.pack import pack

    convert(tiny_bert, tmp_path / "ternary")
    pack(tmp_path / "ternary", tmp_path / "packed")
    latent, packed = (
        diagnose(tmp_path / name, tiny_bert, make_texts(), device="cpu") for name in ("ternary", "packed")
    )
    assert [layer.name for layer in packed.layers] == ["embeddings", "1", "2"]
    for a, b in zip(latent.layers, packed.layers, strict=True):
        assert a.cka == pytest.approx(b.cka, abs=1e-3)
    assert 0.3 < packed.layers[2].cka < packed.layers[1].cka < packed.layers[0].cka <= 1
    assert packed.layers[1].attention_kl > 1e-4


def test_images_are_told_by_their_names(tiny_vit: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures", make_pixels(14), make_labels(14))
    other = save_tiny_vit(tmp_path / "other", seed=1)
    images = read_images(folder)
    same, found = (diagnose(model, tiny_vit, images, batch_size=4, device="cpu") for model in (tiny_vit, other))
    assert [layer.name for layer in found.layers] == ["embeddings", "1", "2", "output"]
    assert found.tokens == 14 * 5
    assert [layer.cka for layer in same.layers] == [pytest.approx(1, abs=1e-6)] * 4
    assert same.layers[1].attention_kl == pytest.approx(0, abs=1e-6)
    assert found.layers[1].attention_kl > 1e-4
    assert {m.input for m in found.moved} <= set(images.ids)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["T5EncoderModel", "GPT2Model", "DebertaV2Model", "SwinModel"])
def test_families_show_their_attention(family: str, tmp_path: Path) -> None:
    found = next(f for f in [*TEXT_FAMILIES, *IMAGE_FAMILIES] if f[0] == family)
    inputs: Images | list[str] = make_texts(8)
    if found in TEXT_FAMILIES:
        save_text(found, tmp_path / "source")
    else:
        save_processor(save_family(found, tmp_path / "source"))
        inputs = read_images(write_folder(tmp_path / "pictures", make_pixels(8), make_labels(8)))
    _, _, packed = stages(tmp_path / "source", tmp_path)
    for model, least in ((tmp_path / "source", 0.0), (packed, 1e-5)):
        layers = diagnose(model, tmp_path / "source", inputs, device="cpu").layers
        known = [layer for layer in layers if layer.attention_kl is not None]
        assert len(known) == (4 if family == "SwinModel" else 2)
        assert all(least <= layer.attention_kl < 5 for layer in known)
        assert all((layer.cka > 1 - 1e-6) == (model != packed) for layer in known)


def test_many_tokens_are_taken_a_few_inputs_at_a_time(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = make_texts(20)
    whole = diagnose(tiny_bert, tiny_bert, texts, device="cpu")
    monkeypatch.setattr("ternarize_cli.evaluation.inside._SQUARE", 200)
    parts = diagnose(tiny_bert, tiny_bert, texts, device="cpu")
    assert parts.tokens == whole.tokens
    assert parts.teacher.norm == pytest.approx(whole.teacher.norm)


def test_a_trimmed_student_is_compared_with_the_teacher_on_its_own_tokens(tiny_bert: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    texts = make_texts(12)
    (tmp_path / "corpus.txt").write_text("\n".join(texts[:6]))
    options = ConvertOptions(trim=[tmp_path / "corpus.txt"])
    convert(tiny_bert, tmp_path / "trimmed", options=options)
    found = diagnose(tmp_path / "trimmed", tiny_bert, texts, device="cpu")
    a, b = (SentenceTransformer(str(f), device="cpu").encode(texts) for f in (tmp_path / "trimmed", tiny_bert))
    assert found.cosine == pytest.approx(float((a * b).sum(axis=1).mean()), abs=1e-5)


def test_models_that_do_not_belong_together_are_refused(tiny_bert: Path, damaged: tuple[Path, Path]) -> None:
    with pytest.raises(CheckpointError, match="the student has 2 layers") as error:
        diagnose(tiny_bert, damaged[0], make_texts(4), device="cpu")
    assert "converted from" in str(error.value.hint)
    with pytest.raises(InputError, match="there is 1"):
        diagnose(tiny_bert, tiny_bert, ["a cat"], device="cpu")


def test_inputs_come_from_every_task_and_differ(tmp_path: Path) -> None:
    pairs, labels, pages = tmp_path / "pairs.csv", tmp_path / "labels.tsv", tmp_path / "pages"
    pairs.write_text("".join(f"pair {i},pair {i + 1},{i % 5}\n" for i in range(30)))
    labels.write_text("".join(f"{'ab'[i % 2]}\tlabel {i % 7}\n" for i in range(40)))
    pages.mkdir()
    (pages / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": str(i), "title": f"page {i}", "text": "words"}) + "\n" for i in range(30))
    )
    (pages / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "query", "relevant": ["1"]}))
    tasks = read_tasks(sts=[pairs], retrieval=[pages], classification=[labels])
    found = inputs_of(tasks, seed=1, most=20)
    assert len(set(found)) == len(found) == 20
    kinds = [str(text).split()[0] for text in found]
    assert (kinds.count("pair"), kinds.count("label")) == (7, 6)
    assert found == inputs_of(tasks, seed=1, most=20)
    assert found != inputs_of(tasks, seed=2, most=20)
    everything = inputs_of(tasks, most=1000)
    assert set(everything) >= {"page 3 words", "query", "pair 30", "label 6"}
    assert len(everything) == 31 + 31 + 7


def test_inputs_of_image_tasks_are_images_of_all_of_them(tmp_path: Path) -> None:
    sources = []
    for name, count in (("one", 40), ("two", 60)):
        for part in ("train", "test"):
            write_folder(tmp_path / name / part, make_pixels(count, seed=len(name + part)), make_labels(count))
        sources.append(tmp_path / name)
    tasks = read_tasks(images=sources)
    found = inputs_of(tasks, most=10)
    assert isinstance(found, Images)
    assert len(found) == 10
    assert [name.split("/")[0] for name in found.ids] == ["one"] * 5 + ["two"] * 5
    queries = {task.name: task.queries for task in tasks}
    for name, image in zip(found.ids, found, strict=True):
        source, _, own = name.partition("/")
        assert image.tobytes() == queries[source][list(queries[source].ids).index(own)].tobytes()


def test_texts_without_tokens_are_no_layers_of_anything(tmp_path: Path) -> None:
    source = save_gpt2(tmp_path / "source")
    convert(source, tmp_path / "student")
    found = diagnose(str(tmp_path / "student"), str(source), [*[""] * 40, "the cat", "a dog"])
    assert (found.inputs, found.tokens) == (42, len("the cat") + len("a dog"))
    assert all(layer.cosine is not None and layer.cosine > 0.9 for layer in found.layers)
    assert diagnose(str(tmp_path / "student"), str(source), ["", ""]).tokens == 0
