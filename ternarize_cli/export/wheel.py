"""The format wheel: a package for pip with a model, the runtime and the compiled library, which needs no PyTorch.

    NAME/
        __init__.py                  `encode` and `Encoder`, or those of a reranker or classifier
        __main__.py                  `python -m NAME`, and the command NAME
        about.json                   the kind of the model, and results for --check
        model/                       the packed model
        _runtime/                    the runtime (vendoring.py), and the compiled library in runtime/native

Equal models, options and versions of ternarize give equal bytes.
"""

import json
import keyword
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import metadata as installed
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from ternarize_cli.errors import InputError, OutputExistsError, quoted, shown
from ternarize_cli.export import wheel_card
from ternarize_cli.export.carried.check import TEXTS, results
from ternarize_cli.export.dockerfile import dockerfile
from ternarize_cli.export.formats import Export, register
from ternarize_cli.export.libraries import find_library, parse_platform
from ternarize_cli.export.licences import licence_texts, with_ours
from ternarize_cli.export.options import ExportOptions
from ternarize_cli.export.source import Source
from ternarize_cli.export.vendoring import vendored
from ternarize_cli.export.wheel_file import Metadata, wheel_name, write_wheel
from ternarize_cli.runtime import Classifier, Encoder, Reranker
from ternarize_cli.runtime.native.library import library
from ternarize_cli.runtime.opening import open_model
from ternarize_cli.storage.files import atomic_file, check_output

__all__ = ["Wheel", "package_name"]

_OURS = "ternarize-cli"
_CARRIED = "ternarize_cli.export.carried"
_RUNTIME = frozenset({"numpy", "tokenizers", "PIL"})
_SERVER = _RUNTIME | {"orjson", "uvicorn"}
"""The libraries that the runtime may import, and those that the server may."""
_NAME = re.compile(r"[A-Za-z]([A-Za-z0-9_]*[A-Za-z0-9])?")
_TAKEN = sys.stdlib_module_names | {"numpy", "tokenizers", "ternarize_cli", "pip", "PIL"}
_INIT = '''"""{doc}

    {example}
"""

from {name}._runtime.export.carried.model import {names}

__all__ = [{listed}]
__version__ = "{version}"
'''
_MAIN = '''"""The command {name}."""

import sys

from {name}._runtime.export.carried.command import main

if __name__ == "__main__":
    sys.exit(main())
'''


@register
class Wheel:
    """Writes a wheel, and a Dockerfile that installs it if that is asked for."""

    name = "wheel"
    options = frozenset({"name", "version", "platform", "library", "dockerfile", "serve"})

    def write(
        self, source: Source, output: Path, options: ExportOptions, *, force: bool, say: Callable[[str], None]
    ) -> Export:
        """Writes the wheel into a folder, which is made if there is none.

        Args:
            source: the model.
            output: the folder to write into.
            options: the options, all of which a wheel knows.
            force: replace a wheel and a Dockerfile that exist.
            say: is told what is written when all arguments have been checked.

        Raises:
            InputError: the name is no name of a Python package, the version is none, there is no such platform, or the
                library is another's.
            CheckpointError: a file is damaged, or is a link to a place outside the model's folder.
            UnavailableError: the runtime can't run the model, or there is no library for the platform.
            OutputError, OutputExistsError: the output can't be written, or exists and `force` is false.
        """
        if options.serve and not options.dockerfile:
            raise InputError("--serve is for a Dockerfile; every wheel can serve", hint="--dockerfile --serve")
        name, version = package_name(options.name, source.name), _version(options.version)
        platform = parse_platform(options.platform)
        code = find_library(platform, options.library)
        model = open_model(source.folder)
        usage = wheel_card.usage_of(model, name)
        runtime = vendored([f"{_CARRIED}.command"], f"{name}._runtime", _RUNTIME)
        server = vendored([f"{_CARRIED}.server"], f"{name}._runtime", _SERVER)
        needless = frozenset() if "image" in model.reads else {"PIL"}  # imported where there are images
        about = Metadata(
            name=name,
            version=version,
            summary=f"{source.name}: {usage.what}, with {source.weights} and without PyTorch",
            licence=with_ours(source.licence),
            licence_texts=licence_texts(source.folder),
            requires=_requirements(runtime.imports - needless),
            extras={"serve": _requirements(server.imports - runtime.imports | needless | {"httptools"})},
            python=installed(_OURS)["Requires-Python"],
            command=(name, f"{name}._runtime.export.carried.command:main"),
            readme=wheel_card.readme(source, usage, name),
        )
        init = _INIT.format(
            doc=f"{usage.what[0].upper()}{usage.what[1:]}, with a ternary model that ternarize packed.",
            example=usage.code.replace("\n\n", "\n").replace("\n", "\n    "),
            name=name,
            names=", ".join(usage.names),
            listed=", ".join(f'"{one}"' for one in usage.names),
            version=version,
        )
        files: dict[str, bytes | Path] = {
            "__init__.py": init.encode(),
            "__main__.py": _MAIN.format(name=name).encode(),
            "about.json": _about(model),
            "_runtime/runtime/native/libternarize_alone.so.1": code,
        }
        files |= {f"_runtime/{path}": content for path, content in (*server.files.items(), *runtime.files.items())}
        files |= {f"model/{path}": place for path, place in source.files().items()}
        made = output / wheel_name(about, platform.tag)
        targets = [made, *([output / "Dockerfile"] if options.dockerfile else [])]
        content = {f"{name}/{path}": content for path, content in files.items()}
        with _prepared(output, targets, force=force):
            say(f"writing {made} …")
            with atomic_file(made, force=force) as partial:
                write_wheel(partial, about, platform.tag, content)
            if options.dockerfile:
                with atomic_file(output / "Dockerfile", force=force) as partial:
                    partial.write_text(dockerfile(made.name, name, serves=options.serve), encoding="utf-8")
        facts = {"name": name, "version": version, "platform": platform.tag, "requires": list(about.requires)}
        return Export({path: path.stat().st_size for path in targets}, f"pip install {quoted(made)}", facts)


def package_name(asked: str | None, model: str) -> str:
    """Returns the name of a model's Python package: the one that is asked for, or one made of the model's name.

    Raises:
        InputError: the name that is asked for can't be a package's.
    """
    if asked is None:
        made = re.sub(r"[^a-z0-9]+", "_", model.lower()).strip("_") or "model"
        made = made if made[0].isalpha() else f"model_{made}"
        return f"{made}_model" if made in _TAKEN or keyword.iskeyword(made) else made
    if not _NAME.fullmatch(asked) or keyword.iskeyword(asked) or len(asked) > 100:
        raise InputError(f"{shown(asked)} is no name of a Python package", hint="--name my_model")
    if asked in _TAKEN:
        raise InputError(f"another package is called {asked}", hint=f"--name my_{asked}")
    return asked


def _version(asked: str | None) -> str:
    try:
        return str(Version("1.0" if asked is None else asked))
    except InvalidVersion as e:
        raise InputError(f"{shown(asked)} is no version of a Python package", hint="--version 1.0") from e


def _requirements(imported: Iterable[str]) -> list[str]:
    """Lists requirements, with ternarize's own bounds, of libraries by the names that they are imported by."""
    wanted = {{"PIL": "pillow"}.get(name, name) for name in imported}
    own = (Requirement(line) for line in installed(_OURS).get_all("Requires-Dist") or [])
    bounds = {one.name: str(one.specifier) for one in own if one.name in wanted}
    return sorted(f"{name}{bounds.get(name, '')}" for name in wanted)


def _about(model: Encoder | Reranker | Classifier) -> bytes:
    stored = {
        "kind": model.kind,
        "reads": sorted(model.reads),
        "instruction_set": library().chosen,
        "texts": TEXTS,
        "results": [[float(str(value)) for value in row] for row in results(model)],
    }
    return (json.dumps(stored, ensure_ascii=False) + "\n").encode()


@contextmanager
def _prepared(output: Path, targets: Iterable[Path], *, force: bool) -> Iterator[None]:
    """Makes the folder of the output, and checks that all files can be written before one is.

    A new folder is removed if the body raises and has written nothing.
    """
    if output.exists() and not output.is_dir():
        raise OutputExistsError(f"{output} is a file, and a wheel is written into a folder", hint="-o DIR")
    if new := not output.is_dir():
        check_output(output, force=False)
        output.mkdir()
    try:
        for target in targets:
            check_output(target, force=force, folder=False)
        yield
    except BaseException:
        if new:
            with suppress(OSError):  # a file is in it
                output.rmdir()
        raise
