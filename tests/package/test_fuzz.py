"""Thousands of damaged model and index folders: no crash, no hang, no error that is not ours, no silently other answer.

A small run is part of the tests. A long one, with another seed:

    TERNARIZE_FUZZ=20000 TERNARIZE_FUZZ_SEED=7 pytest tests/package/test_fuzz.py

runs so many models and so many indexes, shared out over the kinds below. `mutations` does the damage, `fuzz_worker`
opens.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from support.families import stages
from support.heads import save_headed
from support.models import WORDS, add_dense, save_tiny_bert, save_tiny_clip
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.pack import pack
from ternarize_cli.index.build import IndexOptions, build_index

pytestmark = pytest.mark.slow

COUNT = int(os.environ.get("TERNARIZE_FUZZ", "60"))
SEED = os.environ.get("TERNARIZE_FUZZ_SEED", "0")
MODELS = {"packed": 0.6, "sealed": 0.2, "latent": 0.1, "full": 0.1}
INDEXES = {"index": 0.9, "signed": 0.1}
FACTORIES = ("Flat", "HNSW8", "IVF4,Flat", "IVF4,SQ8,RFlat", "PCA16,IVF4,PQ8x4")
_LARGEST = 2000


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model at every stage, and an index of every factory."""
    where = tmp_path_factory.mktemp("fuzz")
    save_tiny_bert(where / "full")
    convert(where / "full", where / "latent")
    pack(where / "latent", where / "packed")
    corpus = where / "corpus.txt"
    corpus.write_text("\n".join(f"{a} {b} {c}" for a in WORDS[:10] for b in WORDS[10:16] for c in WORDS[20:23]))
    for factory in FACTORIES:
        build_index(str(corpus), where / factory, model=str(where / "packed"), options=IndexOptions(factory=factory))
    return where


def faults(jobs: list[tuple[str, Path, int]]) -> list[str]:
    """Runs cases in processes of their own; returns those that ended in a fault, in words.

    Args:
        jobs: kind, folder and number of cases, of each.
    """
    found, ends = [], Counter[tuple[str, str]]()
    left = [[kind, str(folder), 0, count] for kind, folder, count in jobs if count]
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "TERNARIZE_CACHE": str(jobs[0][1].parent / "cache"),
    }
    while left:
        command = [sys.executable, "-P", "-m", "support.fuzz_worker", SEED]
        command += [str(argument) for job in left for argument in job]
        last: dict[str, Any] = {}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as worker:
            assert worker.stdout is not None
            assert worker.stderr is not None
            for line in worker.stdout:
                assert line.startswith("{"), f"something is printed to stdout: {line!r}, after {last}"
                last = json.loads(line)
                if "ended" in last:
                    ends[last["kind"], last["ended"]] += 1
                    if last["ended"] in ("different", "undesigned") or last["memory"] > _LARGEST:
                        found.append(str(last))
            said = worker.stderr.read()[-2000:]
        if worker.returncode == 0:
            break
        assert last, said
        how = {-14: "hangs"}.get(worker.returncode, f"ends with {worker.returncode}")
        found.append(f"the process {how}: {last} {said}")
        while left[0][:2] != [last["kind"], last["folder"]]:
            del left[0]
        left[0][2] = last["case"] + 1
    print(dict(ends))
    return found


def test_damaged_models_end_in_words(folders: Path) -> None:
    sources = {"sealed": "packed"}
    jobs = [(kind, folders / sources.get(kind, kind), round(COUNT * share)) for kind, share in MODELS.items()]
    found = faults(jobs)
    assert not found, "\n".join(found)


def test_damaged_models_of_every_kind_end_in_words_without_pytorch(folders: Path, tiny_vit: Path) -> None:
    sources = {
        "dense": save_tiny_bert(folders / "with-dense"),
        "vit": tiny_vit,
        "clip": save_tiny_clip(folders / "with-towers"),
        "reranker": save_headed(folders / "with-head"),
        "classifier": save_headed(folders / "with-labels", labels=3),
    }
    add_dense(sources["dense"])
    made = []
    for name, source in sources.items():
        (folders / f"runtime-{name}").mkdir()
        made.append(stages(source, folders / f"runtime-{name}")[2])
    found = faults([("runtime", folder, round(COUNT / len(made))) for folder in made])
    assert not found, "\n".join(found)


def test_damaged_indexes_end_in_words(folders: Path) -> None:
    each = {kind: max(1, round(COUNT * share / len(FACTORIES))) for kind, share in INDEXES.items()}
    jobs = [(kind, folders / factory, count) for factory in FACTORIES for kind, count in each.items()]
    found = faults(jobs)
    assert not found, "\n".join(found)
