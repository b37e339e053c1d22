"""A stage counts as finished only as long as its folder and what was noted of it are as it left them."""

import json
from pathlib import Path
from typing import Any

import pytest

from ternarize_cli.pipeline.stages import Stages, stages_of

KEY = {"data": "texts.txt", "steps": 3}


def made(folder: Path) -> dict[str, Any]:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return {"samples": 91, "notes": ["a note"], "kind": "text"}


@pytest.mark.parametrize(
    "facts", [{"samples": "x"}, {"seconds": None}, {"notes": 5}, {"digest": ""}, {"kind": "a|b\n# x"}, {"more": 1}]
)
def test_a_stage_whose_facts_were_changed_is_repeated(tmp_path: Path, facts: dict[str, Any]) -> None:
    with stages_of(tmp_path / "out", resume=False, force=False) as stages:
        noted = stages.run("ternary", KEY, made)
        ledger = stages.path("stages.json")
        again = Stages(ledger.parent)
        assert again.finished("ternary", KEY) == noted == {**noted, "samples": 91}
        entries = json.loads(ledger.read_text())
        entries["ternary"]["facts"] |= facts
        ledger.write_text(json.dumps(entries))
        assert Stages(ledger.parent).finished("ternary", KEY) is None


def test_a_stage_whose_folder_was_changed_is_repeated(tmp_path: Path) -> None:
    with stages_of(tmp_path / "out", resume=False, force=False) as stages:
        stages.run("ternary", KEY, made)
        assert stages.finished("ternary", {**KEY, "steps": 4}) is None
        (stages.path("ternary") / "config.json").write_text("[]")
        assert stages.finished("ternary", KEY) is None
