"""The texts of a machine: what is read, what is left out, and that hostile files do no harm."""

import gzip
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.models import WORDS
from ternarize_cli.data import manuals, prose, starter
from ternarize_cli.data.dictionaries import dictionary_entries
from ternarize_cli.data.doc_files import doc_files
from ternarize_cli.data.messages import messages
from ternarize_cli.data.text_sources import texts_of
from ternarize_cli.encoders.modalities import modality_of_sources
from ternarize_cli.errors import CheckpointError, DataError
from ternarize_cli.pipeline.recipe import digest_of

Run = Callable[..., Any]
needs_groff = pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
PAGE = r""".TH PRINT 1
.SH NAME
print \- write a \fBfile\fR to the printer
.SH SYNOPSIS
.B print
which nobody reads as prose
.SH DESCRIPTION
The program \fIprint\fR sends one file after the other
to the printer, and waits until all of them are there.
.PP
It ends with an error if the printer has no paper.
.SH SEE ALSO
cat(1) and other pages that are only named
"""


def page(folder: Path, name: str, text: str) -> Path:
    path = folder / "man1" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@needs_groff
def test_a_manual_page_becomes_its_paragraphs_without_lists_of_names(tmp_path: Path) -> None:
    page(tmp_path, "print.1.gz", PAGE)
    assert list(manuals.manual_pages(9, roots=(str(tmp_path),))) == [
        [
            "print - write a file to the printer",
            "The program print sends one file after the other to the printer, and waits until all of them are there.",
            "It ends with an error if the printer has no paper.",
        ]
    ]


@needs_groff
def test_a_page_of_every_program_comes_before_the_second_of_any(tmp_path: Path) -> None:
    names = ["tool", *(f"big-{i}" for i in range(5))]
    for name in names:
        page(tmp_path, f"{name}.1", PAGE.replace("print", name))
    page(tmp_path, "link.1", ".so man1/tool.1\n")
    os.symlink(tmp_path / "man1" / "tool.1", tmp_path / "man1" / "other.1")
    found = [lines[0].partition(" ")[0] for lines in manuals.manual_pages(4, roots=(str(tmp_path),))]
    assert len(found) == 3  # of four pages, one only names another
    assert "tool" in found
    again = [lines[0].partition(" ")[0] for lines in manuals.manual_pages(99, roots=(str(tmp_path),))]
    assert again[: len(found)] == found
    assert sorted(again) == sorted(names)


@needs_groff
@pytest.mark.parametrize(
    "hostile",
    [
        ".TH X 1\n.SH A\n.so SECRET\n",
        ".TH X 1\n.SH A\n'  mso SECRET\n",
        ".TH X 1\n.SH A\n.if 1 .so SECRET\n.do so SECRET\n.if 1 \\{.so SECRET\n.\\}\n",
        ".TH X 1\n.SH A\n.als x so\n.x SECRET\n.rn mso y\n.y SECRET\n.so SECRET\r\n",
        ".TH X 1\n.SH A\n.cc !\n!so SECRET\n",
        ".TH X 1\n.SH A\n.ds x so\n.\\*x SECRET\n.if 1 .\\*[x] SECRET\n",
        ".TH X 1\n.SH A\n.sy touch STARTED\n.pso touch STARTED\n.open s STARTED\n",
        ".while 1 .nr a 1\n",
        ".TH X 1\n.SH A\n.while 1 \\{\nA paragraph that is printed again and again.\n.br\n.\\}\n",
        ".TH X 1\n.SH A\n.br\n.trf SECRET\n.cf SECRET\n.nx SECRET\n.do nx SECRET\n",
        ".TH X 1\n.SH A\n.als q nx\n.q SECRET\n.ds o o\n.s\\*o SECRET\n.s\\\no SECRET\n.\0so SECRET\n",
        '.TH X 1\n.SH A\n.do cc !\n!so SECRET\n.de Z\n.\\\\$1 SECRET\n..\n.Z "so"\n.B .so SECRET\n',
        ".TH X 1\n.SH A\n.R \\*x.so SECRET\n.B \\.so SECRET\n\\*x.so SECRET\n\\fB.so SECRET\n.br\n\\fR'so SECRET\n",
        ".Dd 1\n.Dt X 1\n.Os\n.Sh A\n.Xo\n.trf SECRET\n.Xc\n.Bd -file SECRET\n.Ed\n.Hf SECRET\n.Op Hf SECRET\n",
        "\0" * 5000,
        ".de x\n.x\n..\n.x\n",
        "",
    ],
    ids=[
        "so",
        "mso",
        "nested",
        "alias",
        "control",
        "string",
        "programs",
        "loop",
        "endless",
        "other requests",
        "made names",
        "macros",
        "escapes",
        "mdoc",
        "zeros",
        "recursion",
        "empty",
    ],
)
def test_a_hostile_page_reads_nothing_starts_nothing_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hostile: str
) -> None:
    monkeypatch.setattr(manuals, "_SECONDS", 1.0)
    monkeypatch.setattr(manuals, "_LONGEST", 100_000)
    secret, started = tmp_path / "secret.tmac", tmp_path / "started"
    secret.write_text("The secret word is swordfish.\n")
    page(tmp_path, "a.1", hostile.replace("SECRET", str(secret)).replace("STARTED", str(started)))
    page(tmp_path, "print.1", PAGE)
    found = list(manuals.manual_pages(9, roots=(str(tmp_path),)))
    assert any("waits until all of them are there" in line for lines in found for line in lines)
    assert "swordfish" not in str(found)
    assert not started.exists()
    assert sum(len(line) for lines in found for line in lines) < 200_000


def test_documentation_files_are_read_by_their_kind_and_no_changelog_is(tmp_path: Path) -> None:
    tool, other = tmp_path / "tool", tmp_path / "other"
    for folder in (tool / "html", other, other / "html" / "pt_BR"):
        folder.mkdir(parents=True)
    (tool / "README.md").write_text("# Tool\n\nThe **tool** cuts wood.\n\n```sh\ntool --cut\n```\n")
    (tool / "html" / "index.html").write_text(
        "<head><title>No</title></head><body><p>Wood is <code>cut</code>\nalong &amp; across.</p>"
        "<script>no()</script><pre>tool --no</pre><ul><li>Wear gloves.</ul>"
    )
    (other / "guide.txt.gz").write_bytes(gzip.compress(b"A guide to other things.\n"))
    for name in ("changelog.gz", "changelog.Debian.gz", "copyright", "LICENSE.txt", "NEWS.Debian.gz", "data.bin"):
        (other / name).write_bytes(b"Nobody should read this sentence.\n")
    for translation in (
        "README.de.txt",
        "index.zh-cn.html",
        "tool_fr.txt",
        "guide.zh_CN.utf8.txt",
        "html/pt_BR/a.html",
    ):
        (other / translation).write_text("<p>Nobody should read this, since it is no English.</p>")
    (other / "README").write_bytes(b"A binary file\0with words.\n")
    (other / "huge.txt").write_bytes(b"word " * 300_000)
    (other / "broken.txt.gz").write_bytes(gzip.compress(b"words " * 1000)[:40])
    os.symlink(tool / "README.md", other / "link.md")
    os.symlink(tool, tmp_path / "linked")
    os.mkfifo(other / "pipe.txt")
    (other / "gloves.page").write_text(
        "<page><info><credit><name>Ann Bee</name></credit></info><title>Gloves</title><steps>"
        "<item><p>Put them on.</p></item></steps><screen>glove --on</screen></page>"
    )
    (other / "nl-manual.html").write_text("<p>Nulgrind does nothing.</p><![foo[x]]><p>Not read.</p>")
    assert [found for found in doc_files((str(tmp_path),)) if found] == [
        ["# Tool", "The tool cuts wood."],
        ["Wood is cut along & across.", "Wear gloves."],
        ["Gloves", "Put them on."],
        ["A guide to other things."],
        ["Nulgrind does nothing."],
    ]


def test_dictionaries_give_definitions_and_examples(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(
        "  1 This software is licensed to somebody | no; no\n"
        '00001740 03 n 01 saw 0 001 | a tool that cuts wood; "he took the saw"; "a saw has teeth"\n'
    )
    for part in ("verb", "adj", "adv"):
        (tmp_path / f"data.{part}").write_text("")
    (tmp_path / "words.dict.dz").write_bytes(
        gzip.compress(
            b"00-database-info\n  Made by somebody.\nsaw\n  a tool that\n  cuts wood\nplane\n  it makes wood flat\n"
        )
    )
    (tmp_path / "broken.dict.dz").write_bytes(b"\x1f\x8b\x08broken")
    os.mkfifo(tmp_path / "pipe.dict")
    assert list(dictionary_entries((str(tmp_path / "none"), str(tmp_path)), (str(tmp_path),))) == [
        ["a tool that cuts wood", "he took the saw", "a saw has teeth"],
        ["saw a tool that cuts wood"],
        ["plane it makes wood flat"],
    ]


def catalogue(pairs: list[tuple[str, str]], order: str) -> bytes:
    """A .mo file, written as the documentation of gettext describes it."""
    blob, places, start = b"", [], 28 + 16 * len(pairs)
    for side in (0, 1):
        for pair in pairs:
            text = pair[side].encode()
            places.append((len(text), start + len(blob)))
            blob += text + b"\0"
    head = struct.pack(f"{order}7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
    return head + b"".join(struct.pack(f"{order}2I", *place) for place in places) + blob


@pytest.mark.parametrize("order", ["<", ">"])
def test_messages_come_out_of_a_catalogue_and_a_damaged_one_does_no_harm(tmp_path: Path, order: str) -> None:
    path = tmp_path / "tool.mo"
    whole = catalogue(
        [("", "Content-Type: text/plain"), ("one\0many", "打开文件\0很多文件"), ("close", "关闭文件")], order
    )
    path.write_bytes(whole)
    assert list(messages(path)) == ["打开文件", "关闭文件"]
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        assert len(list(messages(path))) <= 2
    path.write_bytes(whole[:8] + b"\xff" * (len(whole) - 8))
    assert list(messages(path)) == []
    count, rest = 2000, 40_000  # messages that all begin at the same place
    path.write_bytes(
        struct.pack(f"{order}5I", 0x950412DE, 0, count, 20, 20) + struct.pack(f"{order}2I", rest, 20) * count
    )
    assert sum(map(len, messages(path))) <= path.stat().st_size


def test_html_whose_tags_do_not_end_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "tool").mkdir()
    page_of = tmp_path / "tool" / "index.html"
    page_of.write_text("<p>A paragraph that is read.</p>" + "<a " * 300_000)
    assert list(doc_files((str(tmp_path),))) == [[]]
    page_of.write_text(f'<p>A paragraph that is read.</p><img alt="{"x" * 1900}"><p>2 &gt; 1 > 0</p>')
    assert list(doc_files((str(tmp_path),))) == [["A paragraph that is read.", "2 > 1 > 0"]]
    page_of.write_text("<p>A paragraph that is read.</p>" + "<table>" * 70_000 + "</pre>" * 70_000)
    assert list(doc_files((str(tmp_path),))) == [["A paragraph that is read."]]


def test_prose_is_cut_into_sentences_and_passages_and_tables_are_left_out() -> None:
    found = list(
        prose.pieces(["The first sentence has five words. Here is one more sentence.", "x = 1; y = 2 -> 3 | 4"])
    )
    assert found == ["The first sentence has five words.", "Here is one more sentence."]
    long = [f"Sentence number {'one two three four'.split()[i]} tells the reader something." for i in range(4)]
    assert list(prose.pieces(long))[4:] == [" ".join(long)]
    assert list(prose.pieces(["A text with a\0zero in the middle of it."])) == []


SENTENCES = [f"The {a} of the {b} is {c}." for a in WORDS[:12] for b in WORDS[12:24] for c in WORDS[24:34]]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[str]]]:
    """What the machine has, by kinds; tests may change it."""
    kinds = {"docstrings": SENTENCES[:800], "manual pages": SENTENCES[700:1200]}
    monkeypatch.setattr(starter, "_readers", lambda name: {kind: iter(texts) for kind, texts in kinds.items()})
    starter.starter.cache_clear()
    yield kinds
    starter.starter.cache_clear()


def test_kinds_are_mixed_counted_and_every_text_comes_once(
    machine: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    found = starter.starter("starter")
    assert sorted(found.texts) == sorted(SENTENCES[:1200])
    assert found.counts == {"docstrings": 800, "manual pages": 400}
    assert str(found).startswith("1,200 texts: 800 from docstrings (67%), 400 from manual pages (33%)")
    assert {text in SENTENCES[:800] for text in found.texts[:20]} == {True, False}
    assert list(texts_of("starter", 10, 0)) == list(found.texts)
    monkeypatch.setattr(starter, "_KIND_TEXTS", 600)
    before = digest_of("starter")
    starter.starter.cache_clear()
    assert starter.starter("starter").counts == {"docstrings": 600, "manual pages": 500}
    assert digest_of("starter") != before


def test_a_machine_with_too_few_texts_is_told(
    machine: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    del machine["manual pages"]
    with pytest.raises(DataError, match=r"800 texts for starter, and 1,000 are needed; manual pages are left out") as e:
        list(texts_of("starter", 10, 0))
    assert "--data FILE" in str(e.value.hint)


def test_a_file_or_folder_with_that_name_comes_first(
    machine: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_bert: Path, tiny_vit: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert modality_of_sources(tiny_bert, ["starter", "starter:zh"]) == "text"
    with pytest.raises(CheckpointError, match="reads images, not text"):
        modality_of_sources(tiny_vit, ["starter"])
    (tmp_path / "starter").write_text("mine\n")
    assert list(texts_of("starter", 10, 0)) == ["mine"]
    (tmp_path / "starter").unlink()
    (tmp_path / "starter").mkdir()
    (tmp_path / "starter" / "a.txt").write_text("also mine\n")
    assert list(texts_of("starter", 10, 0)) == ["also mine"]


@pytest.mark.slow
def test_the_whole_way_runs_on_the_texts_of_the_machine(
    machine: dict[str, list[str]], run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_bert: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("compress", tiny_bert, "--data", "starter", "--steps", 2, "--calibration-tokens", 2000, "-o", "out")
    result = run(*command, "--batch-size", 8, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert 'data = ["starter"]' in (tmp_path / "out" / "recipe.toml").read_text()
    again = run("distill", tiny_bert, "--data", "starter", "--steps", 1, "--batch-size", 8, "-o", "other", "--json")
    assert again.exit_code == 0, again.stderr


@pytest.mark.nightly
def test_this_machine_has_documentation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(starter, "_KIND_TEXTS", 1500)
    monkeypatch.setattr(starter, "_PAGES", 5)
    starter.starter.cache_clear()
    found = starter.starter("starter")
    starter.starter.cache_clear()
    assert starter.starter("starter") == found
    starter.starter.cache_clear()
    assert found.counts["docstrings"] == 1500
    assert all(text == " ".join(text.split()) and 0 < len(text) <= 1000 for text in found.texts)
