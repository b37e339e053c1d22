"""The public surface: every module lists its names (ruff keeps them sorted), and they exist."""

import importlib
import pkgutil

import pytest

import ternarize_cli

MODULES = [m.name for m in pkgutil.walk_packages(ternarize_cli.__path__, "ternarize_cli.")]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_lists_its_public_names(name: str) -> None:
    if name.startswith("ternarize_cli.kernels.gpu.") or name == "ternarize_cli.kernels.bitblas.products":
        pytest.importorskip("triton", reason="the package triton is not installed")
    module = importlib.import_module(name)
    assert module.__doc__, "a module docstring that teaches"
    listed = getattr(module, "__all__", [])
    assert all(hasattr(module, entry) for entry in listed)
    own = [
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and getattr(value, "__module__", None) == name and callable(value)
    ]
    unlisted = [key for key in own if key not in listed]
    assert unlisted == [], f"{name} should list {unlisted} or underscore them"
