"""Writes self-contained HTML pages.

A page holds its styles and pictures (SVG), and no scripts, fonts or links to other files, so that it can be mailed,
kept as an artifact of a CI run, and read in ten years. It follows the reader's light or dark theme; black in pictures
becomes the text's colour.
"""

import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ternarize_cli.errors import InputError
from ternarize_cli.measuring import figures
from ternarize_cli.storage import files

__all__ = ["cards", "check_page", "picture", "table", "write_page"]

_THEMED = {
    "#000000": "currentColor",
    figures.BLUE: "var(--teacher)",
    figures.ORANGE: "var(--student)",
    figures.GREEN: "var(--other)",
    figures.GREY: "var(--soft)",
}

_STYLE = """
:root { color-scheme: light dark; --text: #1c1c1e; --soft: #6b6b70; --line: #dcdce0; --back: #ffffff; --raised: #f5f5f7;
  --student: #b95a17; --teacher: #3b6ea8; --other: #3d7f4e; }
@media (prefers-color-scheme: dark) { :root { --text: #e8e8ea; --soft: #a0a0a8; --line: #3a3a40; --back: #18181b;
  --raised: #232327; --student: #ee9a5c; --teacher: #7fb0e6; --other: #7cc48f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 74rem; color: var(--text); background: var(--back);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p { margin: .3rem 0 .8rem; } .soft, caption, figcaption { color: var(--soft); font-size: .88rem; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.card { background: var(--raised); border-radius: .6rem; padding: .7rem 1rem; min-width: 9.5rem; }
.card b { display: block; font-size: 1.45rem; font-weight: 650; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; padding-top: .5rem; }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; vertical-align: bottom; }
tr.student td:first-child { color: var(--student); font-weight: 650; }
tr.teacher td:first-child { color: var(--teacher); font-weight: 650; }
td small { color: var(--soft); } svg.whisker { vertical-align: middle; color: var(--soft); }
figure { margin: 0; } figure svg { width: 100%; height: auto; }
code, pre { font: .85rem/1.5 ui-monospace, monospace; } pre { background: var(--raised); padding: .8rem 1rem;
  border-radius: .6rem; white-space: pre-wrap; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .88rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""


def check_page(path: Path, *, force: bool, inputs: Sequence[Path] = ()) -> None:
    """Refuses a page that could not be written, before any work is done.

    Args:
        path: path of the page.
        force: whether an existing file may be replaced.
        inputs: files and folders that are read, which the page may not replace.

    Raises:
        InputError: the name does not end in .html, or the page would replace an input.
        UnavailableError: matplotlib is not installed.
        OutputExistsError: the file exists, and `force` is false.
        OutputError: the file can't be written.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--report {path}: a report's name ends in .html", hint="--report report.html")
    figures.require_matplotlib("--report")
    files.check_output(path, force=force, inputs=inputs, folder=False)


def write_page(path: Path, title: str, parts: Sequence[str], *, force: bool = False) -> None:
    """Writes a page with a title and parts, each a piece of HTML.

    Raises:
        OutputExistsError: the file exists, and `force` is false.
        OutputError: the file can't be written.
    """
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join([f"<h1>{escape(title)}</h1>", *parts])
        + "\n</body>\n</html>\n"
    )
    with files.atomic_file(path, force=force) as partial:
        partial.write_text(page, encoding="utf-8")


def cards(shown: Sequence[tuple[str, str]]) -> str:
    """Makes the HTML of large numbers, each with a text that explains it; numbers and texts are HTML."""
    inner = "".join(f'<div class="card"><b>{value}</b><span class="soft">{text}</span></div>' for value, text in shown)
    return f'<div class="cards">{inner}</div>'


def picture(figure: Any) -> str:
    """Converts a matplotlib figure to SVG in the page's own colours, without a background."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace("<svg", '<svg fill="currentColor"', 1)
    for colour, name in _THEMED.items():
        svg = svg.replace(colour, name)
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)


def table(columns: Sequence[str], rows: Sequence[str], caption: str) -> str:
    """Makes the HTML of a table; its rows are HTML (`<tr>…</tr>`)."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    explained = f"<caption>{escape(caption)}</caption>" if caption else ""
    inner = f"{explained}<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="wide"><table>{inner}</table></div>'
