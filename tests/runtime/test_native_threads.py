"""The native library's threads: they change no bit, serve several callers, and follow what the process may use."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support.instruction_sets import needs_library
from support.models import save_tiny_bert
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.pack import pack
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.runtime.native import threads as native_threads
from ternarize_cli.runtime.native.processors import quota

pytestmark = needs_library
SHAPES = [(1, 3), (3, 5), (1, 60), (1, 64), (5, 50), (40, 30)]
"""Texts × tokens: with few tokens threads share outputs, with more rows, with many texts whole texts."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("threads")
    convert(save_tiny_bert(folder / "source", hidden_size=64, intermediate_size=160), folder / "ternary")
    pack(folder / "ternary", folder / "packed")
    return folder / "packed"


@pytest.fixture
def model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A model on a machine of eight processors, as far as the library knows."""
    before = torch.get_num_threads()
    monkeypatch.setattr(native_threads, "processors", lambda: 8)
    yield load_encoder(folder, backend="native", device="cpu")[0].model
    torch.set_num_threads(before)


def outputs(model: Any) -> list[Tensor]:
    with torch.inference_mode():
        random = torch.Generator().manual_seed(0)
        batches = [torch.randint(5, 20, shape, generator=random) for shape in SHAPES]
        return [model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state for ids in batches]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_any_number_of_threads_gives_the_same_bits(model: Any) -> None:
    torch.set_num_threads(1)
    alone = outputs(model)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        for _ in range(10):
            assert equal(outputs(model), alone), threads


def test_callers_at_the_same_time_get_the_bits_that_each_gets_alone(model: Any) -> None:
    torch.set_num_threads(3)
    alone = outputs(model)
    with ThreadPoolExecutor(5) as callers:
        assert all(equal(made, alone) for made in callers.map(lambda _: outputs(model), range(40)))


V1, V2 = "1 0 0:1 {root} {point} rw - cgroup cgroup rw,cpuacct,cpu", "2 0 0:2 {root} {point} rw - cgroup2 cgroup2 rw"
"""Lines of /proc/self/mountinfo."""


@pytest.mark.parametrize(
    ("groups", "mount", "root", "files", "allowed"),
    [
        ("0::/", V2, "/", {"cpu.max": "200000 100000\n"}, 2),  # a container that sees only its own group
        ("0::/system.slice/a.service", V2, "/", {"system.slice/a.service/cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b", V2, "/", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "max 100000"}, 0.5),  # the outer one's counts
        ("0::/docker/12", V2, "/docker/12", {"cpu.max": "400000 100000"}, 4),
        ("0::/docker/12/a", V2, "/docker/12", {"cpu.max": "400000 100000", "a/cpu.max": "100000 100000"}, 1),
        ("0::/../other", V2, "/", {"cpu.max": "max 100000", "other/cpu.max": "10000 100000"}, None),
        ("0::/", V2, "/", {"cpu.max": "max 100000"}, None),
        ("0::/", V2, "/", {"cpu.max": "100000 0"}, None),
        ("4:cpuacct,cpu:/q\n1:name=systemd:/q", V1, "/", {"q/cpu.cfs_quota_us": "300000"}, 3),
        ("4:cpu:/q", V1, "/", {"q/cpu.cfs_quota_us": "-1"}, None),
        ("4:memory:/", V1, "/", {"cpu.cfs_quota_us": "100000"}, None),
        ("nothing of this kind\n\n", V2, "/", {"cpu.max": "words"}, None),
    ],
)
def test_a_quota_is_the_least_of_the_groups_that_a_process_is_in(
    groups: str, mount: str, root: str, files: dict[str, str], allowed: float | None, tmp_path: Path
) -> None:
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        if path.name == "cpu.cfs_quota_us":
            path.with_name("cpu.cfs_period_us").write_text("100000\n")
    assert quota(groups, "not a mount\n" + mount.format(root=root, point=tmp_path)) == allowed


def test_a_process_under_a_quota_of_one_processor_has_one_thread() -> None:
    group = Path("/sys/fs/cgroup/cpu") / f"ternarize-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as e:
        pytest.skip(f"control groups of version 1 can't be made here: {e}")
    code = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()))\n"
    code += "from ternarize_cli.runtime.native.threads import set_threads, threads\n"
    code += "set_threads(lambda: 2); print(threads())"
    command = [sys.executable, "-c", code, str(group / "tasks")]
    try:
        (group / "cpu.cfs_period_us").write_text("100000")
        (group / "cpu.cfs_quota_us").write_text("100000")
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        assert ended.stdout.strip() == "1"
    finally:
        group.rmdir()


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or (os.cpu_count() or 1) < 2, reason="two processors are needed"
)
def test_helping_threads_keep_the_processors_that_they_may_run_on(model: Any) -> None:
    """After a pause they wake on other processors than the caller's; this is over when they have come."""

    def allowed() -> dict[str, set[int]]:
        return {task.name: os.sched_getaffinity(int(task.name)) for task in Path("/proc/self/task").iterdir()}

    torch.set_num_threads(2)
    outputs(model)
    before = allowed()
    for _ in range(5):
        time.sleep(0.02)
        outputs(model)
    assert {name: kept for name, kept in allowed().items() if name in before} == before
    own = os.sched_getaffinity(0)
    for name in before:
        os.sched_setaffinity(int(name), {min(own)})
    try:
        time.sleep(0.02)
        outputs(model)
        assert set(map(frozenset, (allowed()[name] for name in before))) == {frozenset({min(own)})}
    finally:
        for name in allowed():
            os.sched_setaffinity(int(name), own)
