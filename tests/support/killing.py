"""Kills commands at random moments and looks at what they leave; a program of its own, which `test_kills` runs.

    python killing.py FOLDER KILLS SEED        FOLDER holds what `test_kills` prepared; prints a JSON object

What is heavy is imported once; a command runs in a fork of this process, in a folder that is made anew each time. First
it runs undisturbed, for its duration and for what a whole output is. Then, KILLS times, it is killed: every second time
its output is there before. After a kill every name must hold a whole output, old or new, and nothing beside the
command's own partial folder may have changed. Then the command runs to its end and must leave nothing else behind.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import ternarize_cli.cli.app
import ternarize_cli.distill
import ternarize_cli.evaluation.report
import ternarize_cli.evaluation.run
import ternarize_cli.hf
import ternarize_cli.index.add
import ternarize_cli.index.build
import ternarize_cli.vectors.vector_shards  # noqa: F401
from ternarize_cli.__main__ import main
from ternarize_cli.index.format import check_files, read_info
from ternarize_cli.vectors.vector_folder import VectorFolder

CALIBRATION = ("--calibrate", "texts.txt", "--calibration-tokens", "1000")
TRAINING = ("--steps", "3", "--batch-size", "8", "--save-every", "0", "--max-length", "16")
COMMANDS = {
    "convert": ("convert", "m", "-o", "out", "--force"),
    "calibrate": ("convert", "m", "-o", "out", "--force", *CALIBRATION),
    "pack": ("pack", "latent", "-o", "out", "--force"),
    "distill": ("distill", "latent", "--teacher", "m", "--data", "texts.txt", "-o", "out", "--force", *TRAINING),
    "encode": ("encode", "m", "texts.txt", "-o", "out.npy", "--force"),
    "encode --shards": ("encode", "m", "texts.txt", "--shards", "--shard-size", "40", "-o", "out"),
    "index build": ("index", "build", "texts.txt", "-m", "m", "--factory", "flat", "-o", "out", "--force"),
    "index add": ("index", "add", "ix", "more.jsonl", "--replace", "--model", "m"),
    "index delete": ("index", "delete", "ix", "d1", "d2", "d5", "--missing-ok"),
    "index compact": ("index", "compact", "ix"),
    "eval": ("eval", "m", "--sts", "sts.csv", "--report", "out.html", "--junit", "out.xml", "--force", "--no-cache"),
}
OUTPUTS = {"encode": ["out.npy"], "eval": ["out.html", "out.xml"]}
CHANGES = ("index add", "index delete", "index compact")
VOLATILE = ("README.md", "distillation.json", "metrics.jsonl")
"""Files that say how long something took."""


def start(arguments: tuple[str, ...]) -> int:
    """Runs a command in a fork; its process id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        log = os.open("../log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for number in (1, 2):
            os.dup2(log, number)
        sys.argv = ["ternarize", *arguments]
        main()
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(arguments: tuple[str, ...]) -> int:
    """Runs a command to its end; its exit code. Processes of a killed one may live for a moment more."""
    for _ in range(50):
        code = os.waitstatus_to_exitcode(os.waitpid(start(arguments), 0)[1])
        if code != 1:
            break
        time.sleep(0.1)
    return code


def content(path: Path) -> object:
    """What tells a whole output from another; None if there is none."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return {
            str(p.relative_to(path)): "" if p.name in VOLATILE else hashlib.sha256(p.read_bytes()).hexdigest()
            for p in files
        }
    if not path.exists():
        return None
    text = path.read_bytes()
    if path.suffix in (".html", ".xml"):
        return "whole" if text.rstrip().endswith((b"</html>", b"</testsuites>", b"</testsuite>")) else "half"
    return hashlib.sha256(text).hexdigest()


def fault_of_index(folder: Path, *, clean: bool) -> str | None:
    """What is wrong with an index, and with what lies beside its files if it should be clean."""
    info = read_info(folder)
    check_files(folder, info)
    others = {p.name for p in folder.iterdir()} - {"index.json", *info.files}
    strange = {n for n in others if clean or not n.startswith((".deleted-", ".index.json", "deleted-"))}
    return f"beside its files: {sorted(strange)}" if strange else None


class Trial:
    """A command, its folder, and what it makes."""

    def __init__(self, name: str, prepared: Path, work: Path) -> None:
        self.name, self.arguments = name, COMMANDS[name]
        self.prepared, self.work = prepared, work
        self.outputs = [] if name in CHANGES else OUTPUTS.get(name, ["out"])
        self.given = {p.name for p in prepared.iterdir()}
        self.seconds = float("inf")
        for _ in range(3):  # the first run fills caches
            self.reset(old=False)
            began = time.monotonic()
            code = finish(self.arguments)
            self.seconds = min(self.seconds, time.monotonic() - began)
            if code:
                raise RuntimeError(f"{name} ended with {code}: {(work.parent / 'log').read_text()[-1000:]}")
        self.whole = {o: content(work / o) for o in self.outputs}
        shutil.rmtree(work.parent / "kept", ignore_errors=True)
        shutil.copytree(work, work.parent / "kept")

    def reset(self, *, old: bool) -> None:
        os.chdir(self.work.parent)
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.work.parent / "kept" if old else self.prepared, self.work)
        os.chdir(self.work)

    def fault(self, *, old: bool) -> str | None:
        """What is wrong after a kill."""
        own = {f".{o}.partial" for o in [*self.outputs, "ix"]}
        others = {p.name for p in self.work.iterdir()} - self.given - set(self.outputs) - own
        if others:
            return f"touched {sorted(others)}"
        changed = [n for n in self.given - {"ix"} if content(self.work / n) != content(self.prepared / n)]
        if changed:
            return f"changed {changed}"
        if self.name in CHANGES:
            return fault_of_index(self.work / "ix", clean=False)
        for output in self.outputs:
            found = content(self.work / output)
            if self.name == "encode --shards":
                wanted = self.whole[output]
                finals = {n: d for n, d in (found or {}).items() if not n.endswith(".partial")}
                if not finals.items() <= wanted.items():
                    return "a shard is not what it should be"
            elif found != self.whole[output] and (found is not None or old):
                return f"{output} is {'gone' if found is None else 'no whole output'}"
        return None

    def fault_at_end(self) -> str | None:
        """What is wrong after the run that follows a kill."""
        others = {p.name for p in self.work.iterdir()} - self.given - set(self.outputs)
        if others:
            return f"left {sorted(others)}"
        if self.name in CHANGES:
            return fault_of_index(self.work / "ix", clean=True)
        if self.name == "encode --shards":
            VectorFolder(self.work / "out")
        for output in self.outputs:
            if content(self.work / output) != self.whole[output]:
                return f"{output} is another than an undisturbed run makes"
        return None


def killed_at_random(trial: Trial, draw: random.Random, kills: int) -> dict[str, object]:
    """Kills a command so often; how many were alive then, and the faults."""
    alive, faults = 0, []
    for i in range(kills):
        old = bool(i % 2)
        trial.reset(old=old)
        wait = trial.seconds * (draw.uniform(0, 1) if draw.random() < 0.4 else draw.uniform(0.6, 1))
        process = start(trial.arguments)
        time.sleep(wait)
        os.kill(process, signal.SIGKILL)
        alive += os.WIFSIGNALED(os.waitpid(process, 0)[1])
        fault = trial.fault(old=old)
        code = finish(trial.arguments)
        fault = fault or (f"the next run ended with {code}" if code else trial.fault_at_end())
        if fault:
            faults.append(f"kill {i + 1} after {wait:.3f} s: {fault}")
    return {"kills": kills, "alive": alive, "seconds": round(trial.seconds, 2), "faults": faults}


if __name__ == "__main__":
    folder, draw = Path(sys.argv[1]).resolve(), random.Random(int(sys.argv[3]))
    found = {}
    for name in COMMANDS:
        trial = Trial(name, folder / "prepared", folder / "work")
        found[name] = killed_at_random(trial, draw, int(sys.argv[2]))
        print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
    print(json.dumps(found))
