"""The command of a wheel, and `python -m NAME`: texts in, a line of JSON out for each."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from ternarize_cli.errors import TernarizeError
from ternarize_cli.export.carried.model import PACKAGE, encoder
from ternarize_cli.runtime.native.library import library

__all__ = ["main"]

_CHUNK = 256
"""Lines of stdin that are encoded at a time."""
_LEAST = 0.999
"""The least cosine between a vector and the stored one: another processor rounds in another order."""


def main() -> int:
    """Runs the command; returns its exit code."""
    arguments = _parser().parse_args()
    try:
        if arguments.check:
            return _check()
        return _encode(arguments.text, arguments.prompt_name, arguments.dimensions)
    except TernarizeError as e:
        print(f"error: {e}" + (f"\n  try: {e.hint}" if e.hint else ""), file=sys.stderr)
        return e.exit_code
    except BrokenPipeError:  # `… | head`: the reader has ended, which is no failure
        sys.stderr.close()
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PACKAGE.name, description="Encodes texts, and prints a line of JSON with the vector of each."
    )
    parser.add_argument("text", nargs="*", help="the texts; without any, each line of stdin is one")
    parser.add_argument("--prompt-name", metavar="NAME", help="the prompt that is put before each text")
    parser.add_argument("--dimensions", metavar="N", type=int, help="leading dimensions that are kept")
    parser.add_argument(
        "--check", action="store_true", help="compare vectors with those that were stored with the model, and exit"
    )
    return parser


def _encode(texts: Sequence[str], prompt_name: str | None, dimensions: int | None) -> int:
    lines = iter(texts) if texts else (line.rstrip("\r\n") for line in sys.stdin)
    number = 0
    for some in _chunks(lines):
        for vector in encoder().encode(some, prompt_name=prompt_name, dimensions=dimensions):
            number += 1
            numbers = ", ".join(map(str, vector))  # the fewest digits from which a float32 comes back
            print(f'{{"id": "{number}", "vector": [{numbers}]}}')
        sys.stdout.flush()
    return 0


def _chunks(lines: Iterator[str]) -> Iterator[list[str]]:
    while some := list(islice(lines, _CHUNK)):
        yield some


def _check() -> int:
    """Compares vectors with the stored ones, and prints how far they are apart."""
    stored = json.loads((PACKAGE / "check.json").read_text(encoding="utf-8"))
    wanted = np.array(stored["vectors"], dtype=np.float32)
    made = encoder().encode(stored["texts"])
    lengths = np.linalg.norm(made, axis=1) * np.linalg.norm(wanted, axis=1)
    cosine = float(np.min(np.sum(made * wanted, axis=1) / lengths))
    apart = float(np.abs(made - wanted).max())
    said = "equal bit for bit" if np.array_equal(made, wanted) else f"up to {apart:.2g} apart"
    print(f"{len(made)} vectors: {said}; the least cosine is {cosine:.6f}, and should be {_LEAST} or more")
    print(f"instruction set: {stored['instruction_set']} when the package was made, {library().chosen} here")
    return 0 if cosine >= _LEAST else 1
