"""Runs the programs of tests/clients/programs, in each of which another library uses a packed model of ours."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from support.warm import shared

__all__ = ["PROGRAMS", "answers", "ask", "packages_of", "texts"]

_FOLDER = Path(__file__).parents[1] / "clients" / "programs"
PROGRAMS = {path.stem.removeprefix("with_"): path for path in sorted(_FOLDER.glob("with_*.py"))}
_PACKAGES = {
    "haystack": ("haystack-ai", "sentence-transformers-haystack"),
    "chroma": ("chromadb",),
    "langchain": ("langchain-huggingface", "langchain-chroma"),
    "llama_index": ("llama-index-core", "llama-index-embeddings-huggingface"),
    "qdrant": ("qdrant-client",),
    "sentence_transformers": ("sentence-transformers",),
}


def packages_of(client: str) -> tuple[str, ...]:
    """Returns the names under which pip knows the packages that a program uses."""
    return _PACKAGES.get(client, (client,))


def texts() -> list[str]:
    """Returns the texts that every program encodes."""
    frame: dict[str, Any] = {}
    exec((_FOLDER / "frame.py").read_text(), frame)
    return list(frame["TEXTS"])


def answers(client: str, model: Path, folder: Path) -> list[Any]:
    """Runs both steps of a program that does not import us, in forks of one that has imported sentence-transformers.

    Args:
        client: a key of `PROGRAMS`.
        model: a packed model.
        folder: where the program stores its texts, and opens them again.

    Returns:
        The vector of the first text, and the text that fits the question.

    Raises:
        RuntimeError: the program failed; the message is what it said.
    """
    done = shared().run(model, folder, program=PROGRAMS[client], env=_environment(), cwd=folder, timeout=300)
    return _answers(client, done)


def ask(client: str, step: str, model: Path, folder: Path) -> tuple[Any, float]:
    """Runs one step, "store" or "reopen", in a Python of its own; returns its answer, and its seconds with imports."""
    environment = _environment()
    environment.pop("PYTHONSAFEPATH", None)  # programs import the `frame` that lies beside them
    command = [sys.executable, str(PROGRAMS[client]), str(model), str(folder), step]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=folder)
    seconds = time.perf_counter() - began
    return _answers(client, done)[0], seconds


def _environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "ANONYMIZED_TELEMETRY": "False", "OMP_NUM_THREADS": "1"}


def _answers(client: str, done: "subprocess.CompletedProcess[str]") -> list[Any]:
    if done.returncode != 0:
        raise RuntimeError(f"{client}: {done.stderr[-3000:]}")
    return [json.loads(line)["answer"] for line in done.stdout.splitlines() if line.startswith('{"answer"')]
