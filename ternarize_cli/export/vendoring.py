"""Gathers the Python files of the runtime for a package that carries them, with their imports rewritten.

What is gathered is found by reading: the modules that are asked for, all that they import of this package, inside of
functions too, and the packages that these lie in. `from ternarize_cli.a.b import c` becomes
`from NAME._runtime.a.b import c`, so that nothing clashes with an installed ternarize.

An import is left out if it never runs there: under `if TYPE_CHECKING`, or in the handler of an ImportError, for systems
that lack a module of the standard library.
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ternarize_cli import __version__
from ternarize_cli.errors import TernarizeError

__all__ = ["Vendored", "vendored"]

_OURS = "ternarize_cli"
_FROM = re.compile(rf"from\s+{_OURS}\b")


@dataclass(frozen=True)
class Vendored:
    """Files for a package, and what they need.

    Attributes:
        files: for each path, relative to the folder that stands for ternarize_cli, the content.
        imports: the names of the libraries that the files import, beside those of the standard library.
    """

    files: Mapping[str, bytes]
    imports: frozenset[str]


def vendored(roots: Sequence[str], package: str, allowed: frozenset[str]) -> Vendored:
    """Gathers modules of ternarize_cli and all that they import.

    Args:
        roots: the names of the modules.
        package: the name of the package that stands for ternarize_cli, such as "my_model._runtime".
        allowed: the names of the libraries that files may import, beside those of the standard library.

    Raises:
        TernarizeError: a file imports another library, or in a way that can't be rewritten.
    """
    files = {
        "__init__.py": f'"""The runtime of ternarize {__version__}."""\n\n__version__ = "{__version__}"\n'.encode()
    }
    others: set[str] = set()
    waiting, seen = [parent for root in roots for parent in _lineage(root)], {_OURS}
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        path = _file(name)
        assert path is not None, name
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        for imported in _imported(tree, name):
            if imported.partition(".")[0] != _OURS:
                others.add(imported.partition(".")[0])
                if not {imported.partition(".")[0]} <= sys.stdlib_module_names | allowed:
                    raise TernarizeError(f"{name} imports {imported}, which an exported model can't carry")
            else:
                waiting += _lineage(imported)
        parts = name.split(".")[1:]
        place = "/".join([*parts, "__init__.py"]) if path.name == "__init__.py" else "/".join(parts) + ".py"
        files[place] = _rewritten(text, tree, package).encode()
    return Vendored(dict(sorted(files.items())), frozenset(others - sys.stdlib_module_names))


def _imported(tree: ast.Module, name: str) -> Iterator[str]:
    """Yields the names of the modules that a module imports when it runs."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        if isinstance(node, ast.ExceptHandler) and node.type is not None and ast.unparse(node.type) == "ImportError":
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == _OURS:
                    raise TernarizeError(f"{name} has `import {alias.name}`, and should have `from … import …`")
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise TernarizeError(f"{name} has a relative import")
            yield node.module
            if node.module.partition(".")[0] == _OURS:
                yield from (f"{node.module}.{a.name}" for a in node.names if _file(f"{node.module}.{a.name}"))


def _lineage(name: str) -> list[str]:
    """Lists a module and the packages that it lies in."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _file(name: str) -> Path | None:
    """Returns the file of a module of ternarize_cli; None if there is no such module."""
    try:
        spec = find_spec(name)
    except ModuleNotFoundError:  # its parent is no package
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def _rewritten(text: str, tree: ast.Module, package: str) -> str:
    """Replaces ternarize_cli by another package in all imports of a file."""
    lines = text.splitlines(keepends=True)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == _OURS:
            line, at = lines[node.lineno - 1], node.col_offset
            head = len(line.encode()[:at].decode())
            lines[node.lineno - 1] = line[:head] + _FROM.sub(f"from {package}", line[head:], count=1)
    return "".join(lines)
