"""Fixtures for tests of the compiled library."""

from collections.abc import Callable

import pytest

from ternarize_cli.runtime.native import threads as native_threads


@pytest.fixture
def set_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many threads a call has, on a machine of eight processors as far as the library knows."""
    monkeypatch.setattr(native_threads, "processors", lambda: 8)
    return lambda threads: monkeypatch.setattr(native_threads, "_wanted", lambda: threads)
