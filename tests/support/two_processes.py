"""Runs a command line in two processes on the CPU, as torchrun starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def in_two_processes(folder: Path, script: str | None, *command: object) -> Any:
    """Runs a command with `--json`, and returns what it prints.

    Args:
        folder: where the script is written.
        script: what runs in place of `python -m ternarize_cli`; None: that.
        command: the arguments.
    """
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    program: tuple[object, ...] = ("-m", "ternarize_cli")
    if script is not None:
        (folder / "run.py").write_text(script)
        program = (folder / "run.py",)
    done = subprocess.run(
        [*map(str, (*launch, *program, *command))],
        capture_output=True,
        text=True,
        timeout=200,
        env=dict(os.environ, OMP_NUM_THREADS="1", PYTHONSAFEPATH="1"),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
