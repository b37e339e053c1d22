"""Platforms without `fcntl` and `resource`, such as Windows: models are read there, and what needs a lock is refused.

The two modules are made unavailable in a process of its own, which imports the package afterwards.
"""

import json
import os
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ternarize_cli.storage import locks

WITHOUT = "import psutil, sys; sys.modules['fcntl'] = sys.modules['resource'] = None\n"
"""psutil comes first: it needs `resource` on Linux, and does without it on Windows."""


def run_without(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a program in a process that can import neither `fcntl` nor `resource`."""
    command = [sys.executable, "-c", WITHOUT + program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_files_are_read_without_fcntl_and_resource(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"layers": 2}')
    made = run_without(
        "from pathlib import Path\n"
        "from ternarize_cli.storage import bounds, cache_folder, files, weights, whole_files, workplace\n"
        "print(bounds.read_json(Path(sys.argv[1])), bounds.MAX_HELD > 0)\n",
        tmp_path / "config.json",
    )
    assert (made.stdout, made.stderr, made.returncode) == ("{'layers': 2} True\n", "", 0)


def test_signals_are_handled_where_there_is_no_sighup() -> None:
    made = run_without(
        "import os, signal\n"
        "del signal.SIGHUP\n"
        "from ternarize_cli.storage import signals\n"
        "try:\n"
        "    with signals.listen(): os.kill(os.getpid(), signal.SIGTERM)\n"
        "except signals.Ended as e: print(signals.exit_code(e))\n"
    )
    assert (made.stdout, made.stderr, made.returncode) == ("143\n", "", 0)


def test_without_fcntl_outputs_are_refused_in_words_and_nothing_is_left(tmp_path: Path) -> None:
    made = run_without(
        "from pathlib import Path\n"
        "from ternarize_cli.errors import UnavailableError\n"
        "from ternarize_cli.storage.files import atomic_file, atomic_folder, locked_folder\n"
        "place = Path(sys.argv[1])\n"
        "for held in (atomic_file(place / 'file'), atomic_folder(place / 'folder'), locked_folder(place)):\n"
        "    try:\n"
        "        with held: print('begun')\n"
        "    except UnavailableError as e: print(e, e.hint, sep='; ')\n"
        "print(list(place.iterdir()))\n",
        tmp_path,
    )
    *refusals, left = made.stdout.splitlines()
    assert len(refusals) == 3, made.stderr
    for refusal in refusals:
        assert "no locks on files" in refusal
        assert "Linux or macOS" in refusal
    assert left == "[]"


def test_without_fcntl_what_is_kept_appears_whole(tmp_path: Path) -> None:
    made = run_without(
        "from pathlib import Path\n"
        "from ternarize_cli.storage.cache_folder import keep_file\n"
        "keep_file(Path(sys.argv[1]) / 'kept', lambda stream: stream.write(b'whole'))\n",
        tmp_path / "cache",
    )
    assert made.returncode == 0, made.stderr
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "cache").iterdir()] == [("kept", b"whole")]


@pytest.mark.slow
def test_the_command_line_runs_without_fcntl_and_says_what_is_missing(tiny_vit: Path, tmp_path: Path) -> None:
    program = (
        "from ternarize_cli.__main__ import main\n"
        "source, made = sys.argv[1:]\n"
        "for line in (['inspect', source, '--json'], ['convert', source, '-o', made]):\n"
        "    sys.argv[1:] = line\n"
        "    try: main()\n"
        "    except SystemExit as e: print(e.code or 0)\n"
    )
    made = run_without(program, tiny_vit, tmp_path / "made")
    shown, *codes = made.stdout.splitlines()
    assert json.loads(shown)["architecture"] == "ViTModel", made.stderr
    assert codes == ["0", "4"], made.stderr
    assert "no locks on files" in made.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_lock_goes_with_its_process_however_that_ends(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\nfrom ternarize_cli.storage.locks import lock\n"
        "lock(os.open(sys.argv[1], os.O_RDONLY)); print('locked', flush=True); signal.pause()\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout as said:
        assert said.readline() == "locked\n"
        mine = os.open(tmp_path, os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                locks.lock(mine)
            holder.kill()
            holder.wait()
            locks.lock(mine)
        finally:
            os.close(mine)


def test_types_are_published_and_dependencies_declared() -> None:
    assert resources.files("ternarize_cli").joinpath("py.typed").is_file()
    declared = {Requirement(line).name for line in metadata.requires("ternarize-cli") or []}
    assert {"pillow", "scipy", "scikit-learn", "huggingface-hub", "tokenizers", "tqdm", "packaging"} <= declared
