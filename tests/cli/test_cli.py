"""The contract of every command: streams, JSON, exit codes, errors, settings."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from support.models import save_tiny_bert
from ternarize_cli.cli.output import duration
from ternarize_cli.errors import counted

Run = Callable[..., Any]
COMMANDS = [
    "convert",
    "distill",
    "pack",
    "bench",
    "eval",
    "index",
    "encode",
    "inspect",
    "export",
    "serve",
    "doctor",
    "demo",
]


def test_help_lists_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from ternarize_cli.cli.app import app\n"
        "result = CliRunner().invoke(app, ['--help'])\n"
        "assert result.exit_code == 0, result.output\n"
        f"assert all(c in result.output for c in {COMMANDS})\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pandas', 'faiss', 'mteb', 'datasets', 'sentence_transformers'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.stdout


def test_version(run: Run) -> None:
    from ternarize_cli import __version__

    assert run("--version").stdout == f"ternarize {__version__}\n"


def test_the_pipeline_speaks_json_on_stdout_and_notes_on_stderr(run: Run, tiny_bert: Path, tmp_path: Path) -> None:
    latent, packed = tmp_path / "latent", tmp_path / "packed"
    converted = run("convert", tiny_bert, "-o", latent, "--json")
    assert converted.exit_code == 0, converted.output
    report = json.loads(converted.stdout)
    assert report["schema_version"] == 1
    assert len(report["layers"]) == 13
    assert report["layers"][0]["bytes_after"] < report["layers"][0]["bytes_before"] / 8
    assert "ternarize distill" in converted.stderr
    packing = json.loads(run("pack", latent, "-o", packed, "--json").stdout)
    assert packing["bytes_packed"] == (packed / "model.safetensors").stat().st_size
    found = json.loads(run("inspect", packed, "--json").stdout)
    assert found["stage"] == "packed"
    assert found["quantization_config"]["source"] == "tiny-bert"


def test_grids_and_codecs_are_chosen_by_flags(run: Run, tiny_bert: Path, tmp_path: Path) -> None:
    ternary, int2 = tmp_path / "ternary", tmp_path / "int2"
    assert run("convert", tiny_bert, "-o", ternary, "--table-bits", 4, "-q").exit_code == 0
    packed = run("pack", ternary, "-o", tmp_path / "a", "--codec", "base3")
    assert "linears, codes (base3, 1.6 bits) and scales" in packed.stdout
    assert "embedding tables, 4-bit" in packed.stdout
    assert run("convert", tiny_bert, "-o", int2, "--levels", "int2", "--granularity", "group:16", "-q").exit_code == 0
    found = json.loads(run("pack", int2, "-o", tmp_path / "b", "--json").stdout)["quantization_config"]
    assert (found["levels"], found["codec"], found["group_size"]) == ("int2", "2bit", 16)
    assert "one of 2bit" in fails(run, 2, "pack", int2, "-o", tmp_path / "c", "--codec", "base3")
    assert "--rule optimal" in fails(run, 2, "convert", tiny_bert, "--levels", "int2", "--rule", "absmean")
    assert "levels is 'int3'" in fails(run, 2, "convert", tiny_bert, "--levels", "int3")
    lines = tmp_path / "lines.txt"
    lines.write_text("the cat\n")
    assert "onednn can't run" in fails(
        run, 4, "encode", tmp_path / "b", lines, "-o", tmp_path / "v.npy", "--backend", "onednn"
    )


def test_tables_are_for_people(run: Run, tiny_bert: Path, tmp_path: Path) -> None:
    result = run("convert", tiny_bert, "-o", tmp_path / "latent", "--quiet")
    assert "encoder.layer.0.attention.self.query" in result.stdout
    assert "32 × 32" in result.stdout
    assert result.stderr == ""


def test_outputs_are_named_after_their_input(
    run: Run, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("convert", tiny_bert).exit_code == 0
    assert run("pack", "tiny-bert-ternary").exit_code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny-bert-packed", "tiny-bert-ternary"]


# ---- errors


def fails(run: Run, code: int, *arguments: object) -> str:
    """Asserts the exit code, a short error on stderr and nothing on stdout; returns stderr."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 4
    assert result.stderr.startswith(("error: ", "note: "))
    return result.stderr


def test_a_hub_id_without_a_network_says_what_to_do(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    text = fails(run, 2, "convert", "bert-base-chinese")
    assert "the hub can't be reached" in text
    assert "hf download bert-base-chinese" in text
    assert list(tmp_path.glob("*")) == []


def test_a_missing_folder(run: Run) -> None:
    assert "there is no folder ./nowhere/model" in fails(run, 2, "convert", "./nowhere/model")


def test_a_missing_package_and_an_ambiguous_one(run: Run) -> None:
    assert "pip install no-such-thing" in fails(run, 2, "convert", "package:no_such_thing")
    assert "found 0" in fails(run, 2, "convert", "package:json")


def test_a_folder_without_config_or_weights(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no config.json" in fails(run, 2, "convert", tmp_path / "empty")
    source = save_tiny_bert(tmp_path / "bare")
    (source / "model.safetensors").unlink()
    assert "holds no weights" in fails(run, 2, "convert", source, "-o", tmp_path / "out")


def test_a_file_instead_of_a_folder(run: Run, tiny_bert: Path) -> None:
    assert "is a file" in fails(run, 2, "convert", tiny_bert / "config.json")


def test_a_config_that_is_no_json(run: Run, tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source")
    (source / "config.json").write_text("{")
    assert "not valid JSON" in fails(run, 2, "convert", source, "-o", tmp_path / "out")


def test_an_unknown_architecture(run: Run, tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source")
    (source / "config.json").write_text(json.dumps({"model_type": "future"}))
    assert "transformers can't build" in fails(run, 2, "convert", source, "-o", tmp_path / "out")


def test_a_pickle_is_refused_with_the_flag_that_allows_it(run: Run, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    source = save_tiny_bert(tmp_path / "source")
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    text = fails(run, 2, "convert", source, "-o", tmp_path / "out")
    assert "--allow-pickle" in text
    assert run("convert", source, "-o", tmp_path / "out", "--allow-pickle").exit_code == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_an_old_pickle_is_read_too(run: Run, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    source = save_tiny_bert(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    torch.save(tensors, source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (source / "model.safetensors").unlink()
    result = run("convert", source, "-o", tmp_path / "out", "--allow-pickle")
    assert result.exit_code == 0, result.output


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("pwned",))


def test_a_pickle_that_runs_code_is_refused_even_then(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = save_tiny_bert(tmp_path / "source")
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    fails(run, 2, "convert", source, "-o", tmp_path / "out", "--allow-pickle")
    assert not (tmp_path / "pwned").exists()


def test_an_output_in_a_missing_or_read_only_folder(run: Run, tiny_bert: Path, tmp_path: Path) -> None:
    assert "there is no folder" in fails(run, 1, "convert", tiny_bert, "-o", tmp_path / "no" / "out")
    (tmp_path / "file").write_text("")
    fails(run, 1, "convert", tiny_bert, "-o", tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--rule", "best"), ("--granularity", "group:x"), ("--beta", "-1")],
)
def test_wrong_values_are_wrong_usage(run: Run, tiny_bert: Path, tmp_path: Path, option: str, value: str) -> None:
    fails(run, 2, "convert", tiny_bert, "-o", tmp_path / "out", option, value)
    assert list(tmp_path.iterdir()) == []


def test_beta_goes_with_the_rule_absmean(run: Run, tiny_bert: Path, tmp_path: Path) -> None:
    for beta in ("1.5", "2"):
        text = fails(run, 2, "convert", tiny_bert, "-o", tmp_path / "out", "--beta", beta)
        assert "beta is the threshold of the rule absmean, and the rule is optimal" in text
        assert "--rule absmean, or no --beta" in text
    assert not (tmp_path / "out").exists()
    assert run("convert", tiny_bert, "-o", tmp_path / "out", "--rule", "absmean", "--beta", "1.5").exit_code == 0


def test_numbers_that_can_not_be_chosen_are_named_with_those_that_can(run: Run) -> None:
    for option, value, known in (("--activations", "7", "'8', '16'"), ("--table-bits", "5", "'4', '8', '16', '32'")):
        result = run("convert", "m", option, value)
        assert result.exit_code == 2
        assert f"'{option}'" in result.stderr
        assert f"'{value}' is not one of {known}" in result.stderr


def test_the_help_shows_the_numbers_that_can_be_chosen_and_where_outputs_go(run: Run) -> None:
    shown = " ".join(run("convert", "--help").stdout.split())
    assert "--activations <8|16>" in shown
    assert "--table-bits <4|8|16|32>" in shown
    assert "The folder to write; default: ./NAME-ternary." in shown


def test_an_unknown_option_is_wrong_usage(run: Run) -> None:
    assert run("convert", "x", "--no-such-option").exit_code == 2


def test_debugging_shows_the_exception(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERNARIZE_DEBUG", "1")
    result = run("convert", "./nowhere")
    assert type(result.exception).__name__ == "ModelNotFoundError"


# ---- settings


def test_flags_beat_environment_beats_file_beats_defaults(
    run: Run, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def rule_and_seed(*flags: object) -> tuple[str, int]:
        result = run("convert", tiny_bert, "-o", "out", "--force", "--json", *flags)
        assert result.exit_code == 0, result.output
        description = json.loads(result.stdout)["quantization_config"]
        return description["rule"], description["seed"]

    assert rule_and_seed() == ("optimal", 0)
    Path("ternarize.toml").write_text('seed = 5\n[convert]\nrule = "absmean"\n')
    assert rule_and_seed() == ("absmean", 5)
    monkeypatch.setenv("TERNARIZE_CONVERT_RULE", "optimal")
    monkeypatch.setenv("TERNARIZE_SEED", "6")
    assert rule_and_seed() == ("optimal", 6)
    assert rule_and_seed("--rule", "absmean", "--seed", "7") == ("absmean", 7)


def test_a_settings_file_can_be_named(run: Run, tmp_path: Path) -> None:
    assert "can't be read" in run("--config", tmp_path / "none.toml", "doctor").stderr
    (tmp_path / "bad.toml").write_text("= 3")
    result = run("--config", tmp_path / "bad.toml", "doctor")
    assert result.exit_code == 2
    assert "not valid TOML" in result.stderr


def test_one_value_serves_an_option_that_takes_several(
    run: Run, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ternarize.toml").write_text('[convert]\nskip = "pooler*"\n')
    result = run("convert", tiny_bert, "-o", "out", "--json")
    assert json.loads(result.stdout)["kept"] == {"pooler.dense": "--skip pooler*"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[convert]\nruel = 1\n", "has no option 'ruel'"),
        ("[convrt]\nrule = 1\n", "no command 'convrt'"),
        ("sed = 1\n", "no command has an option 'sed'"),
        ("[index.build]\nfactori = 1\n", "has no option 'factori'"),
    ],
)
def test_a_misspelt_setting_is_named(run: Run, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.toml").write_text(text)
    result = run("--config", tmp_path / "t.toml", "doctor")
    assert result.exit_code == 2
    assert message in result.stderr


def test_counts_and_durations_read_as_they_are_said() -> None:
    assert [counted(n, "shard") for n in (0, 1, 1200)] == ["0 shards", "1 shard", "1,200 shards"]
    assert [duration(seconds) for seconds in (0.04, 89.0, 150.0)] == ["0.0 s", "89.0 s", "2.5 minutes"]


@pytest.mark.parametrize(("command", "policy"), [("encode", "passive"), ("index", "passive"), ("bench", None)])
def test_threads_sleep_while_they_wait_where_no_rival_is_measured(command: str, policy: str | None) -> None:
    code = f"""
import atexit, os, sys
from ternarize_cli.__main__ import main
sys.argv[1:] = ["{command}", "--help"]
atexit.register(lambda: print(os.environ.get("OMP_WAIT_POLICY")))
main()
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split()[-1] == str(policy)
