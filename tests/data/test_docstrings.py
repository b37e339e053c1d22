"""The documentation corpus: what is read, how it is cleaned, and that held-out text stays held out."""

import sysconfig
import zlib
from pathlib import Path

import pytest

from ternarize_cli.data.docstrings import DocEntry, collect, is_held_out, retrieval_pairs, training_sentences

STANDARD = '''"""Serve small things to anyone who asks."""


def serve(port):
    """Serve the things on a port until stopped.

    Serve the things on a port
    until stopped. The call blocks, and :func:`~small.stop` called in another thread ends it ``cleanly``.

    .. versionadded:: 3.2

    >>> serve(80)
    'served'

    Parameters
    ----------
    port : int
        Where to listen.
    """


def _hidden():
    """Nobody should see this docstring in the corpus."""


class Server:
    """A server that remembers everything it did.

    It keeps a list of all requests, in order, for as long as it lives.
    """

    def __init__(self):
        """Makes a server, which is documented elsewhere."""

    def close(self):
        """Close the server and forget all of it."""
'''
PRIVATE = '''def average(a):
    """Compute the weighted average along an axis.

    Weights are given one for each value and must not sum to zero.
    """


def internal(a):
    """A helper that the package does not export."""
'''


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A standard library with one module and a site-packages with one package."""
    stdlib, site = tmp_path / "stdlib", tmp_path / "site"
    files = {
        stdlib / "small.py": STANDARD,
        stdlib / "broken.py": '"""This file does not parse, whatever it says about itself."""\ndef (',
        stdlib / "test" / "test_small.py": '"""Tests of the small server are not documentation."""',
        site
        / "arrays"
        / "__init__.py": '"""Arrays of numbers and what to do with them."""\nfrom ._base import average\n',
        site / "arrays" / "_base.py": PRIVATE,
        site / "arrays" / "_vendor" / "x.py": '"""A copy of somebody else that is not exported."""',
    }
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    paths = {"stdlib": str(stdlib), "purelib": str(site), "platlib": str(site)}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: paths)
    return tmp_path


def test_public_documentation_is_read_under_the_names_people_use(library):
    names = ["small", "small.serve", "small.Server", "small.Server.close", "arrays", "arrays.average"]
    assert [entry.name for entry in collect()] == names
    assert [entry.name for entry in collect(max_files=2)] == names[:4]
    assert collect(limit_seconds=0) == []


def test_a_docstring_that_no_file_of_texts_may_hold_is_left_out(library):
    for name, mark in (("null", "\\0"), ("half", "\\ud800"), ("whole", "\\u2013")):
        (library / "stdlib" / f"{name}.py").write_text(f'"""The mark {mark} has a meaning of its own."""')
    assert {entry.name for entry in collect()} & {"null", "half", "whole"} == {"whole"}


def test_a_docstring_becomes_prose_and_its_body_does_not_repeat_the_summary(library):
    entry = next(e for e in collect() if e.name == "small.serve")
    assert entry.file == "small.py"
    assert entry.summary == "Serve the things on a port until stopped."
    assert entry.body == (
        "The call blocks, and small.stop called in another thread ends it cleanly.\n\n"
        "Parameters\nport : int\nWhere to listen."
    )
    assert entry.is_pair


def _entry(file: str, summary: str, body: str = "") -> DocEntry:
    return DocEntry(f"{file[:-3]}.{len(summary)}", file, summary, body, f"{summary}\n\n{body}")


def _named(held_out: bool) -> str:
    return next(f"m{i}.py" for i in range(1000) if (zlib.crc32(f"m{i}.py".encode()) % 10 == 0) is held_out)


def test_held_out_text_is_never_trained_on():
    body = "Opens the file and returns its lines as a list. A line keeps its end."
    shared = "Open the file that is named."
    entries = [
        _entry(_named(True), shared, body),
        _entry(_named(False), shared, "A line keeps its end. Only this sentence is new here."),
        _entry(_named(False), "Close a file that was opened before."),
    ]
    assert [is_held_out(e) for e in entries] == [True, False, False]
    sentences = training_sentences(entries)
    assert "Only this sentence is new here." in sentences
    assert "Close a file that was opened before." in sentences
    assert not {shared, "A line keeps its end.", body} & set(sentences)


def test_pairs_are_held_out_and_have_one_answer():
    held_out, trained = _named(True), _named(False)
    body = "The answer has at least eight words, as {} answers do here."
    entries = [
        _entry(held_out, "What is the first one?", body.format("all")),
        _entry(held_out, "Return the name.", body.format("some")),
        _entry(held_out, "Return the name.", body.format("other")),
        _entry(held_out, "Is this one short?", "Too short."),
        _entry(trained, "Is it trained on?", body.format("trained")),
    ]
    assert retrieval_pairs(entries) == [("What is the first one?", body.format("all"))]
    assert retrieval_pairs(entries, limit=0) == []


@pytest.mark.nightly
@pytest.mark.real
def test_this_python_documents_enough_to_train_on():
    entries = collect()
    names = {entry.name for entry in entries}
    assert {"json.dumps", "shutil.copytree", "numpy.sort"} <= names
    assert len(names) == len(entries) > 5000
    assert len(training_sentences(entries)) > 20_000
    pairs = retrieval_pairs(entries)
    assert len(pairs) > 300
    assert not [summary for summary, body in pairs if summary in " ".join(body.split())]
    held_out = {text for entry in entries if is_held_out(entry) for text in (entry.summary, entry.body)}
    assert not held_out & set(training_sentences(entries))
    assert all(not Path(entry.file).is_absolute() for entry in entries)
