"""The cache of scores: what comes out is what went in, and never something else's."""

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.scores import make_score
from ternarize_cli.evaluation.samples import Samples, Sides
from ternarize_cli.evaluation.score_cache import ScoreCache, score_key

WHAT: dict[str, Any] = {
    "model": "a" * 64,
    "backend": "auto",
    "device": "cpu",
    "task": "pairs",
    "kind": "STS",
    "data": "b" * 64,
    "seed": 0,
}


def same(a: Any, b: Any) -> bool:
    def array(x: np.ndarray | None) -> object:
        return None if x is None else (x.dtype, x.shape, x.tobytes())

    arrays = [
        [
            array(s.vectors),
            *([array(s.sides.queries), array(s.sides.documents)] if s.sides else []),
            *([s.samples.statistic, array(s.samples.values), array(s.samples.gold)] if s.samples else []),
        ]
        for s in (a, b)
    ]
    return a == b and arrays[0] == arrays[1]


@pytest.mark.parametrize("kind", ["pairs", "queries", "images", "sides", "bare"])
def test_a_score_comes_back_bit_for_bit(tmp_path: Path, kind: str) -> None:
    score = {
        "pairs": make_score(),
        "queries": make_score(samples=Samples("mean", np.array([0.1 + 0.2, 1e-300, np.nextafter(1, 0)]))),
        "images": make_score(vectors=np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)),
        "sides": make_score(sides=Sides(np.eye(3, 4, dtype=np.float32), np.full((5, 4), 0.1, dtype=np.float32))),
        "bare": make_score(task='用户 "pairs"', samples=None, value=0.1 + 0.2),
    }[kind]
    assert ScoreCache(tmp_path / "new" / "folder").get("k") is None
    assert ScoreCache(tmp_path / "new" / "folder").put("k", score)
    assert same(ScoreCache(tmp_path / "new" / "folder").get("k"), score)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "c" * 64},
        {"backend": "native"},
        {"task": "pairs-2"},
        {"kind": "Retrieval"},
        {"data": "c" * 64},
        {"seed": 1},
        {"limit": 100},
        {"prompts": {"query": "query: "}},
        {"perturbation": "typos"},
    ],
)
def test_another_model_data_seed_or_setting_is_another_score(tmp_path: Path, change: dict[str, Any]) -> None:
    cache = ScoreCache(tmp_path)
    cache.put(score_key(**WHAT), make_score())
    assert cache.get(score_key(**WHAT)) is not None
    assert cache.get(score_key(**(WHAT | change))) is None


def test_other_versions_and_machines_are_other_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    from ternarize_cli.evaluation import score_cache

    before = score_key(**WHAT)
    code = score_cache._code()
    for name in code:
        with monkeypatch.context() as changed:
            changed.setattr(score_cache, "_code", lambda name=name: code | {name: "0"})
            assert score_key(**WHAT) != before
    monkeypatch.setattr("platform.machine", lambda: "vax")
    assert score_key(**WHAT) != before


def test_a_key_does_not_depend_on_the_order_of_its_parts() -> None:
    assert score_key(**WHAT, limit=1, prompts={"a": "", "b": ""}) == score_key(
        prompts={"b": "", "a": ""}, limit=1, **dict(reversed(WHAT.items()))
    )


def test_a_changed_model_never_gets_the_old_scores(tiny_bert: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    from ternarize_cli.storage.digests import content_hash

    model = shutil.copytree(tiny_bert, tmp_path / "model")
    cache, before = ScoreCache(tmp_path / "scores"), score_key(**(WHAT | {"model": content_hash(model)}))
    cache.put(before, make_score())
    weights = load_file(model / "model.safetensors")
    weights["embeddings.LayerNorm.bias"][0] += 1e-6
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert cache.get(score_key(**(WHAT | {"model": content_hash(model)}))) is None
    save_file(load_file(tiny_bert / "model.safetensors"), model / "model.safetensors", metadata={"format": "pt"})
    assert content_hash(model) == content_hash(tiny_bert)
    assert cache.get(score_key(**(WHAT | {"model": content_hash(model)}))) is not None


def test_a_damaged_file_counts_as_absent_and_is_written_anew(tmp_path: Path) -> None:
    cache, score = ScoreCache(tmp_path), make_score()
    cache.put("k", score)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    at = whole.index(score.samples.values.tobytes()) + 100
    flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    for broken in (b"", b"PK\3\4", whole[:100], whole[: len(whole) // 2], whole[:-1], flipped, b"{}" * 500):
        file.write_bytes(broken)
        assert cache.get("k") is None
        assert cache.put("k", score)
        assert same(cache.get("k"), score)
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]


def test_a_pickle_in_the_cache_is_not_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    np.savez(tmp_path / "k.npz", header=np.array([Trap()], dtype=object))
    assert ScoreCache(tmp_path).get("k") is None
    assert not (tmp_path / "sprung").exists()


def test_a_cache_that_can_not_be_written_lets_the_evaluation_go_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not ScoreCache(tmp_path / "file" / "scores").put("k", make_score())
    assert ScoreCache(tmp_path / "file" / "scores").get("k") is None


def _write_and_read(folder: Path, seed: int, both: Any) -> None:
    cache, score = ScoreCache(folder), make_score(seed, value=float(seed))
    both.wait()
    written = 0
    for _ in range(50):
        written += cache.put("k", score)
        assert intact(cache.get("k"))
    assert written


def intact(found: Any) -> bool:
    return same(found, make_score(int(found.value), value=found.value))


@pytest.mark.slow
def test_two_processes_that_write_at_once_do_not_break_it(tmp_path: Path) -> None:
    ScoreCache(tmp_path).put("k", make_score(0, value=0.0))
    context = multiprocessing.get_context("spawn")
    both = context.Barrier(2)
    writers = [context.Process(target=_write_and_read, args=(tmp_path, seed, both)) for seed in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert intact(ScoreCache(tmp_path).get("k"))


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TERNARIZE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert ScoreCache().folder == Path.home() / ".cache" / "ternarize" / "scores"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/xdg")
    assert ScoreCache().folder == Path("/var/xdg/ternarize/scores")
    monkeypatch.setenv("TERNARIZE_CACHE", "/srv/ternarize")
    assert ScoreCache().folder == Path("/srv/ternarize/scores")
