"""Lays out the help of a command: its options in groups, and examples after them."""

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand

__all__ = ["EXAMPLES", "Command", "Commands"]

_GROUPS = {
    "Where it listens": "host port api_key tls_cert tls_key",
    "How much it takes": "max_batch_tokens max_queue max_client_batch_size max_characters max_body max_pixels",
    "Calibration": "calibrate calibration_samples calibration_tokens",
    "What is measured": "sts retrieval classification pairs images task_file task benchmark language task_type limit "
    "queries_where perturb data_root text lengths shape batch tokens image_limit",
    "What it is compared with": "against candidate rival teacher compare min_retention diagnose costs",
    "Where it runs": "backend device threads batch_size memory energy engine workers ray_address on_disk auto_batch "
    "gradient_checkpointing",
    "Repeatability and safety": "seed allow_pickle strict skip_bad no_check no_cache",
    "Output": "output format shards shard shard_size dtype plot report junit csv markdown results dry_run pack resume "
    "save_every force json quiet help",
}
"""Which options of any command stand under which heading, by the names of their parameters; all others come first."""

EXAMPLES = {
    "convert": (
        "ternarize convert sentence-transformers/all-MiniLM-L6-v2 --calibrate texts.txt -o my-ternary",
        "ternarize convert ./my-bert --dry-run",
    ),
    "compress": (
        "ternarize compress sentence-transformers/all-MiniLM-L6-v2 --data texts.txt --sts pairs.csv -o my-packed",
        "ternarize compress --recipe recipe.toml -o again",
    ),
    "distill": (
        "ternarize distill my-ternary --teacher ./my-bert --data texts.txt --minutes 10 -o my-distilled",
        "ternarize distill my-ternary --teacher ./my-bert --data texts.txt --resume -o my-distilled",
    ),
    "pack": ("ternarize pack my-ternary -o my-packed", "ternarize pack my-ternary --codec base3 -o my-packed"),
    "bench": (
        "ternarize bench my-packed --batch 1,8 --tokens 16,128",
        "ternarize bench my-packed --text texts.txt --json > bench.json",
    ),
    "eval": (
        "ternarize eval my-packed --against ./my-bert --sts pairs.csv",
        "ternarize eval my-packed --against ./my-bert --retrieval beir-folder --min-retention 0.98",
    ),
    "encode": (
        "ternarize encode my-packed texts.txt -o vectors.npy",
        "cat texts.txt | ternarize encode my-packed - > vectors.jsonl",
    ),
    "export": (
        "ternarize export my-packed --to wheel --name my_model -o dist",
        "ternarize export my-packed --to c -o my-model-c",
    ),
    "publish": (
        "ternarize publish my-packed owner/my-model --dry-run",
        "ternarize publish my-packed owner/my-model --private",
    ),
    "serve": (
        "ternarize serve my-packed",
        "ternarize serve small=my-packed ranker=my-ranker --host 0.0.0.0 --tls-cert cert.pem",
    ),
    "inspect": (
        "ternarize inspect my-packed",
        "ternarize inspect ./my-bert --beta 1,1.5,2 --sts pairs.csv",
    ),
    "doctor": ("ternarize doctor", "ternarize doctor --backend native --json"),
    "demo": ("ternarize demo", "ternarize demo --minutes 0.3 -o demo"),
    "index build": (
        "ternarize index build texts.txt --model my-packed -o my-index",
        "ternarize index build corpus.jsonl --model my-packed --factory HNSW32 -o my-index",
    ),
    "index tune": (
        "ternarize index tune my-index --recall 0.95",
        "ternarize index tune my-index --plot recall.png --dry-run",
    ),
    "index search": (
        'ternarize index search my-index "a cat by the river"',
        "ternarize index search my-index --queries queries.txt --json",
    ),
    "index add": ("ternarize index add my-index new.jsonl", "ternarize index add my-index new.jsonl --replace"),
    "index delete": (
        "ternarize index delete my-index doc-17 doc-18",
        "ternarize index delete my-index --ids old.txt --missing-ok",
    ),
    "index compact": ("ternarize index compact my-index", "ternarize index compact my-index --json"),
    "index info": ("ternarize index info my-index", "ternarize index info my-index --json"),
    "index compare": (
        "ternarize index compare my-corpus --model my-packed --teacher ./my-bert",
        "ternarize index compare my-corpus --model my-packed --teacher ./my-bert --json",
    ),
}
"""Two lines that a user types, of every command."""


class Command(TyperCommand):
    """A command whose help shows its options in groups, and `EXAMPLES` after them."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the arguments, and the options in the order of the groups."""
        records: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], **{name: [] for name in _GROUPS}}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                is_argument = parameter.param_type_name == "argument"
                records["Arguments" if is_argument else _group_of(parameter.name)].append(record)
        for name, lines in records.items():
            if lines:
                with formatter.section(name):
                    formatter.write_dl(lines)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Writes the examples, each in a line of its own."""
        with formatter.section("Examples"):
            formatter.write("".join(f"  {line}\n" for line in EXAMPLES[ctx.command_path.partition(" ")[2]]))


class Commands(typer.Typer):
    """An application or group whose commands are of the class `Command`."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[..., Any]:
        """Registers a command, as typer's method of this name does."""
        return super().command(name, cls=Command, **settings)


def _group_of(name: str | None) -> str:
    return next((group for group, names in _GROUPS.items() if name in names.split()), "Options")
