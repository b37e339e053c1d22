"""The instruction sets that the native library has on this machine, and facts about them that tests need."""

import pytest

from ternarize_cli.errors import UnavailableError
from ternarize_cli.runtime.native.library import library

# These compute attention in bfloat16, and GELU to 5e-5.
SHORT = frozenset({"amx", "vnnibf16"})


def _present() -> tuple[str, ...]:
    try:
        return library().instruction_sets
    except UnavailableError:
        return ()


SETS = _present()
"""Their names, best first; none if the library is not built."""
needs_library = pytest.mark.skipif(not SETS, reason="the native library is not built: no C++ compiler")
