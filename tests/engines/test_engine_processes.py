"""Engines in processes of their own: what they compute, how they are timed, and how they end."""

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch

from ternarize_cli.engines import openvino, openvino_runtime
from ternarize_cli.errors import TernarizeError
from ternarize_cli.measuring import machine, timing
from ternarize_cli.measuring.child import Child

needs_openvino = pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxscript", "openvino"))), reason="the extra `rivals` is not installed"
)


def test_results_come_back_and_what_a_library_prints_does_not(capfd: pytest.CaptureFixture[str]) -> None:
    child = Child("X")
    assert child.call(os.getpid) != os.getpid()
    assert child.call(print, "a reply that is none") is None
    assert child.call(os.system, "echo another one") == 0
    assert child.call(divmod, 7, 2) == (3, 1)
    assert capfd.readouterr() == ("", "")


def test_an_exception_is_told_and_the_next_call_works() -> None:
    child = Child("X")
    with pytest.raises(TernarizeError, match=r"^X failed: .*No such file or directory: '/none'$"):
        child.call(os.listdir, "/none")
    with pytest.raises(TernarizeError, match=r"^X failed: stopped$"):
        child.call(sys.exit, "stopped")
    with pytest.raises(TernarizeError, match=r"^X failed: cannot pickle"):
        child.call(memoryview, b"")
    assert child.call(len, "abc") == 3


def test_calls_begin_before_the_results_of_others_are_waited_for() -> None:
    child = Child("X")
    waits = [child.begin(divmod, 100, divisor) for divisor in (7, 0, 9)]
    assert waits[0]() == (14, 2)
    with pytest.raises(TernarizeError, match=r"^X failed: "):
        waits[1]()
    assert waits[2]() == (11, 1)


def test_a_long_result_that_nobody_reads_does_not_stop_the_next_call(tmp_path: Path) -> None:
    child = Child("X")
    child.begin(bytes, 10_000_000)
    child.begin(os.mkdir, tmp_path / "made")
    for _ in range(600):
        if (tmp_path / "made").exists():
            return
        time.sleep(0.1)
    raise AssertionError("the second call did not begin")


def test_results_that_nobody_waited_for_are_given_up() -> None:
    child = Child("X")
    first, _ = child.begin(len, "ab"), child.begin(len, "abc")
    assert child.call(len, "abcd") == 4
    with pytest.raises(RuntimeError, match="given up"):
        first()
    assert child.call(len, "abcde") == 5


@pytest.mark.parametrize(
    ("call", "fate"),
    [
        ((signal.raise_signal, signal.SIGKILL), "signal 9"),
        ((os._exit, 3), "code 3"),
        ((exec, "import os; os.write(2, b'no room\\n\\n'); os._exit(1)"), "no room"),
    ],
)
def test_an_end_in_the_middle_of_a_call_is_told(call: tuple[object, ...], fate: str) -> None:
    child = Child("X")
    for _ in range(2):
        with pytest.raises(TernarizeError, match=f"^the process of X ended: {fate}$") as caught:
            child.call(*call)
        assert "memory may have been short" in str(caught.value.hint)


def test_an_interrupted_call_ends_the_process() -> None:
    child = Child("X")
    pid = child.call(os.getpid)

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            child.call(time.sleep, 60)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not psutil.pid_exists(pid)
    with pytest.raises(TernarizeError, match="the process of X ended: it was interrupted"):
        child.call(os.getpid)


def test_the_process_ends_with_its_child() -> None:
    child = Child("X")
    pid = child.call(os.getpid)
    del child
    assert not psutil.pid_exists(pid)


@pytest.mark.slow
def test_the_process_ends_with_a_parent_that_is_killed_in_the_middle_of_a_call() -> None:
    program = (
        "import os, threading, time; from ternarize_cli.measuring.child import Child\n"
        "child = Child('X'); print(child.call(os.getpid), flush=True); child.call(time.sleep, 60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        process = psutil.Process(int(parent.stdout.readline()))
        assert process.ppid() == parent.pid
        parent.kill()
    assert psutil.wait_procs([process], timeout=30)[1] == []


def test_the_way_to_a_process_is_not_timed() -> None:
    child, data = Child("X"), bytes(30_000_000)
    wall = time.perf_counter()
    times = timing.time_interleaved(
        {"sleep": lambda: child.call(time.sleep, 0.05), "large": lambda: child.call(len, data)},
        repeats=3,
        seconds=9.0,
        warmup=0,
    )
    wall = time.perf_counter() - wall
    assert min(times["sleep"]) >= 0.05
    assert max(times["large"]) < 1e-3  # a length is known at once; to send the data takes longer
    assert sum(times["large"]) < 0.1 * (wall - sum(times["sleep"]))


@pytest.mark.slow
def test_cpu_seconds_of_a_running_process_are_not_those_of_others() -> None:
    child = Child("X")
    before = machine._read_clock().own
    child.call(exec, "import time\nwhile time.process_time() < 0.5: pass")
    assert machine._read_clock().own - before > 0.4
    assert child.call(os.getpid) not in {entry["pid"] for entry in machine.top_processes(0.01, count=10_000)}


@pytest.mark.slow
@needs_openvino
def test_openvino_has_the_threads_that_torch_has(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "relu.onnx")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            forward = openvino.OpenVinoForward(tmp_path / "relu.onnx")
            assert forward.threads == threads
            assert forward(torch.tensor([[-1.0, 2.0]])).tolist() == [[0.0, 2.0]]
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@needs_openvino
def test_openvino_starts_no_process_that_sends_usage_reports() -> None:
    child = Child("OpenVINO")
    process = psutil.Process(child.call(os.getpid))
    child.call(openvino_runtime.runs_bf16)
    assert process.children(recursive=True) == []


@pytest.mark.slow
@needs_openvino
def test_openvino_gives_the_vectors_that_it_gives_in_the_present_process(tiny_bert: Path) -> None:
    program = (
        "import sys; from pathlib import Path; import torch; from ternarize_cli.engines import baselines\n"
        "from ternarize_cli.engines.inputs import random_batch; from ternarize_cli.measuring.timing import GridPoint\n"
        "torch.set_num_threads(1)\n"
        "folder, rival = Path(sys.argv[1]), baselines.require_baseline('openvino-fp32')\n"
        "path = rival.prepare(folder)\n"
        "apart = rival.load(path, 'cpu'); assert 'openvino' not in sys.modules\n"
        "here = rival.alone(path, 'cpu'); assert 'openvino' in sys.modules\n"
        "for point in (GridPoint(1, 5), GridPoint(3, 16)):\n"
        "    batch = random_batch(folder, point, seed=0)\n"
        "    a, b = apart(*batch), here(*batch); assert torch.equal(a, b) and a.abs().sum() > 1\n"
        "    a += 1  # it is the caller's own"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tiny_bert)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_modules_in_the_working_folder_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit('a stranger is here')")
    monkeypatch.chdir(tmp_path)
    assert Child("X").call(os.getcwd) == str(tmp_path)


def test_a_process_that_does_not_end_is_killed() -> None:
    child = Child("X")
    pid = child.call(os.getpid)
    psutil.Process(pid).suspend()
    begun = time.monotonic()
    child._close()
    assert time.monotonic() - begun < 20
    assert not psutil.pid_exists(pid)
