"""`ternarize bench` on a GPU: what is chosen and refused, both clocks, rivals, memory. The logic runs on the CPU."""

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from support.models import save_tiny_bert
from ternarize_cli import kernels
from ternarize_cli.bench import chosen_kernels, participants
from ternarize_cli.bench.candidates import BACKEND, BenchCandidate, relative_l2
from ternarize_cli.bench.model_bytes import Storage, storage
from ternarize_cli.bench.options import BenchOptions
from ternarize_cli.bench.paper import paper_tables
from ternarize_cli.bench.probe import Memory, device_weights
from ternarize_cli.bench.report import latency_table, machine_line, process_table
from ternarize_cli.bench.run import BenchReport, benchmark
from ternarize_cli.bench.shapes import ModelShape
from ternarize_cli.bench.subject import Subject
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.pack import pack
from ternarize_cli.engines import baselines, exports
from ternarize_cli.engines.baselines import forward_of
from ternarize_cli.engines.compiled import fixed_shapes
from ternarize_cli.engines.inputs import random_tokens
from ternarize_cli.engines.int8 import Int8Linear, replace_linears
from ternarize_cli.errors import InputError, UnavailableError
from ternarize_cli.kernels.bitblas import operators
from ternarize_cli.kernels.gpu import tuning
from ternarize_cli.measuring import energy, gpu
from ternarize_cli.measuring.nvml import Nvml
from ternarize_cli.measuring.timing import GridPoint, time_interleaved

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
CUDA_ONLY = (
    *("torch-tf32", "torch-int8", "torch-int8-compiled"),
    *("torch-fp16-compiled", "torch-fp16-autotuned", "torch-fp16-varlen", "torch-fp16-varlen-compiled"),
)
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    convert(save_tiny_bert(folder / "bert"), folder / "latent")
    pack(folder / "latent", folder / "packed")
    return folder / "packed"


@pytest.fixture(scope="module")
def report() -> BenchReport:
    plan = BenchOptions(
        backends=("reference",),
        rivals=("torch-fp32", "torch-fp16"),
        batches=(2, 1),
        tokens=(4,),
        repeats=2,
        warmup=0,
        memory=False,
    )
    found = benchmark(None, plan, shape=ModelShape("bert", TINY))
    return replace(found, rows=[replace(row, median_ms=2.0, device_ms=1.5) for row in found.rows])


# The device.


@without_gpu
@pytest.mark.parametrize("arguments", [(), ("--backend", "auto"), ("--backend", "reference"), ("--backend", "triton")])
def test_without_a_gpu_device_cuda_ends_with_4(run: Callable[..., object], arguments: tuple[str, ...]) -> None:
    result = run("bench", *arguments, "--device", "cuda")
    assert result.exit_code == 4
    assert "torch sees no" in result.stderr


@pytest.mark.parametrize(("device", "message"), [("warp", "no device 'warp'"), ("mps", "does not run on mps")])
def test_an_unknown_device_ends_with_2(run: Callable[..., object], device: str, message: str) -> None:
    result = run("bench", "--device", device)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_backend_of_the_other_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.require_backend("reference"), "device", "cuda")
    with pytest.raises(InputError, match="reference does not run on cpu"):
        benchmark(None, BenchOptions(backends=("reference",), device="cpu"))


def test_a_gpu_takes_backends_of_any_device_and_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(participants, "checked_device", lambda device: device)
    monkeypatch.setattr(kernels.require_backend("onednn"), "device", "cuda")
    for name in ("triton", "scaled_mm", "bitblas"):
        monkeypatch.setattr(kernels._REGISTRY[name], "missing", lambda: "it was taken out")
    chosen, device = participants.choose_backends((), "cuda:1")
    assert (chosen, device) == (["reference", "onednn"], "cuda:1")
    assert participants.choose_backends(("auto", "reference"), "cuda") == (
        ["auto", "reference"],
        "cuda",
    )
    assert participants.choose_backends(("reference", "onednn"), None)[1] == "cuda"


# Two clocks.


class Ticks:
    """A clock that counts its calls."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def begin(self) -> None:
        self.log.append("begin")

    def end(self) -> None:
        self.log.append("end")

    def seconds(self) -> float:
        return float(len(self.log))


def test_the_second_clock_brackets_timed_calls_only() -> None:
    ticks, watched = Ticks(), {}
    calls = {name: (lambda name=name: ticks.log.append(name)) for name in "ab"}
    time_interleaved(calls, repeats=2, seconds=60, warmup=1, watch=ticks, watched=watched)
    assert ticks.log == ["a", "b", *("begin a end begin b end begin b end begin a end".split())]
    assert watched == {"a": [5.0, 14.0], "b": [8.0, 11.0]}


def test_tables_show_both_clocks_and_say_what_they_are(report: BenchReport) -> None:
    wide = latency_table(report)
    assert wide.rows[0][1].endswith(") | 1.50")
    assert "CUDA events" in wide.caption
    rows = [replace(row, name=f"{row.name}-{i}", ran=f"{row.name}-{i}") for i in range(2) for row in report.rows]
    table = latency_table(replace(report, rows=rows))
    assert table.columns[2:5] == ["median", "spread", "on the GPU"]
    assert {row[4] for row in table.rows} == {"1.50", ""}
    on_cpu = latency_table(replace(report, rows=[replace(row, device_ms=None) for row in report.rows]))
    assert "|" not in on_cpu.rows[0][1] + on_cpu.caption


# Rivals.


@pytest.mark.parametrize("name", CUDA_ONLY)
def test_a_rival_of_gpus_refuses_the_cpu(name: str) -> None:
    with pytest.raises(UnavailableError, match=f"{name} runs on an NVIDIA GPU, not on cpu"):
        baselines.require_baseline(name)
    assert name not in baselines.available("cpu")[0]


@without_gpu
def test_a_gpu_without_tf32_says_so() -> None:
    assert "torch-tf32 can't run here: torch sees no NVIDIA GPU" in baselines.available("cuda")[1]


def test_defaults_are_those_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert participants.choose_rivals(None, "cpu", texts=False) == (["torch-fp32", "torch-bf16"], [])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    chosen, left_out = participants.choose_rivals(None, "cuda", texts=False)
    assert chosen == ["torch-fp32", "torch-fp16"]
    assert left_out == ["left out: torch-fp16-compiled can't run here: Triton finds no C compiler; install gcc"]


def test_attention_is_pytorchs_fused_one(tmp_path: Path) -> None:
    assert exports.transformer(save_tiny_bert(tmp_path)).config._attn_implementation == "sdpa"


def test_tf32_is_set_while_a_pass_runs_and_no_longer() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with gpu.tf32(True):
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
        with gpu.tf32(False):
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize("rows", [1, 16, 17, 40])
@pytest.mark.parametrize("bias", [True, False])
def test_an_int8_linear_is_close_to_its_linear(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 24, bias=bias)
    x = torch.randn(rows, 2, 64)
    with torch.inference_mode():
        y = Int8Linear(linear)(x)
        assert y.shape == (rows, 2, 24)
        assert relative_l2(y, linear(x)) < 0.03


def test_linears_of_odd_widths_stay_as_they_are() -> None:
    model = replace_linears(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 3), nn.Linear(3, 8)))
    assert [type(m) for m in model] == [Int8Linear, nn.Linear, nn.Linear]


@pytest.mark.slow
def test_every_shape_is_a_program_of_its_own(tmp_path: Path) -> None:
    import torch._dynamo
    from torch._dynamo.testing import CompileCounter

    folder = save_tiny_bert(tmp_path, num_hidden_layers=1)
    counter = CompileCounter()
    eager = forward_of(exports.transformer(folder, torch.float32))
    shapes = [
        GridPoint(batch, tokens) for batch in (1, 2, 3) for tokens in (3, 5, 7)
    ]  # more than torch's own limit of 8
    with torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=256), torch.inference_mode():
        compiled = fixed_shapes("x", exports.transformer(folder, torch.float32), torch.float32, backend=counter)
        for point in shapes:
            batch = random_tokens({"vocab_size": 40}, point, seed=0)
            assert relative_l2(compiled(*batch), eager(*batch)) < 1e-5
    assert counter.frame_count == len(shapes)
    torch._dynamo.reset()  # other models share the function that was compiled


# Memory.


def test_weights_on_the_device_are_counted_once(packed: Path) -> None:
    forward, _ = BenchCandidate("reference", BACKEND, packed, "cpu").load()
    model = forward.model
    expected = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    plain = device_weights(forward, "cpu")
    assert plain is not None
    assert plain >= expected
    model.kept_twice = [model.embeddings.word_embeddings.weight.detach()]
    assert device_weights(forward, "cpu") == plain
    model.made = {"codes": (torch.zeros(1000),)}
    assert device_weights(forward, "cpu") == plain + 4000
    assert device_weights(forward, "cuda") == 0
    assert device_weights(lambda ids, mask: ids, "cpu") is None


def test_memory_of_the_gpu_has_columns_where_there_is_one(report: BenchReport) -> None:
    on_gpu = Memory("triton", BACKEND, 1, 2, 3, 4, 5.0, 6.0, 7, 40_000_000, 50_000_000, None, 70_000_000)
    table = process_table(replace(report, memory=[on_gpu]))
    assert table.columns[-4:] == ["GPU: weights", "GPU: in use", "GPU: peak", "GPU: reserved"]
    assert table.rows[0][-4:] == ["40.0", "50.0", "", "70.0"]
    on_cpu = process_table(replace(report, memory=[Memory("native", BACKEND, 1, 2, 3, 4, 5.0, 6.0, 7)]))
    assert len(on_cpu.columns) == 6


@needs_gpu
def test_a_gpu_is_measured(run: Callable[..., object], packed: Path) -> None:
    quick = ("--batch", "1,2", "--tokens", "8", "--repeats", 3, "--against", "torch-fp32", "--against", "torch-tf32")
    result = run("bench", packed, "--device", "cuda", "--backend", "reference", *quick, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["device"] == "cuda"
    assert all(row["device_ms"] > 0 for row in found["rows"])
    assert all(0 < entry["device_weights_bytes"] <= entry["device_peak_bytes"] for entry in found["memory"])


# Energy, the driver, the paper's shares, and choices.


def test_joules_of_a_pass_are_those_between_two_steps_of_the_counter() -> None:
    now, passes = 0.0, 0

    def clock() -> float:
        nonlocal now
        now += 0.001  # reading takes a millisecond
        return now

    def run() -> None:
        nonlocal now, passes
        now += 0.01
        passes += 1

    def read() -> float:
        return 300.0 * (int(clock() / 0.05) * 0.05)  # 300 W, counted every 50 ms

    found = energy.per_pass(run, read, lambda: None, seconds=2.0, clock=clock)
    assert passes > 150
    assert found == pytest.approx(300 * 0.011, rel=0.05)


@pytest.mark.slow
@without_gpu
def test_without_a_counter_energy_is_left_out_and_said_so(run: Callable[..., object], packed: Path) -> None:
    quick = ("--batch", "1", "--tokens", "4", "--repeats", 1, "--no-memory", "--against", "none")
    result = run("bench", packed, "--backend", "reference", *quick, "--energy", "--json")
    assert result.exit_code == 0, result.stderr
    assert "energy is left out: it is measured on GPUs, not on cpu" in result.stderr
    assert json.loads(result.stdout)["rows"][0]["joules"] is None


NVML = """
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned n) { strncpy(text, "570.86.10", n); return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **card) { *card = (void *)1; return strcmp(uuid, "GPU-1"); }
int nvmlDeviceGetPowerManagementLimit(void *card, unsigned *milliwatts) { *milliwatts = 700000; return card ? 0 : 2; }
int nvmlDeviceGetMaxClockInfo(void *card, int kind, unsigned *mhz) { *mhz = 1980; return kind == 1 ? 0 : 3; }
int nvmlDeviceGetTotalEnergyConsumption(void *card, unsigned long long *mj) { *mj = 5000000000500ull; return 0; }
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
def test_the_driver_is_asked_through_its_own_library(tmp_path: Path) -> None:
    source, path = tmp_path / "nvml.c", tmp_path / "nvml.so"
    source.write_text(NVML)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", path, source], check=True)
    library = Nvml(str(path))
    assert library.driver() == "570.86.10"
    assert library.facts("GPU-1") == {"power_limit_w": 700.0, "max_sm_mhz": 1980, "max_memory_mhz": None}
    assert library.joules("GPU-1") == 5000000000.5
    assert library.joules("GPU-2") is None


def test_the_line_of_the_machine_names_the_card_and_what_is_known_of_it(report: BenchReport) -> None:
    known = {"name": "H", "capability": "sm_90", "memory_bytes": 1, "cuda": "12.8"}
    plain = machine_line(report.machine | {"gpus": [known]})
    assert "H (sm_90, CUDA 12.8)" in plain
    known |= {"driver": "570.1", "power_limit_w": 700.0, "max_sm_mhz": 1980, "max_memory_mhz": None}
    assert "H (sm_90, 700 W, up to 1980 MHz, driver 570.1, CUDA 12.8)" in machine_line(
        report.machine | {"gpus": [known]}
    )


def test_shares_of_fp32_are_given_in_both_readings_beside_the_best_rival(report: BenchReport) -> None:
    medians = {"reference": 3.7, "torch-fp32": 10.0, "torch-fp16": 5.0}
    rows = [replace(r, median_ms=medians[r.name], ratio=5.0 / medians[r.name]) for r in report.rows if r.batch == 1]
    forms = [
        Storage("torch-fp32", 1000, 1, False),
        Storage("packed", 90, 1, False),
        Storage("torch-fp16", 500, 1, True),
    ]
    (table,) = paper_tables(rows, forms, "cuda")
    assert table.rows == [
        ["1 x 4", "reference", "37.0%", "63.0%", "9.0%", "1.35x"],
        ["", "torch-fp32", "100.0%", "0.0%", "100.0%", "0.50x"],
        ["", "torch-fp16", "50.0%", "50.0%", "50.0%", "1.00x"],
    ]
    assert paper_tables(rows, forms, "cpu") == []
    assert paper_tables([row for row in rows if row.name != "torch-fp32"], forms, "cuda") == []


def test_energy_has_a_column_where_it_was_measured(report: BenchReport) -> None:
    table = latency_table(replace(report, rows=[replace(row, joules=0.1234) for row in report.rows]))
    assert table.columns[-2:] == ["joules", "speed-up"]
    assert table.rows[0][-2] == "0.123"


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")  # what is measured here does nothing
def test_a_report_says_which_kernels_a_backend_took(packed: Path) -> None:
    forward, _ = BenchCandidate("reference", BACKEND, packed, "cpu").load()
    assert chosen_kernels.choices_of(forward) == {}
    made = tuning.Choices()
    made.of("int8", (100, 32, 64), lambda rows: ["fast", "slow"], lambda way: None)
    forward.model.stack = [made]
    found = chosen_kernels.choices_of(forward)
    assert found == {"int8 128 x 32 -> 64": "fast"}
    (note,) = chosen_kernels.notes({"auto": found, "reference": {}}, {"auto": "triton", "reference": "reference"})
    assert note.startswith("auto (triton) took the fastest of several kernels")
    assert note.endswith("int8 128 x 32 -> 64: fast")
    many = {f"int8 {2**i} x 32 -> 64": "fast" for i in range(20)}
    (note,) = chosen_kernels.notes({"triton": many}, {"triton": "triton"})
    assert note.endswith("took the fastest of several kernels for each of 20 products: --json lists them under choices")


@pytest.mark.parametrize(
    ("built", "loaded", "words"),
    [
        ({}, {}, "none"),
        ({"a": (3.0, 28.0), "b": (2.0, 30.5)}, {}, "2 built in 28.5 s"),
        ({}, {"a": 0.2, "b": 0.05}, "2 found on disk, loaded and checked in 0.25 s"),
        ({"a": (1.0, 2.0)}, {"b": 0.5}, "1 built in 1.0 s, 1 found on disk, loaded and checked in 0.50 s"),
    ],
)
def test_what_bitblas_built_and_what_it_found(
    built: dict[str, tuple[float, float]], loaded: dict[str, float], words: str
) -> None:
    assert str(operators.Statistics(built, loaded)) == words


def test_whole_texts_are_not_given_to_rivals_of_forward_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnavailableError, match="torch-int8 runs forward passes, and --text encodes texts"):
        participants.choose_rivals(("torch-int8",), "cuda", texts=True)
    assert participants.choose_rivals(None, "cuda", texts=True)[0] == ["torch-fp32", "torch-fp16"]
    assert not {*CUDA_ONLY} & {*participants.choose_rivals(("all",), "cuda", texts=True)[0]}


def test_int8_is_computed_from_elements_and_rows(packed: Path) -> None:
    subject = Subject("tiny", packed, packed.parent / "bert", ())
    sizes = {form.name: form for form in storage(subject, ("torch-int8", "torch-fp16-compiled"), "cuda")}
    elements, rows = 2 * (4 * 32 * 32 + 2 * 32 * 64) + 32 * 32, 2 * (4 * 32 + 64 + 32) + 32
    assert sizes["torch-int8"].linear_bytes == elements + 4 * rows
    assert sizes["torch-int8"].bytes == sizes["torch-bf16"].bytes - elements + 4 * rows
    assert sizes["torch-fp16-compiled"].bytes == sizes["torch-bf16"].bytes
