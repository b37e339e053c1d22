"""Writes wheels, with equal bytes for equal content.

The format is https://packaging.python.org/specifications/binary-distribution-format.

NAME-VERSION-py3-none-PLATFORM.whl           a zip archive, in which a file's time is always 1 January 1980
    NAME/…                                   the package
    NAME-VERSION.dist-info/METADATA          name, version, licence, requirements, README
                          /WHEEL             tags
                          /entry_points.txt  commands
                          /licenses/…        texts of licences
                          /RECORD            the sha256 and size of every file
"""

import base64
import csv
import hashlib
import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.utils import canonicalize_name

from ternarize_cli import __version__
from ternarize_cli.export.licences import spdx

__all__ = ["Metadata", "wheel_name", "write_wheel"]

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip archive can hold."""
_PLAIN, _PROGRAM = 0o100644, 0o100755


@dataclass(frozen=True)
class Metadata:
    """What a wheel says of itself.

    Attributes:
        name: the name of the package, and of the distribution.
        version: the version.
        summary: one line.
        licence: the licence, by its SPDX expression or in other words; None if it is not known.
        licence_texts: the texts of licences by the names of their files.
        requires: the requirements.
        extras: the requirements of each extra.
        python: the versions of Python that are needed, such as ">=3.11".
        command: the command by its name and the function that it calls, `module:function`.
        readme: Markdown.
    """

    name: str
    version: str
    summary: str
    licence: str | None
    requires: Sequence[str]
    python: str
    command: tuple[str, str]
    readme: str
    licence_texts: Mapping[str, bytes] = field(default_factory=dict)
    extras: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """Name and version, as names of files have them."""
        return f"{canonicalize_name(self.name).replace('-', '_')}-{self.version}"

    def lines(self) -> Iterable[str]:
        """Yields the lines of METADATA before the README."""
        yield from ("Metadata-Version: 2.4", f"Name: {self.name}", f"Version: {self.version}")
        yield f"Summary: {self.summary}"
        if self.licence is not None:
            expression = spdx(self.licence)
            yield f"License: {self.licence}" if expression is None else f"License-Expression: {expression}"
        yield from (f"License-File: {name}" for name in self.licence_texts)
        yield f"Requires-Python: {self.python}"
        yield from (f"Requires-Dist: {requirement}" for requirement in self.requires)
        for extra, requirements in self.extras.items():
            yield f"Provides-Extra: {extra}"
            yield from (f"Requires-Dist: {requirement}; extra == '{extra}'" for requirement in requirements)
        yield "Description-Content-Type: text/markdown"


def wheel_name(metadata: Metadata, platform: str) -> str:
    """Returns the name of the file of a wheel for a platform, which holds no code for a certain Python."""
    return f"{metadata.stem}-py3-none-{platform}.whl"


def write_wheel(path: Path, metadata: Metadata, platform: str, files: Mapping[str, bytes | Path]) -> None:
    """Writes a wheel.

    Args:
        path: the file to write; its name is not read.
        metadata: what the wheel says of itself.
        platform: the name of its platform.
        files: for each path in the archive the content, or the file that holds it.
    """
    info = f"{metadata.stem}.dist-info"
    made_by, tag = f"Generator: ternarize {__version__}", f"Tag: py3-none-{platform}"
    own = {
        "METADATA": "\n".join(metadata.lines()) + f"\n\n{metadata.readme}",
        "WHEEL": "\n".join(("Wheel-Version: 1.0", made_by, "Root-Is-Purelib: false", tag)) + "\n",
        "entry_points.txt": f"[console_scripts]\n{metadata.command[0]} = {metadata.command[1]}\n",
    }
    everything = dict(sorted(files.items())) | {f"{info}/{name}": text.encode() for name, text in sorted(own.items())}
    everything |= {f"{info}/licenses/{name}": text for name, text in sorted(metadata.licence_texts.items())}
    records = io.StringIO()
    listed = csv.writer(records, lineterminator="\n")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, source in everything.items():
            content = source.read_bytes() if isinstance(source, Path) else source
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            listed.writerow((name, f"sha256={digest}", len(content)))
            _add(archive, name, content)
        listed.writerow((f"{info}/RECORD", "", ""))
        _add(archive, f"{info}/RECORD", records.getvalue().encode())


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.create_system = 3  # Unix, on every system
    entry.external_attr = (_PROGRAM if ".so" in Path(name).suffixes else _PLAIN) << 16
    archive.writestr(entry, content)
