"""`ternarize encode --engine ray`: the same bytes as without, with a worker killed, and what is refused."""

import contextlib
import json
import sys
import threading
import time

import numpy as np
import psutil
import pytest

from support.models import WORDS
from ternarize_cli.errors import InputError
from ternarize_cli.vectors.encode import EncoderOptions
from ternarize_cli.vectors.ray_engine import encode_with_ray

ray = pytest.importorskip("ray", reason="the extra ray is not installed")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Ray's local clusters on Windows are not tried")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    draw = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("ray") / "corpus.jsonl"
    lines = ({"_id": f"d{i}", "text": " ".join(draw.choice(WORDS, size=8))} for i in range(4000))
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def _contents(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("0*.*") if p.suffix in (".parquet", ".json")}


def _kill_a_worker(folder, killed, over):
    """Kills a process of an actor that this process started, directly or not, once a shard is written."""
    while not over.is_set():
        if len(list(folder.glob("*/*.json"))) > 3:
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if any("MapWorker" in word for word in process.cmdline()):
                        process.kill()
                        killed.append(process.pid)
                        return
        time.sleep(0.01)


@pytest.mark.nightly
def test_two_workers_write_what_one_process_writes_though_one_is_killed(run, tiny_bert, corpus, tmp_path):
    options = ["--shard-size", 20, "--threads", 1, "--json"]
    assert run("encode", tiny_bert, corpus, "--shards", "-o", tmp_path / "one", *options).exit_code == 0
    killed: list[int] = []
    over = threading.Event()
    killer = threading.Thread(target=_kill_a_worker, args=(tmp_path / "two", killed, over))
    killer.start()
    arguments = [tiny_bert, corpus, "--shards", "-o", tmp_path / "two", "--engine", "ray", "--workers", 2]
    result = run("encode", *arguments, *options)
    over.set()
    killer.join()
    assert result.exit_code == 0, result.stderr
    assert killed
    report = json.loads(result.stdout)
    assert report["rows"] + 20 * report["reused"] == 4000
    assert _contents(tmp_path / "one") == _contents(tmp_path / "two")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "spark"], "there is no --engine"),
        (["--engine", "ray", "--shard", "1/2"], "gives out the shards itself"),
        (["--workers", 2], "are of Ray"),
        (["--engine", "ray", "--ray-address", "nowhere:1"], "there is no Ray cluster at nowhere:1"),
    ],
)
def test_wrong_options(run, tiny_bert, corpus, tmp_path, options, message):
    result = run("encode", tiny_bert, corpus, "--shards", "-o", tmp_path / "v", *options)
    assert result.exit_code in (2, 4)
    assert message in result.stderr


def test_more_workers_than_gpus_do_not_wait_for_ever(tmp_path):
    settings = {"encoder": EncoderOptions(threads=1), "workers": 99, "gpus": 1.0}
    with pytest.raises(InputError, match="99 workers need 99 GPUs, and this machine has"):
        encode_with_ray(str(tmp_path / "corpus.jsonl"), tmp_path / "v", None, **settings)
