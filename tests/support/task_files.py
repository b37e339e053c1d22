"""Writes files of tasks as `eval` reads them."""

import json
from pathlib import Path
from typing import Any

from support.models import WORDS


def write_pairs(path: Path, rows: list[tuple[str, str, float]]) -> Path:
    path.write_text("".join(f'"{a}",{b},{score!r}\n' for a, b, score in rows), encoding="utf-8")
    return path


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def write_retrieval(folder: Path, queries: list[dict[str, Any]] | None = None) -> Path:
    """Three documents; by default one query, q1, that d1 answers."""
    write_jsonl(folder / "corpus.jsonl", [{"_id": f"d{i}", "text": word} for i, word in enumerate(WORDS[:3], start=1)])
    write_jsonl(folder / "queries.jsonl", queries or [{"_id": "q1", "text": "the", "relevant": ["d1"]}])
    return folder


def write_task(folder: Path, content: str, name: str = "task.toml") -> Path:
    (folder / name).write_text(content, encoding="utf-8")
    return folder / name
