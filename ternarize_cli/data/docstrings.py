"""Collects the docstrings of this Python's standard library and of the installed packages.

Docstrings are English prose about one subject, and are on every machine that runs ternarize. Each is also a small
retrieval task: the summary line is a query, the rest of the docstring its answer. Files are parsed with `ast`; nothing
is imported or run.

The order depends only on what is installed. The standard library is read first, then a file of every package in turn,
outermost modules first, and at most PER_PACKAGE docstrings of a package, so that large packages (torch, transformers,
sympy) don't crowd out the others. Files with little documentation for their size are not parsed. Names are those that
people use: what a package's `__init__` imports from a private module is named after the package
(`numpy/lib/_function_base_impl.py` → `numpy.average`). Everything else that is private is left out, and so are tests.

One file in ten is held out, chosen by a checksum of its path. No sentence of a held-out file is trained on.
"""

import ast
import os
import re
import sysconfig
import time
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ternarize_cli.data.prose import NO_TEXT, paragraphs_of, passage, sentences
from ternarize_cli.errors import CheckpointError
from ternarize_cli.storage.bounds import MAX_FOLDERS, read_bytes

__all__ = ["PER_PACKAGE", "DocEntry", "collect", "is_held_out", "retrieval_pairs", "training_sentences"]

PER_PACKAGE = 800
_BYTES_PER_PACKAGE = 2_000_000
_DOCUMENTED_SHARE = 0.15
_HELD_OUT_OF = 10
_PASSAGE_CHARACTERS = 600
_MIN_SUMMARY_WORDS, _MIN_BODY_WORDS = 3, 8
_SKIPPED = re.compile(
    r"(tests?|testing|conftest|idle_test|site-packages|dist-packages|vendor(ed)?|extern(al)?|lib2to3|idlelib|"
    r"pydoc_data|turtledemo|encodings|ensurepip|[Tt]est_.*|.*_test|.*[^\w].*)"
)


@dataclass(frozen=True, slots=True)
class DocEntry:
    """A documented module, class or function.

    Attributes:
        name: the qualified name, such as `json.dumps`.
        file: path of the source file below the root of its library, such as `json/__init__.py`.
        summary: the first paragraph of the docstring, on one line.
        body: the other paragraphs; "" if there are none.
        text: summary and body.
    """

    name: str
    file: str
    summary: str
    body: str
    text: str

    @property
    def is_pair(self) -> bool:
        """Whether the summary is long enough for a query, at least 3 words, and the body for an answer, at least 8."""
        return len(self.summary.split()) >= _MIN_SUMMARY_WORDS and len(self.body.split()) >= _MIN_BODY_WORDS


def collect(limit_seconds: float | None = None, max_files: int | None = None) -> list[DocEntry]:
    """Reads the docstrings of the standard library and of the installed packages.

    Args:
        limit_seconds: stop after so many seconds; the entries are then the first of those that a full run collects.
        max_files: look at no more than so many files.

    Returns:
        The entries in the order of reading; an entry whose name or text has been read already is left out.
    """
    started = time.monotonic()
    paths = sysconfig.get_paths()
    site = {Path(paths["purelib"]), Path(paths["platlib"])}
    files = list(_interleaved([_standard_library(Path(paths["stdlib"]))]))
    files += _interleaved([package for root in sorted(site) for package in _packages(root)])
    exports = _Exports()
    taken: dict[str, int] = {}
    parsed: dict[str, int] = {}
    names: set[str] = set()
    texts: set[str] = set()
    entries = []
    for root, file, package in files[:max_files]:
        if limit_seconds is not None and time.monotonic() - started > limit_seconds:
            break
        if package and (taken.get(package, 0) >= PER_PACKAGE or parsed.get(package, 0) >= _BYTES_PER_PACKAGE):
            continue
        source = _source(root / file)
        owners = _owners(root, file, source, exports)
        if not owners or not _is_documented(source):
            continue
        parsed[package] = parsed.get(package, 0) + len(source)
        for entry in _read(source, file, owners):
            if entry.name not in names and entry.text not in texts:
                names.add(entry.name)
                texts.add(entry.text)
                taken[package] = taken.get(package, 0) + 1
                entries.append(entry)
    return entries


def is_held_out(entry: DocEntry) -> bool:
    """Returns whether the entry's file belongs to the tenth of all files that is never trained on."""
    return zlib.crc32(entry.file.encode()) % _HELD_OUT_OF == 0


def training_sentences(entries: Iterable[DocEntry]) -> list[str]:
    """Lists the texts to distill on: single sentences, and for longer docstrings also the first 600 characters.

    They come from files that are not held out. A text that a held-out entry also contains is left out, and so are
    repeated texts.
    """
    entries = list(entries)
    withheld = {piece for entry in entries if is_held_out(entry) for piece in _pieces(entry)}
    pieces = (piece for entry in entries if not is_held_out(entry) for piece in _pieces(entry))
    return [piece for piece in dict.fromkeys(pieces) if piece not in withheld]


def retrieval_pairs(entries: Iterable[DocEntry], limit: int | None = None) -> list[tuple[str, str]]:
    """Lists pairs of query and document: summary and body of held-out entries, in an order that mixes packages.

    Entries whose summary or body another entry shares are left out, because such a query has no single right answer.

    Args:
        entries: entries from `collect`.
        limit: the most pairs to return; None returns all.
    """
    held_out = [entry for entry in entries if is_held_out(entry) and entry.is_pair]
    summaries, bodies = _counts(e.summary for e in held_out), _counts(e.body for e in held_out)
    unique = [e for e in held_out if summaries[e.summary] == bodies[e.body] == 1]
    unique.sort(key=lambda e: (zlib.crc32(e.name.encode()), e.name))
    return [(e.summary, e.body) for e in unique[:limit]]


def _counts(values: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts


def _pieces(entry: DocEntry) -> Iterator[str]:
    for paragraph in (entry.summary, *entry.body.split("\n\n")):
        yield from sentences(paragraph)
    if entry.is_pair:
        yield passage(entry.body, _PASSAGE_CHARACTERS)


# --- which files ---------------------------------------------------------------------------------------------------

_Source = tuple[Path, PurePosixPath, str]  # root, file below it, package for the cap ("" for the standard library)


def _standard_library(root: Path) -> list[_Source]:
    return [(root, file, "") for file in _python_files(root, PurePosixPath())]


def _packages(root: Path) -> Iterator[list[_Source]]:
    if not root.is_dir():
        return
    for entry in sorted(root.iterdir()):
        if (entry / "__init__.py").is_file() and not _skipped(entry.name):
            files = _python_files(root, PurePosixPath(entry.name))
            yield [(root, file, entry.name) for file in files]


def _python_files(root: Path, below: PurePosixPath) -> list[PurePosixPath]:
    """Lists Python files below `root / below`, by depth and then by name; skips tests and very deep folders."""
    found = []
    for folder, folders, names in os.walk(root / below):
        relative = PurePosixPath(Path(folder).relative_to(root).as_posix())
        deep = len(relative.parts) >= MAX_FOLDERS
        folders[:] = [name for name in folders if not (deep or _skipped(name) or name == "__pycache__")]
        found += [relative / name for name in names if name.endswith(".py") and not _skipped(name[:-3])]
    return sorted(found, key=lambda path: (len(path.parts), path))


def _skipped(name: str) -> bool:
    return _SKIPPED.fullmatch(name) is not None


def _interleaved(groups: list[list[_Source]]) -> Iterator[_Source]:
    for i in range(max(map(len, groups), default=0)):
        yield from (group[i] for group in groups if i < len(group))


# --- what a file documents -----------------------------------------------------------------------------------------


class _Exports:
    """Finds the names that the `__init__.py` of a package imports; `*.module` stands for a star import."""

    def __init__(self) -> None:
        self._known: dict[Path, frozenset[str]] = {}

    def of(self, package: Path) -> frozenset[str]:
        if package not in self._known:
            source = _source(package / "__init__.py")
            tree = _parse(source) if b"import" in source else None
            names = set()
            for node in ast.walk(tree) if tree else ():
                if isinstance(node, ast.ImportFrom):
                    module = (node.module or "").rpartition(".")[2]
                    names |= {f"*.{module}" if a.name == "*" else a.asname or a.name for a in node.names}
            self._known[package] = frozenset(names)
        return self._known[package]


def _source(path: Path) -> bytes:
    """Reads a file; b"" if it can't be read, or is larger than the part of a package that is parsed."""
    try:
        return read_bytes(path, limit=_BYTES_PER_PACKAGE)
    except CheckpointError:
        return b""


def _is_documented(source: bytes) -> bool:
    """Returns whether more than 15% of a file stands between triple quotes and it is not generated; parses nothing."""
    if b"generated by" in source[:200]:
        return False
    return sum(map(len, source.split(b'"""')[1::2])) > _DOCUMENTED_SHARE * len(source)


def _parse(source: bytes) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _owners(root: Path, file: PurePosixPath, source: bytes, exports: _Exports) -> dict[str, str]:
    """Maps each top-level name of a file that is public to the module or package from which it is imported.

    The name "" stands for the module itself.
    """
    parts = file.with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    if parts[-1] == "__main__" or parts[0].startswith("_"):
        return {}
    names = [name.decode() for name in re.findall(rb"^(?:class|def|async def) ([A-Za-z]\w*)", source, re.MULTILINE)]
    private = next((i for i, part in enumerate(parts) if part.startswith("_")), None)
    if private is None:
        return dict.fromkeys(["", *names], ".".join(parts))
    owners: dict[str, str] = {}
    for i in range(1, private + 1):  # the innermost public package wins
        exported = exports.of(root.joinpath(*parts[:i]))
        known = names if f"*.{parts[-1]}" in exported else [name for name in names if name in exported]
        owners |= dict.fromkeys(known, ".".join(parts[:i]))
    return owners


def _read(source: bytes, file: PurePosixPath, owners: dict[str, str]) -> Iterator[DocEntry]:
    tree = _parse(source)
    if tree is None:
        return
    if "" in owners:
        yield from _entry(owners[""], tree, file)
    for node in tree.body:
        if getattr(node, "name", "_") in owners:
            yield from _documented(node, owners[node.name], file)  # type: ignore[attr-defined]


def _documented(node: ast.AST, owner: str, file: PurePosixPath) -> Iterator[DocEntry]:
    """Yields the entries of a public function or class and of its public methods."""
    if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
        return
    if node.name.lower().startswith("test"):
        return
    name = f"{owner}.{node.name}"
    yield from _entry(name, node, file)
    if isinstance(node, ast.ClassDef):
        for child in node.body:
            yield from _documented(child, name, file)


def _entry(
    name: str, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, file: PurePosixPath
) -> Iterator[DocEntry]:
    docstring = ast.get_docstring(node, clean=False)
    if docstring and NO_TEXT.search(docstring):
        return
    paragraphs = paragraphs_of(docstring) if docstring else []
    if not paragraphs or len(" ".join(paragraphs).split()) < _MIN_SUMMARY_WORDS:
        return
    summary = " ".join(paragraphs[0].split())
    body = _without("\n\n".join(paragraphs[1:]), summary)
    yield DocEntry(name, file.as_posix(), summary, body, f"{summary}\n\n{body}".strip())


def _without(body: str, summary: str) -> str:
    """Removes the summary from a body that repeats it, in whatever lines, so that a query does not find itself."""
    if summary in " ".join(body.split()):
        body = re.sub(r"\s+".join(map(re.escape, summary.split())), "", body)
    return body.strip()
