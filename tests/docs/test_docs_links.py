"""Each relative link and picture of the pages leads to a file, and to a heading of it where it names one."""

import re
from pathlib import Path

import pytest

from support.pages import PAGES, ROOT

PICTURES = [path for path in (ROOT / "docs").glob("**/*") if path.suffix in (".png", ".svg")]


def _prose(page: Path) -> str:
    """A page without its code, in which brackets are no links."""
    return re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S)


def _links(page: Path) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", _prose(page)) if not re.match(r"\w+:", link)]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings: lower case, no punctuation, hyphens for spaces."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKS = [(page.relative_to(ROOT).as_posix(), link) for page in PAGES for link in _links(page)]


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_a_link_leads_somewhere(page: str, link: str) -> None:
    target, _, anchor = link.partition("#")
    there = ((ROOT / page).parent / target).resolve() if target else ROOT / page
    assert there.exists(), f"{page} links to {link}"
    assert not Path(target).is_absolute()
    if anchor:
        assert anchor in anchors(there), f"{page} links to {link}; there are {sorted(anchors(there))}"


def test_the_table_of_contents_leads_to_every_page() -> None:
    start = ROOT / "docs" / "README.md"
    reached, ahead = set(), [start]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        found = {(page.parent / link.partition("#")[0]).resolve() for link in _links(page)}
        ahead += [other for other in found - reached if other.suffix == ".md" and "docs" in other.parts]
    assert {page.name for page in set(PAGES) - reached - {ROOT / "README.md"}} == set()


def test_every_picture_is_shown_on_a_page() -> None:
    shown = {(ROOT / page).parent.joinpath(link).resolve() for page, link in LINKS}
    assert [picture for picture in PICTURES if picture not in shown] == []


def test_no_page_speaks_of_a_page_that_has_moved() -> None:
    for page in PAGES:
        old = re.findall(r"docs/(?:calibration|cpu|distillation|evaluation|gpu|search)\.md", page.read_text("utf-8"))
        assert old == [], page
