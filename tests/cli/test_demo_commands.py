"""The commands that `ternarize demo` shows can be pasted into a shell."""

import shlex
from pathlib import Path

from ternarize_cli.cli.demo_pipeline import MODEL, commands


def test_a_folder_with_a_space_stays_one_word() -> None:
    compress, bench, index = map(shlex.split, commands(Path("my demo"), 0.5, 1000))
    assert compress[:5] == ["ternarize", "compress", MODEL, "--data", "my demo/training.txt"]
    assert compress[5:] == [
        *("--minutes", "0.5", "--calibration-tokens", "1000"),
        *("--retrieval", "my demo/held-out", "-o", "my demo/model"),
    ]
    assert bench == ["ternarize", "bench", "my demo/model"]
    assert index[3:] == ["my demo/documentation.jsonl", "--model", "my demo/model", "-o", "my demo/index"]
