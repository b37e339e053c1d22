"""What calibration runs on: which sources are read, how texts are drawn, and what is refused."""

import gzip
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from support.models import save_tiny_bert
from ternarize_cli.compress.calibrate import make_batches
from ternarize_cli.data.tables import hub_dataset
from ternarize_cli.data.texts import read_table
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.errors import DataError


@pytest.mark.slow
def test_unusable_calibration_data_is_refused(tmp_path: Path, run: Callable, tiny_bert: Path, corpus: Path) -> None:
    one = tmp_path / "one.txt"
    one.write_text("a single line\n")
    for data, message in [
        (one, "1 distinct texts; calibration needs at least 16"),
        (tmp_path / "absent.txt", "no such file"),
        ("-", "does not read stdin"),
        (tmp_path, "holds 1 distinct texts"),
    ]:
        result = run("convert", tiny_bert, "-o", tmp_path / "out", "--calibrate", data)
        assert result.exit_code == 2, result.stderr
        assert message in result.stderr
        assert run("convert", tiny_bert, "--dry-run", "--calibrate", tmp_path / "absent.txt").exit_code == 2
    for where in (["-o", tmp_path / "out"], ["--dry-run"]):
        fixed = run("convert", tiny_bert, *where, "--calibrate", corpus, "--rule", "absmean")
        assert fixed.exit_code == 2
        assert "drop --rule" in fixed.stderr
    assert not (tmp_path / "out").exists()


def test_parquet_and_folders_are_read_and_the_seed_decides(tmp_path: Path, tiny_bert: Path, corpus: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    lines = corpus.read_text().splitlines()
    pq.write_table(pa.table({"n": list(range(len(lines))), "text": lines}), folder / "part.parquet")
    encoder = load_encoder(tiny_bert, device="cpu")

    def ids(source: Path, seed: int) -> list[Tensor]:
        return [b.values["input_ids"] for b in make_batches(encoder, tiny_bert, [source], tokens=2000, seed=seed)]

    from_folder, again, other = ids(folder, 0), ids(corpus, 0), ids(corpus, 1)
    assert all(torch.equal(a, b) for a, b in zip(from_folder, again, strict=True))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(again, other, strict=False))
    pq.write_table(pa.table({"n": [1, 2]}), tmp_path / "numbers.parquet")
    with pytest.raises(DataError, match="no column of texts"):
        make_batches(encoder, tiny_bert, [tmp_path / "numbers.parquet"])


def all_texts(folder: Path, source: Path, tokens: int = 2000) -> list[str]:
    encoder = load_encoder(folder, device="cpu")
    made = make_batches(encoder, folder, [source], tokens=tokens)
    return [text for b in made for text in encoder.tokenizer.batch_decode(b.values["input_ids"])]


def test_prompts_stand_before_every_text_and_only_there(tmp_path: Path, corpus: Path) -> None:
    folder = save_tiny_bert(tmp_path / "bert")
    settings = folder / "config_sentence_transformers.json"
    settings.write_text('{"prompts": {"query": "dog ", "document": "house "}, "default_prompt_name": "query"}')
    words = [text.split() for text in all_texts(folder, corpus)]
    firsts = [w[1] for w in words]
    assert set(firsts) == {"dog", "house"}
    assert abs(firsts.count("dog") - firsts.count("house")) <= 2
    settings.write_text('{"prompts": {"query": "dog "}, "default_prompt_name": null}')
    bare = sum(text.split()[1] != "dog" for text in all_texts(folder, corpus))
    assert bare > 0.4 * len(words)


def test_a_quarter_of_the_tokens_is_in_texts_joined_to_longer_ones(tiny_bert: Path, corpus: Path) -> None:
    encoder = load_encoder(tiny_bert, device="cpu")
    encoder.max_seq_length = 60
    made = make_batches(encoder, tiny_bert, [corpus], tokens=3000)
    lengths = [int(n) for b in made for n in b.values["attention_mask"].sum(dim=1)]
    assert 2900 < sum(lengths) < 3200
    joined = [n for n in lengths if n > 22]  # no line of the corpus is as long
    assert 550 < sum(joined) < 950
    assert max(joined) > 45


def test_compressed_and_nested_files_are_read(tmp_path: Path, tiny_bert: Path, corpus: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "text.txt.gz").write_bytes(gzip.compress(corpus.read_bytes()))
    assert all_texts(tiny_bert, tmp_path / "a") == all_texts(tiny_bert, corpus)


def test_a_folder_of_texts_with_a_picture_in_it_is_text_to_a_text_model(
    tmp_path: Path, tiny_bert: Path, corpus: Path
) -> None:
    pq.write_table(pa.table({"text": corpus.read_text().splitlines()}), tmp_path / "corpus.parquet")
    Image.new("RGB", (8, 8)).save(tmp_path / "logo.png")
    assert all_texts(tiny_bert, tmp_path) == all_texts(tiny_bert, corpus)


def test_rows_without_a_text_are_passed_over(tmp_path: Path, tiny_bert: Path, corpus: Path) -> None:
    lines = corpus.read_text().splitlines()
    pq.write_table(pa.table({"text": [None, *lines]}), tmp_path / "some.parquet")
    assert all_texts(tiny_bert, tmp_path / "some.parquet") == all_texts(tiny_bert, corpus)
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "none.parquet")
    with pytest.raises(DataError, match="holds no text"):
        all_texts(tiny_bert, tmp_path / "none.parquet")


def test_without_a_column_text_the_only_column_of_texts_is_taken(tmp_path: Path, tiny_bert: Path, corpus: Path) -> None:
    lines = corpus.read_text().splitlines()
    columns = {"id": [f"cat{i}" for i in range(len(lines))], "body": pa.array(lines).dictionary_encode()}
    pq.write_table(pa.table(columns), tmp_path / "some.parquet")
    assert all_texts(tiny_bert, tmp_path / "some.parquet") == all_texts(tiny_bert, corpus)


def test_few_texts_are_used_once(tmp_path: Path, tiny_bert: Path, corpus: Path) -> None:
    encoder = load_encoder(tiny_bert, device="cpu")
    available = sum(map(len, encoder.tokenizer(corpus.read_text().splitlines())["input_ids"]))
    made = make_batches(encoder, tiny_bert, [corpus], tokens=100_000)
    assert 0.9 * available < sum(int(b.values["attention_mask"].sum()) for b in made) <= available


@pytest.mark.slow
def test_what_is_no_text_to_a_tokenizer_without_a_mask_is_text_all_the_same(
    tmp_path: Path, run: Callable, corpus: Path
) -> None:
    folder = save_tiny_bert(tmp_path / "bert")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["model_input_names"] = ["input_ids"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    result = run("convert", folder, "-o", tmp_path / "out", "--calibrate", corpus, "--calibration-tokens", 2000)
    assert result.exit_code == 0, result.stderr
    assert "--calibration-tokens allows only" in result.stderr
    assert " texts, " in run("inspect", tmp_path / "out").stdout.split("calibrated on")[1].split("\n")[0]


def test_the_samples_are_shared_among_the_sources(tmp_path: Path, tiny_bert: Path, corpus: Path) -> None:
    lines = corpus.read_text().splitlines()
    for name, part in [("a.txt", lines[:150]), ("b.txt", lines[150:])]:
        (tmp_path / name).write_text("\n".join(part))
    encoder = load_encoder(tiny_bert, device="cpu")
    made = make_batches(encoder, tiny_bert, [tmp_path / "a.txt", tmp_path / "b.txt"], samples=16, tokens=100_000)
    firsts = {tuple(row.tolist()[:5]) for b in made for row in b.values["input_ids"]}
    assert 12 <= len(firsts) <= 16  # some are joined


def test_images_are_some_hundreds_unless_told_otherwise(tmp_path: Path, tiny_vit: Path) -> None:
    for i in range(260):
        Image.new("RGB", (4, 4), (i % 256, i // 256, 7)).save(tmp_path / f"{i}.png")
    encoder = load_encoder(tiny_vit, device="cpu")
    assert sum(b.info.size for b in make_batches(encoder, tiny_vit, [tmp_path])) == 256
    made = make_batches(encoder, tiny_vit, [tmp_path], samples=259)
    assert sum(b.info.size for b in made) == 259
    assert made[0].first(2).values["pixel_values"].shape[0] == made[0].first(2).info.size == 2


def test_a_damaged_source_is_found_before_the_data_is_read(tmp_path: Path, run: Callable, corpus: Path) -> None:
    folder = save_tiny_bert(tmp_path / "bert")
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.1.output.dense.weight"][0, 0] = torch.inf
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    result = run("convert", folder, "-o", tmp_path / "out", "--calibrate", corpus)
    assert result.exit_code == 2
    assert "encoder.layer.1.output.dense.weight holds a value that is not finite" in result.stderr


def test_options_without_effect_are_named(tmp_path: Path, run: Callable, tiny_bert: Path) -> None:
    result = run("convert", tiny_bert, "--dry-run", "--calibration-samples", 100)
    assert result.exit_code == 0
    assert "nothing without --calibrate" in result.stderr


@pytest.mark.slow
def test_a_dataset_is_sampled_by_the_seed_and_not_read_to_its_end(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)  # five seconds for each, otherwise
    lines = corpus.read_text().splitlines()
    pq.write_table(pa.table({"id": range(len(lines)), "sentence": lines}), tmp_path / "train.parquet")

    def sample(seed: int) -> list[str]:
        table = hub_dataset(str(tmp_path), seed=seed, buffer=10_000)
        return [document.text for document in islice(read_table(table), 20)]

    first, again, other = map(sample, (0, 0, 1))
    assert first == again != other
    assert set(first) <= set(lines)
    pq.write_table(pa.table({"id": range(20)}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="no column of texts; columns: id"):
        sample(0)
