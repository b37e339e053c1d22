"""A sample of `docs/reference/families.md`: each family works, or is refused in words before anything is written."""

import pytest

from support.pages import ROOT
from support.sweep import kinds, sweep

SAMPLE = {"bert": "works", "clip": "works", "siglip": "works", "vit_mae": "refused", "dpr": "refused"}
SAMPLE |= {"m2m_100": "refused", "bart": "works", "funnel": "works", "qwen3": "works", "convbert": "works"}


@pytest.mark.nightly
def test_a_sample_of_the_families_ends_as_the_table_says() -> None:
    found = {row.kind: row for row in sweep(list(SAMPLE))}
    assert {kind: row.outcome for kind, row in found.items()} == SAMPLE, found


def test_the_table_has_every_family_and_no_fault() -> None:
    lines = (ROOT / "docs" / "reference" / "families.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| ") and not line.startswith("| family")]
    assert [row[0].removeprefix("| ") for row in rows] == kinds()
    assert {row[1] for row in rows} == {"works", "refused", "not made"}
