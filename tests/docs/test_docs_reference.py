"""The page of commands is what its script writes, and the picture's numbers are those of the notes that they name."""

import json
from pathlib import Path

import pytest
from PIL import Image

from support.pages import ROOT, script
from ternarize_cli import errors, kernels

RESULTS = ROOT / "docs" / "results"
PICTURE = json.loads((RESULTS / "minilm-cpu.json").read_text(encoding="utf-8"))
ENTRIES = [
    (measure["name"], system, entry) for measure in PICTURE["measures"] for system, entry in measure["values"].items()
]


def test_the_page_of_commands_is_up_to_date() -> None:
    writer = script(ROOT / "docs" / "reference" / "write_commands.py")
    assert writer.PAGE.read_text(encoding="utf-8") == writer.text(), "run: python docs/reference/write_commands.py"


def test_the_tables_of_exports_are_those_of_their_reports() -> None:
    writer = script(RESULTS / "write_exports.py")
    assert writer.PAGE.read_text(encoding="utf-8") == writer.text(), "run: python docs/results/write_exports.py"


@pytest.mark.parametrize(("measure", "system", "entry"), ENTRIES)
def test_a_number_of_the_picture_stands_in_the_note_that_it_names(measure: str, system: str, entry: dict) -> None:
    source = next(m["source"] for m in PICTURE["measures"] if m["name"] == measure)
    names = {"ternarize": ("| **ternary**", "| native |"), "torch fp32": ("| MiniLM, fp32", "| torch fp32")}
    starts = names.get(system, (f"| {system}",))
    rows = [row for row in (ROOT / source).read_text("utf-8").splitlines() if row.startswith(starts)]
    cells = {cell.strip() for row in rows for cell in row.strip("|").split("|")}
    assert entry["as_written"] in cells
    if entry["as_written"] != ".6326":  # the original's score: all of it is kept
        assert float(entry["as_written"].strip("*").partition("%")[0].replace(",", "")) == entry["value"]


@pytest.mark.slow
def test_the_picture_is_drawn_from_its_numbers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawing = script(RESULTS / "draw_minilm_cpu.py")
    drawing.draw(PICTURE, tmp_path / "now.png")
    with Image.open(tmp_path / "now.png") as now, Image.open(drawing.PICTURE) as committed:
        assert now.size == committed.size
        described = committed.info["Description"]
        assert now.info["Description"] == described, "run: python docs/results/draw_minilm_cpu.py"


def test_the_page_of_backends_lists_each_with_its_device_and_weights() -> None:
    page = (ROOT / "docs" / "reference" / "backends.md").read_text(encoding="utf-8")
    for backend in kernels.describe():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{backend.name}`"))
        levels = "all" if len(backend.levels) == 4 else ", ".join(backend.levels)
        assert [cell.strip() for cell in row.split("|")[4:6]] == [levels, ", ".join(backend.granularities)]
        assert backend.weights.partition(",")[0] in row


def test_the_page_of_exit_codes_lists_every_error() -> None:
    page = (ROOT / "docs" / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    for name in errors.__all__:
        value = getattr(errors, name)
        if isinstance(value, type):
            row = next(line for line in page.splitlines() if f"`{name}`" in line)
            assert row.startswith(f"| {value.exit_code} |")
