"""Reads the manual pages of this machine, which groff renders.

A page is a program in roff that anybody may have written, and groff's safe mode keeps it from starting programs and
writing files, but not from reading any. So groff does not get the page, but what `_harmless` makes of it: lines of
text, and lines that begin with a macro or request of a list, none of which reads a file or gives a name to another. A
page gets 10 seconds, and of what it prints the first 2 MB count. Pages that are links or only name another page are
left out.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from threading import Timer

from ternarize_cli.data.unpacked import inner_suffix, open_text
from ternarize_cli.errors import DataError

__all__ = ["manual_pages", "rendered", "renderer"]

_SECONDS = 10.0
_ROOTS = ("/usr/share/man", "/usr/local/share/man", f"{sys.prefix}/share/man")
_SECTION = re.compile(r"man[1-8]")
_PAGE = re.compile(r"\.[1-8][a-z]*")
_LONGEST = 2 << 20
_LINE = re.compile(rb"[.'][ \t]*([^ \t]*)(.*)")
_MAN = b"""TH SH SS TP TQ IP HP P PP LP RS RE B I BI BR IB IR RB RI R SM SB UR UE MT ME SY YS OP"""
_MDOC = b"""Dd Dt Os Sh Ss Pp Lp Nm Nd Op Oo Oc Fl Ar Cm Ic Li Ql Dq Do Dc Sq So Sc Qq Qo Qc Pq Po Pc Bq Bo Bc Brq Bro
Brc Aq Ao Ac Bl El It D1 Dl Em Sy No Ns Xr Pa Ev Er Va Vt Fa Fn Ft Fo Fc In Lk Mt An At Bx Bsx Nx Fx Ox Dx Ux Tn St Xo
Xc Ex Rv Ta Cd Dv Ap Lb Ms Pf"""
_ALLOWED = frozenset((_MAN + b" " + _MDOC).split())
"""Macros of man and mdoc. Of mdoc's, Bd and Hf can print a file, so their lines are left out."""
_BARE = (b"br", b"sp", b"nf", b"fi")
"""Requests that are kept, without what follows."""
_ENDS = {b"TS": b"TE", b"EQ": b"EN", b"PS": b"PE", b"EX": b"EE", b"Vb": b"Ve"} | dict.fromkeys(
    (b"de", b"de1", b"dei", b"dei1", b"am", b"am1", b"ami", b"ami1", b"ig"), b"."
)
"""What begins tables, formulas, pictures, code, definitions and comments, and what ends them."""
_PERIOD = re.compile(rb"[.'](?![ \t]*$)")
"""What may begin a line with a request, if a macro puts what it is given there."""
_PRINTS_FILE = re.compile(rb"\bHf\b|-file")
_HEADING = re.compile(r"\S")
_NO_PROSE = re.compile(r"SYNOPSIS|SEE ALSO|AUTHORS?|COPYRIGHT|REPORTING BUGS|COLOPHON|EXAMPLES?|FILES")


def renderer() -> list[str] | None:
    """Returns the command that renders a page from stdin, with a paragraph a line; None if there is no groff."""
    groff = shutil.which("groff")
    if groff is None or not hasattr(os, "killpg"):
        return None
    return [groff, "-S", "-mandoc", "-Tutf8", "-Kutf8", "-P-cbou", "-rLL=9000n", "-rHY=0"]


def manual_pages(count: int, language: str = "", roots: tuple[str, ...] = _ROOTS) -> Iterator[list[str]]:
    """Yields the paragraphs of manual pages, page by page; none if there is no groff.

    Args:
        count: the most pages. Of more, one page of every program comes first, then another of each, in an order that
            depends on their names only.
        language: a language of translated pages, such as "zh_CN"; "" reads those in English.
        roots: folders with folders of sections.
    """
    command = renderer()
    if command is None:
        return
    pages = islice(_pages(language, roots), count)
    with ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:
        yield from filter(None, pool.map(lambda page: rendered(page, command), pages))


def rendered(page: Path, command: list[str]) -> list[str]:
    """Returns the paragraphs of a page, without sections that are no prose; [] if it can't be read or rendered."""
    try:
        with open_text(page) as stream:
            source = stream.read(_LONGEST + 1)
    except DataError:
        return []
    kept = _harmless(source) if len(source) <= _LONGEST else b""
    if not kept.strip():
        return []
    paragraphs, skipped = [], False
    for line in _printed(kept, command).decode("utf-8", "replace").splitlines()[1:-1]:  # without header and footer
        if _HEADING.match(line):
            skipped = _NO_PROSE.fullmatch(line.strip()) is not None
        elif line.strip() and not skipped:
            paragraphs.append(" ".join(line.split()))
    return paragraphs


def _harmless(source: bytes) -> bytes:
    """Returns a page in which nothing reads a file or gets another name: every line is text, or has a name of a list.

    Text begins with `\\&`, so that no escape before a period makes a request of it. In what follows a macro, which may
    put it at the beginning of a line, periods do.
    """
    source = re.sub(rb"[\0\r\x0b\x0c]|\\E", b"", source)
    while b"\\\n" in source:  # a line goes on
        source = source.replace(b"\\\n", b"")
    kept, end = [], b""
    for line in source.split(b"\n"):
        found = _LINE.fullmatch(line)
        name = found[1] if found else b""
        if end:
            end = b"" if name == end else end
        elif name in _ENDS:
            end = _ENDS[name]
        elif not found:
            kept.append(b"\\&" + line.strip() if line.strip() else b"")
        elif name in _BARE:
            kept.append(b"." + name)
        elif name in _ALLOWED and not _PRINTS_FILE.search(found[2]):
            rest = re.sub(rb"\\+(?=[.'])", b"", found[2])
            kept.append(b"." + name + _PERIOD.sub(rb"\\&\g<0>", rest))
    return b"\n".join(kept)


def _pages(language: str, roots: tuple[str, ...]) -> Iterator[Path]:
    """Yields the files of pages: the first of each program in the order of checksums of names, then the second, …"""
    programs: dict[str, list[tuple[int, str, Path]]] = defaultdict(list)
    for root in dict.fromkeys(roots):
        for folder in _listed(Path(root) / language):
            if not _SECTION.fullmatch(folder.name) or folder.is_symlink():
                continue
            for page in _listed(folder):
                if _PAGE.fullmatch(inner_suffix(page)) and page.is_file() and not page.is_symlink():
                    program = re.split(r"[-_.:]", page.name, maxsplit=1)[0]
                    programs[program].append((zlib.crc32(page.name.encode()), page.name, page))
    ranked = ((i, *page) for pages in programs.values() for i, page in enumerate(sorted(pages)))
    yield from (page for *_, page in sorted(ranked))


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _printed(source: bytes, command: list[str]) -> bytes:
    """Returns what the command prints for a page, or what it had printed when it took too long or printed too much."""
    with tempfile.TemporaryFile() as given:
        given.write(source)
        given.seek(0)
        try:
            process = subprocess.Popen(
                command,
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={"PATH": os.environ.get("PATH", os.defpath)},  # a page may print what is in the environment
                start_new_session=True,  # groff starts the programs of its pipeline; all of them are ended
            )
        except OSError:
            return b""

        def end() -> None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        timer = Timer(_SECONDS, end)
        timer.start()
        with process:
            assert process.stdout is not None
            try:
                return process.stdout.read(_LONGEST)
            finally:
                timer.cancel()
                end()
