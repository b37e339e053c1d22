"""`ternarize bench`: what is measured, in which order, and what is refused. No test looks at a time."""

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from ternarize_cli import kernels
from ternarize_cli.bench import run
from ternarize_cli.bench.candidates import BACKEND, RIVAL, BenchCandidate, relative_l2
from ternarize_cli.bench.model_bytes import storage
from ternarize_cli.bench.options import BenchOptions
from ternarize_cli.bench.probe import Memory, peak_bytes, probe
from ternarize_cli.bench.report import latency_table, machine_line, size_table, tables
from ternarize_cli.bench.run import BenchReport, benchmark
from ternarize_cli.bench.shapes import ModelShape
from ternarize_cli.bench.subject import Subject, max_tokens, prepare
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.pack import pack
from ternarize_cli.encoders import checkpoint
from ternarize_cli.engines import baselines
from ternarize_cli.engines.inputs import random_tokens
from ternarize_cli.errors import InputError, TernarizeError
from ternarize_cli.measuring import machine
from ternarize_cli.measuring.timing import MIN_ROUNDS, PAUSE, GridPoint, pause_on, summarise, time_interleaved, turns

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
QUICK = ("--batch", "1,2", "--tokens", "4,8", "--repeats", 2, "--warmup", 0, "--no-memory")
ROW_KEYS = {
    "name", "kind", "ran", "batch", "tokens", "median_ms", "p10_ms", "p90_ms", "tokens_per_s", "repeats", "ratio",
    "best_rival", "relative_l2", "padded_tokens_per_s", "inputs_per_s", "lengths", "image", "encoded", "cosine",
    "device_ms", "joules",
}  # fmt: skip


@pytest.fixture(scope="module")
def latent(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "latent"
    convert(tiny_bert, folder)
    return folder


@pytest.fixture(scope="module")
def packed(latent: Path) -> Path:
    folder = latent.parent / "packed"
    pack(latent, folder)
    return folder


@pytest.fixture(scope="module")
def report() -> BenchReport:
    plan = BenchOptions(backends=("reference",), batches=(2, 1), tokens=(4,), repeats=2, warmup=0, memory=False)
    return benchmark(None, plan, shape=ModelShape("bert", TINY))


# The order and the arithmetic of timing.


def test_each_candidate_takes_each_place_of_a_round_equally_often() -> None:
    rounds = [turns("abc", i) for i in range(6)]
    assert rounds[:4] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]
    assert all(sorted(place) == sorted("aabbcc") for place in zip(*rounds, strict=True))


def test_calls_are_interleaved_and_warm_up_is_not_counted() -> None:
    log: list[str] = []
    calls = {name: (lambda name=name: log.append(name)) for name in "ab"}
    times = time_interleaved(calls, repeats=3, seconds=60, warmup=1)
    assert "".join(log) == "ab" + "ab" + "ba" + "ab"
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}


def test_threads_of_the_candidate_before_have_time_to_go_to_sleep() -> None:
    ended, pauses = time.perf_counter(), []

    def work() -> None:
        nonlocal ended
        pauses.append(time.perf_counter() - ended)
        ended = time.perf_counter()

    time_interleaved({"a": work, "b": work}, repeats=3, seconds=60, warmup=0)
    assert len(pauses) == 6
    assert min(pauses) >= PAUSE
    assert pause_on("cuda:0") == 0


@pytest.mark.parametrize(
    ("repeats", "seconds", "rounds"), [(50, 10.0, 5), (50, 0.0, MIN_ROUNDS), (2, 0.0, 2), (4, 99.0, 4)]
)
def test_the_time_budget_cuts_rounds_but_leaves_three(repeats: int, seconds: float, rounds: int) -> None:
    now = 0.0

    def work() -> None:
        nonlocal now
        now += 1.0

    times = time_interleaved({"a": work, "b": work}, repeats=repeats, seconds=seconds, warmup=0, clock=lambda: now)
    assert times == {"a": [1.0] * rounds, "b": [1.0] * rounds}


def test_a_summary_has_median_and_percentiles_in_milliseconds() -> None:
    timing = summarise([0.001 * i for i in range(11)])
    assert (timing.p10_ms, timing.median_ms, timing.p90_ms, timing.repeats) == (1.0, 5.0, 9.0, 11)


def test_points_are_all_pairs_once() -> None:
    assert BenchOptions(batches=(8, 1, 8), tokens=(16,)).points() == [GridPoint(1, 16), GridPoint(8, 16)]


# Whether the machine was busy.


def test_others_share_is_what_the_system_used_beyond_this_process() -> None:
    assert machine.others_percent(system_seconds=3.0, own_seconds=2.0, wall_seconds=2.0) == 50.0
    assert machine.others_percent(system_seconds=1.9, own_seconds=2.0, wall_seconds=2.0) == 0.0


def test_busy_is_more_than_a_quarter_of_a_core_before_or_during() -> None:
    assert not machine.is_busy(25.0, 0.0)
    assert machine.is_busy(25.1, 0.0)
    assert machine.is_busy(0.0, 198.0)


@pytest.mark.slow
@pytest.mark.parametrize("busy", [False, True])
def test_a_busy_machine_is_in_the_result_and_warned_of(
    run: Callable[..., object], packed: Path, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    monkeypatch.setattr(machine, "is_busy", lambda *percents: busy)
    result = run("bench", packed, "--backend", "reference", *QUICK, "--json", "--quiet")
    assert json.loads(result.stdout)["busy"] is busy
    assert ("warning: the machine was busy" in result.stderr) is busy


def test_isa_flags_are_those_that_matter_on_x86_and_arm() -> None:
    assert machine.isa_flags("model name\t: X\nflags\t\t: fpu amx_int8 avx2 avx512_vnni sse\n") == [
        "avx2",
        "avx512_vnni",
        "amx_int8",
    ]
    assert machine.isa_flags("Features\t: fp asimd asimddp\n") == ["neon", "asimddp"]
    assert machine.isa_flags("") == []


# What is fed and how outputs are compared.


def test_random_tokens_fill_the_vocabulary_but_never_pad() -> None:
    ids, mask = random_tokens({"vocab_size": 5, "pad_token_id": 2}, GridPoint(10, 30), seed=0)
    assert set(ids.flatten().tolist()) == {0, 1, 3, 4}
    assert ids.shape == mask.shape == (10, 30)
    assert mask.all()
    assert torch.equal(ids, random_tokens({"vocab_size": 5, "pad_token_id": 2}, GridPoint(10, 30), seed=0)[0])


def test_relative_l2_is_that_of_the_worst_sentence() -> None:
    reference = torch.ones(3, 2, 2)
    hidden = reference.clone()
    hidden[1] *= 1.5
    assert relative_l2(reference, reference) == 0.0
    assert relative_l2(hidden, reference) == pytest.approx(0.5)


def test_roberta_takes_fewer_tokens_than_it_has_positions() -> None:
    assert max_tokens({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}) == 512
    assert max_tokens({"model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0}) == 512
    assert max_tokens({"model_type": "t5"}) is None


# The subject in its two forms.


def test_a_full_precision_model_is_packed_and_its_rivals_run_itself(tiny_bert: Path) -> None:
    with prepare(str(tiny_bert)) as subject:
        assert checkpoint.stage(subject.packed) == "packed"
        assert subject.dense == tiny_bert
        assert any("converted and packed" in note for note in subject.notes)
        temporary = subject.packed
    assert not temporary.exists()


def test_rivals_of_an_artifact_run_its_codes_at_full_width(latent: Path, packed: Path) -> None:
    from transformers import AutoModel

    for folder in (latent, packed):
        with prepare(str(folder)) as subject:
            assert checkpoint.stage(subject.packed) == "packed"
            assert checkpoint.stage(subject.dense) is None
            assert any("full width" in note for note in subject.notes)
            twin = AutoModel.from_pretrained(subject.dense)
            candidate = BenchCandidate("reference", BACKEND, subject.packed, "cpu")
            ids, mask = random_tokens(checkpoint.read_config(packed), GridPoint(2, 8), seed=0)
            with torch.inference_mode():
                hidden = twin(input_ids=ids, attention_mask=mask).last_hidden_state
                # They differ by the rounding of activations to int8 only.
                assert relative_l2(hidden, candidate.load()[0](ids, mask)) < 0.05
        row = twin.encoder.layer[0].intermediate.dense.weight[0]
        assert twin.dtype == torch.float32
        assert len(set(row.abs().tolist()) - {0.0}) == 1


@pytest.mark.slow
def test_a_pickled_model_is_refused_unless_allowed(run: Callable[..., object], tiny_bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = tmp_path / "pickled"
    shutil.copytree(tiny_bert, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(tiny_bert / "model.safetensors"), folder / "pytorch_model.bin")
    refused = run("bench", folder, "--backend", "reference", *QUICK)
    assert refused.exit_code == 2
    assert "--allow-pickle" in refused.stderr
    allowed = run("bench", folder, "--backend", "reference", *QUICK, "--allow-pickle", "--json")
    assert allowed.exit_code == 0, allowed.stderr
    assert len(json.loads(allowed.stdout)["rows"]) == 12


def test_storage_counts_files_and_linears(tiny_bert: Path, packed: Path) -> None:
    fp32, bf16, small = storage(Subject("tiny", packed, tiny_bert, ()))
    assert (fp32.name, bf16.name, small.name) == ("torch-fp32", "torch-bf16", "packed")
    assert fp32.bytes == (tiny_bert / "model.safetensors").stat().st_size
    assert small.bytes == (packed / "model.safetensors").stat().st_size
    # Two layers with four 32→32, one 32→64 and one 64→32, and a pooler 32→32; two bytes of scale a row.
    weights, rows = 2 * (4 * 32 * 32 + 2 * 32 * 64) + 32 * 32, 2 * (4 * 32 + 64 + 32) + 32
    assert (fp32.linear_bytes, bf16.linear_bytes, small.linear_bytes) == (
        4 * weights,
        2 * weights,
        weights // 4 + 2 * rows,
    )
    assert (fp32.computed, bf16.computed, small.computed) == (False, True, False)
    assert 0 < 2 * bf16.bytes < fp32.bytes  # the file has a header, too


def test_a_half_precision_source_has_its_fp32_bytes_computed(tiny_bert: Path, packed: Path, tmp_path: Path) -> None:
    from transformers import BertModel

    BertModel.from_pretrained(tiny_bert, dtype=torch.float16).save_pretrained(tmp_path)
    fp32, _, _ = storage(Subject("half", packed, tmp_path, ()))
    assert fp32.computed
    assert fp32.bytes == storage(Subject("full", packed, tiny_bert, ()))[1].bytes * 2


# The report.


def test_without_a_model_a_random_bert_is_measured_and_said_so() -> None:
    said: list[str] = []
    plan = BenchOptions(
        backends=("reference",), rivals=(), batches=(1,), tokens=(4,), repeats=1, warmup=0, memory=False
    )
    report = benchmark(None, plan, shape=ModelShape("bert", TINY), say=said.append)
    assert any("no MODEL was given" in text and "'vocab_size': 50" in text for text in said)
    assert [(row.name, row.ratio, row.best_rival) for row in report.rows] == [("reference", None, None)]
    assert "speed-up" not in latency_table(report).columns


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [("--levels", "int4"), ("--levels", "int2"), ("--levels", "binary"), ("--granularity", "group:8")]
)
def test_backends_that_can_not_run_the_model_are_left_out_unless_named(run, tiny_bert, tmp_path, how) -> None:
    assert run("convert", tiny_bert, "-o", tmp_path / "t", *how).exit_code == 0
    assert run("pack", tmp_path / "t", "-o", tmp_path / "p").exit_code == 0
    grid = ("--batch", 1, "--tokens", 8, "--repeats", 1, "--against", "none", "--no-memory", "--json")
    for model in (tmp_path / "t", tmp_path / "p"):
        result = run("bench", model, *grid)
        assert result.exit_code == 0, result.output
        names = {row["name"] for row in json.loads(result.stdout)["rows"]}
        assert "reference" in names
    if how[1] == "int2" and any(b.name == "native" and b.available for b in kernels.describe()):
        result = run("bench", tmp_path / "p", *grid, "--backend", "native")
        assert result.exit_code == 4
        assert "can't run this model: its levels are int2" in result.stderr


def test_none_is_no_rival(run: Callable[..., object], packed: Path) -> None:
    both = run("bench", packed, "--against", "none", "--against", "torch-fp32", *QUICK)
    assert both.exit_code == 2
    assert "--against none can't be combined with rivals" in both.stderr
    result = run("bench", packed, "--backend", "reference", "--against", "none", *QUICK, "--json")
    assert {row["name"] for row in json.loads(result.stdout)["rows"]} == {"reference"}


def test_rows_hold_every_candidate_at_every_point(report: BenchReport) -> None:
    assert [(row.batch, row.tokens, row.name, row.kind) for row in report.rows] == [
        (batch, 4, name, kind)
        for batch in (1, 2)
        for name, kind in (("reference", BACKEND), ("torch-fp32", RIVAL), ("torch-bf16", RIVAL))
    ]
    for row in report.rows:
        assert 0 < row.p10_ms <= row.median_ms <= row.p90_ms
        assert row.repeats == 2
        assert row.tokens_per_s == pytest.approx(1000 * row.batch * row.tokens / row.median_ms, rel=1e-2)
        exact = row.name in ("reference", "torch-fp32")  # each is what others are compared with
        assert row.relative_l2 == 0.0 if exact else 0.0 < row.relative_l2 < 0.05


def test_the_ratio_is_against_the_fastest_rival(report: BenchReport) -> None:
    for start in (0, 3):
        backend, *rivals = report.rows[start : start + 3]
        fastest = min(rivals, key=lambda row: row.median_ms)
        assert {row.best_rival for row in (backend, *rivals)} == {fastest.name}
        assert fastest.ratio == 1.0
        assert backend.ratio == pytest.approx(fastest.median_ms / backend.median_ms, rel=1e-2)


def test_the_machine_is_described(report: BenchReport) -> None:
    found = report.machine
    assert {"cpu", "isa", "cores", "memory_bytes", "os", "threads", "versions", "load_before", "load_after"} <= set(
        found
    )
    assert {"others_percent_before", "others_percent_during", "top_processes"} <= set(found)
    assert f"torch {version('torch')}" in machine_line(found)


def test_tables_have_a_column_per_candidate_and_a_row_per_point(report: BenchReport) -> None:
    table = latency_table(report)
    assert table.columns == ["batch x tokens", "reference", "torch-fp32", "torch-bf16", "tokens/s", "speed-up"]
    assert [row[0] for row in table.rows] == ["1 x 4", "2 x 4"]
    assert tables(report) == [table, size_table(report)]
    assert [row[0] for row in size_table(report).rows] == ["reference", "torch-fp32", "torch-bf16"]
    assert "computed, not a file: torch-bf16" in size_table(report).caption


@pytest.mark.slow
def test_threads_are_set_for_the_run_and_restored(packed: Path) -> None:
    before = torch.get_num_threads()
    plan = BenchOptions(
        backends=("reference",),
        rivals=(),
        batches=(1,),
        tokens=(4,),
        repeats=1,
        warmup=0,
        threads=before + 1,
        memory=False,
    )
    assert benchmark(str(packed), plan).machine["threads"] == before + 1
    assert torch.get_num_threads() == before


# Memory and start.


@pytest.mark.slow
def test_memory_and_start_are_measured_in_a_process_of_its_own(packed: Path) -> None:
    memory = probe(BenchCandidate("reference", BACKEND, packed, "cpu"), GridPoint(1, 4), threads=1, seed=0)
    assert (memory.name, memory.kind) == ("reference", BACKEND)
    assert 50e6 < memory.imports_bytes <= memory.peak_bytes
    assert memory.resident_bytes <= memory.peak_bytes
    assert memory.model_bytes == memory.peak_bytes - memory.imports_bytes
    assert 0 <= memory.loaded_bytes <= memory.model_bytes
    assert 0 < memory.cold_start_ms < 60_000
    assert 0 < memory.load_ms < 60_000


def test_a_peak_is_not_below_what_was_held() -> None:
    held = bytearray(64_000_000)
    assert peak_bytes() > len(held)


def test_a_memory_process_that_dies_is_an_error_that_names_the_candidate(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(TernarizeError, match="memory of onednn failed") as caught:
        probe(BenchCandidate("onednn", BACKEND, packed, "cpu"), GridPoint(1, 4), threads=1, seed=0)
    assert caught.value.hint is not None
    assert "--no-memory" in caught.value.hint


def test_memory_and_start_have_a_table_where_they_were_measured(report: BenchReport) -> None:
    sizes = {"imports_bytes": 100, "resident_bytes": 5, "peak_bytes": 3_100_000, "loaded_bytes": 2_000_000}
    times = {"load_ms": 1234.5, "cold_start_ms": 98.76}
    memory = [Memory(name, "", **sizes, **times, model_bytes=3_000_000) for name in ("reference", "torch-fp32")]
    *_, table = tables(replace(report, memory=memory))
    assert table.columns == ["", "load", "first pass", "loaded", "peak", "peak, all of the process"]
    assert [row[1:] for row in table.rows] == [["1.2 s", "98.8 ms", "2.0", "3.0", "3.1"]] * 2


# The command.


@pytest.mark.slow
def test_bench_prints_one_json_object(run: Callable[..., object], packed: Path) -> None:
    result = run("bench", packed, *QUICK, "--seed", 3, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert {"schema_version", "model", "rows", "storage", "memory", "machine", "busy"} <= set(found)
    available = [info.name for info in kernels.describe() if info.available and info.device in ("any", "cpu")]
    assert [row["name"] for row in found["rows"][: len(available) + 2]] == [*available, "torch-fp32", "torch-bf16"]
    assert all(set(row) == ROW_KEYS for row in found["rows"])
    assert all(row["relative_l2"] <= 2e-2 for row in found["rows"] if row["kind"] == BACKEND)
    assert [set(form) for form in found["storage"]] == [{"name", "bytes", "linear_bytes", "computed"}] * 3


@pytest.mark.slow
def test_bench_prints_tables_and_the_machine(run: Callable[..., object], tiny_bert: Path) -> None:
    result = run("bench", tiny_bert, "--backend", "reference", "--against", "torch-fp32", *QUICK)
    assert result.exit_code == 0, result.stderr
    for text in ("batch x tokens", "2 x 8", "torch-fp32", "speed-up", "on disk", "; ternarize "):
        assert text in result.stdout
    assert "torch-bf16" not in result.stdout
    assert "converted and packed" in result.stderr


@pytest.mark.slow
def test_auto_says_which_backend_ran(run: Callable[..., object], packed: Path) -> None:
    result = run("bench", packed, "--backend", "auto", *QUICK, "--json")
    row = json.loads(result.stdout)["rows"][0]
    assert row["name"] == "auto"
    assert row["ran"] in kernels.backend_names()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "warp"), "no backend 'warp'"),
        (("--against", "onnx-int3"), "no rival 'onnx-int3'"),
        (("--batch", "1,x"), "--batch 1,x: 'x' is no positive number"),
        (("--tokens", "0"), "--tokens 0: '0' is no positive number"),
        (("--batch", ""), "'' is no positive number"),
    ],
)
def test_a_wrong_name_or_number_ends_with_2_before_any_model_is_built(
    run: Callable[..., object], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    forbid_models(monkeypatch)
    result = run("bench", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not result.stdout


def test_an_unknown_rival_lists_those_known() -> None:
    with pytest.raises(InputError) as caught:
        baselines.require_baseline("x")
    assert caught.value.hint == "--against one of: " + ", ".join(
        [*baselines.baseline_names(same_vectors=True), "all", "none"]
    )
    assert {"torch-fp32", "torch-bf16", "torch-fp16", "onnx-int8", "openvino-int8"} <= set(baselines.baseline_names())


def test_a_backend_that_cannot_run_ends_with_4_before_any_model_is_built(
    run: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_models(monkeypatch)
    monkeypatch.setattr(kernels.require_backend("onednn"), "missing", lambda: "this CPU has no AVX2")
    result = run("bench", "--backend", "onednn")
    assert result.exit_code == 4
    assert "onednn can't run here: this CPU has no AVX2" in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_bitblas_without_a_gpu_ends_with_4_and_says_what_is_missing(
    run: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_models(monkeypatch)
    result = run("bench", "--backend", "bitblas")
    assert result.exit_code == 4
    assert "bitblas can't run here" in result.stderr
    assert "GPU" in result.stderr


def test_backends_of_two_devices_are_not_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_models(monkeypatch)
    monkeypatch.setattr(kernels.require_backend("reference"), "device", "cuda")
    with pytest.raises(InputError, match="one run has one device"):
        benchmark(None, BenchOptions(backends=("reference", "onednn")))


def test_more_tokens_than_the_model_takes_ends_with_2(run: Callable[..., object], packed: Path) -> None:
    result = run("bench", packed, "--tokens", "16,65")
    assert result.exit_code == 2
    assert "takes at most 64 tokens, not 65" in result.stderr


@pytest.mark.parametrize(("option", "value"), [("--tokens", "8"), ("--lengths", "texts.txt")])
def test_an_option_about_texts_is_refused_for_images(
    run: Callable[..., object], tiny_vit: Path, tmp_path: Path, option: str, value: str
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("cat\n")
    result = run("bench", tiny_vit, option, texts if option == "--lengths" else value)
    assert result.exit_code == 2
    assert f"{option} is about texts, and {tiny_vit.name} reads images" in result.stderr
    assert "converted" not in result.stderr


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "clip"}, "reads texts and images"),
        ({"model_type": "bart", "d_model": 8}, "is no text encoder"),
    ],
)
def test_what_is_no_encoder_of_texts_or_images_is_refused(
    run: Callable[..., object], tmp_path: Path, config: dict[str, object], message: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = run("bench", tmp_path)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shape", "vit-giant"), "there is no shape 'vit-giant'"),
        (("--shape", "vit-base", "MODEL"), "--shape is that of a random model"),
        (("--teacher", "MODEL"), "no MODEL was given"),
    ],
)
def test_a_shape_is_one_that_is_known_and_a_teacher_has_a_model(
    run: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
    tiny_bert: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    forbid_models(monkeypatch)
    result = run("bench", *(tiny_bert if word == "MODEL" else word for word in arguments))
    assert result.exit_code == 2
    assert message in result.stderr


def test_rivals_run_the_teacher_if_there_is_one(tiny_bert: Path, packed: Path, tiny_vit: Path) -> None:
    with prepare(str(packed), teacher=str(tiny_bert)) as subject:
        assert (subject.packed, subject.dense) == (packed, tiny_bert)
        assert f"the rivals run {tiny_bert}" in subject.notes
    for other, message in ((tiny_vit, "was not made from"), (packed, "is ternary")):
        with pytest.raises(InputError, match=message), prepare(str(packed), teacher=str(other)):
            pass


def forbid_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr(run, "prepare", refuse)
