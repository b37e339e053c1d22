"""Licences of exports: texts of the model's and of ternarize's, and both in one expression."""

from pathlib import Path

import pytest

from ternarize_cli.export.licences import OURS, licence_texts, with_ours


@pytest.mark.parametrize(
    ("model", "both"),
    [
        ("apache-2.0", "Apache-2.0 AND MIT"),
        ("mit", "MIT"),
        ("mit or apache-2.0", "(MIT OR Apache-2.0) AND MIT"),
        ("a-licence-of-ours", "a-licence-of-ours"),
        (None, None),
    ],
)
def test_both_licences_are_one_expression(model: str | None, both: str | None) -> None:
    assert with_ours(model) == both


def test_the_texts_are_those_of_the_model_and_of_ternarize(tmp_path: Path) -> None:
    for name in ("NOTICE", "LICENSE.md", "LICENSE-ternarize", "licenses.json"):
        (tmp_path / name).write_text(f"{name} of the model")
    (tmp_path / "LICENSE").symlink_to(__file__)
    texts = licence_texts(tmp_path)
    assert sorted(texts) == ["LICENSE-ternarize", "LICENSE.md", "NOTICE"]
    assert texts["NOTICE"] == b"NOTICE of the model"
    assert texts[OURS].startswith(b"MIT License\n")
