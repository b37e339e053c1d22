"""A process knows when it began."""

import subprocess
import sys
import time

import pytest

_ASK = "from ternarize_cli.measuring.process import began; print(began())"
_TICK = 0.02  # seconds; Linux counts hundredths


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="no clock counts from the start of this machine")
def test_a_process_began_after_it_was_asked_for_and_before_it_answered() -> None:
    before = time.time()
    told = float(subprocess.run([sys.executable, "-c", _ASK], capture_output=True, check=True).stdout)
    assert before - _TICK <= told <= time.time()
