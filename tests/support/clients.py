"""Runs the programs of tests/clients/programs, in each of which another library uses a packed model of ours."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["PROGRAMS", "Answer", "ask", "packages_of", "texts"]

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


@dataclass(frozen=True)
class Answer:
    """What a program printed.

    Attributes:
        value: the vector of the first text, or the text that fits the question.
        seconds: the time that its process took, imports included.
    """

    value: Any
    seconds: float


def ask(client: str, step: str, model: Path, folder: Path) -> Answer:
    """Runs a program in a process of its own, which does not import us.

    Args:
        client: a key of `PROGRAMS`.
        step: "store" or "reopen".
        model: a packed model.
        folder: where the program stores, or has stored, its texts.

    Raises:
        RuntimeError: the program failed; the message is what it said.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "ANONYMIZED_TELEMETRY": "False", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONSAFEPATH", None)  # programs import the `frame` that lies beside them
    command = [sys.executable, str(PROGRAMS[client]), step, str(model), str(folder)]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=folder)
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise RuntimeError(f"{client}, {step}: {done.stderr[-3000:]}")
    return Answer(json.loads(done.stdout.splitlines()[-1])["answer"], seconds)
