"""What `encode` says about the corpus: counts agree with their nouns and verbs."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ternarize_cli.errors import counted


def _images(folder: Path, damaged: int) -> Path:
    folder.mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "whole.png")
    for number in range(damaged):
        (folder / f"{number}.png").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize(("damaged", "said"), [(1, "1 image was skipped: "), (2, "2 images were skipped: ")])
def test_skipped_images_are_counted_as_images(run, tiny_vit: Path, damaged: int, said: str, tmp_path: Path) -> None:
    result = run("encode", tiny_vit, _images(tmp_path / "in", damaged), "--skip-bad", "-o", tmp_path / "v.npy")
    assert result.exit_code == 0
    assert f"warning: {said}" in result.stderr
    assert "1 image in " in result.stderr


def test_one_text_is_said_in_the_singular(run, tiny_bert: Path, tmp_path: Path) -> None:
    rows = [{"text": "the cat"}, {"text": " "}, {"text": 1}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = run("encode", tiny_bert, tmp_path / "t.jsonl", "--skip-bad", "--shards", "-o", tmp_path / "v")
    assert result.exit_code == 0
    assert "1 text was skipped: " in result.stderr
    assert "1 text was empty and left out" in result.stderr
    (tmp_path / "long.txt").write_text("the cat\n" + "the cat " * 2000 + "\n")
    result = run("encode", tiny_bert, tmp_path / "long.txt", "-o", tmp_path / "v.npy")
    assert "1 of 2 texts is longer than the" in result.stderr


def test_plurals_follow_the_count_and_the_noun() -> None:
    assert [counted(n, "query") for n in (0, 1, 1200)] == ["0 queries", "1 query", "1,200 queries"]
