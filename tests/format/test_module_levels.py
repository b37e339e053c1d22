"""The grids of linears by module, in the description of an artifact."""

from typing import Any

import pytest

from ternarize_cli.errors import FormatError
from ternarize_cli.format.scheme import Artifact, Scheme

NAME = "encoder.layer.0.output.dense"


def described(**changes: Any) -> dict[str, Any]:
    made = Artifact("packed", codec="base3", module_levels={NAME: "int4"}).to_dict() | changes
    return {key: value for key, value in made.items() if value != "left out"}


def test_a_table_of_grids_is_version_3_and_is_read_back() -> None:
    made = described()
    assert (made["format_version"], made["levels"], made["module_levels"]) == (3, "mixed", {NAME: "int4"})
    artifact = Artifact.from_dict(made)
    assert artifact == Artifact("packed", codec="base3", module_levels={NAME: "int4"})
    assert [artifact.scheme_of(name).levels for name in (NAME, "other")] == ["int4", "ternary"]
    assert [artifact.codec_of(name) for name in (NAME, "other")] == ["4bit", "base3"]
    assert Artifact("latent", module_levels={NAME: "int4"}).codec_of(NAME) is None


@pytest.mark.parametrize("levels", ["ternary", "int4"])
def test_a_model_of_one_grid_is_written_as_before(levels: str) -> None:
    made = Artifact("latent", Scheme(levels=levels)).to_dict()
    assert (made["format_version"], made["levels"]) == (2, levels)
    assert "module_levels" not in made
    for version in (1, 2, 3):
        assert Artifact.from_dict(made | {"format_version": version}).levels == levels


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"format_version": 2}, "levels is 'mixed' in format_version 2; it came with 3"),
        ({"format_version": 4}, "reads versions 1 to 3"),
        ({"levels": "ternary"}, "module_levels goes with levels 'mixed', and levels is 'ternary'"),
        ({"levels": ["mixed"]}, "levels is "),
        ({"module_levels": "left out"}, "module_levels is None"),
        ({"module_levels": {}}, "module_levels is empty"),
        ({"module_levels": [NAME]}, "module_levels is "),
        ({"module_levels": {NAME: "int2"}}, f"module_levels gives '{NAME}' the levels 'int2'"),
        ({"module_levels": {NAME: ["int4"]}}, f"module_levels gives '{NAME}' the levels"),
        ({"module_levels": {NAME: 4}}, f"module_levels gives '{NAME}' the levels 4"),
        ({"codec": "4bit"}, "codec is '4bit'; a packed ternary model has 2bit or base3"),
        ({"rule": "absmean"}, "the rule absmean gives ternary codes, and levels is int4"),
    ],
)
def test_a_strangers_table_is_refused_in_words(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(FormatError, match=why):
        Artifact.from_dict(described(**changes))
