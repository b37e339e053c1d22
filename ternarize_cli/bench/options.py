"""What `bench` measures, and which files it writes: the options of `ternarize bench`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ternarize_cli.errors import InputError
from ternarize_cli.storage.command_option import ALLOW_PICKLE, SEED, THREADS, Option, check_fields, plain_signature

if TYPE_CHECKING:
    from ternarize_cli.measuring.timing import GridPoint

__all__ = ["DEFAULT_TOKENS", "BenchFiles", "BenchOptions"]

DEFAULT_TOKENS = (16, 128)
_MOST = 1_000_000
"""The largest number of calls."""
_MOST_NEIGHBOURS = 1024


@plain_signature
@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        backends: names of kernel backends; (): all that run on the device.
        device: torch device; None: the GPU if a backend runs nowhere else, otherwise the CPU.
        rivals: names of rivals; "all" stands for those that can run here, "none" for no rival. None: the defaults of
            the device.
        teacher: the full-precision model that the rivals run; None: the model's own weights.
        shape: of the random model that is measured where no model is given (`shapes.SHAPES`); None: bert-base.
        batches: sizes of batches; None: 1 and 8, and 32 for `text`.
        tokens: lengths of texts; every pair of a batch and a length is a point. Images take no tokens. None:
            `DEFAULT_TOKENS`.
        lengths: a file of texts; batches of them are a point for each of `batches`.
        text: a file of texts to encode from strings to vectors, in batches of `batches`, instead of all that; of more
            than 10,000 as many are drawn.
        repeats: timed calls of each candidate per point.
        warmup: untimed calls before.
        seconds: time budget per point; it cuts the repeats, though never below three.
        memory: measure memory, load time and cold start too, in a subprocess per candidate.
        energy: measure joules per pass, too, where the GPU counts them.
        neighbours: number of processes that are kept busy beside the candidates (`measuring.neighbours`).
        threads: CPU threads for all; None leaves torch's number.
        seed: of token ids and pixels, of the texts drawn, and of random weights.
        allow_pickle: read pytorch_model.bin where the model has no safetensors file.
    """

    backends: Annotated[
        Sequence[str],
        Option("A kernel backend; repeatable. Default: all that run on the device.", name="backend", metavar="NAME"),
    ] = ()
    device: Annotated[
        str | None,
        Option("cpu, cuda, cuda:1, …; default: cuda if a backend runs nowhere else, else cpu.", metavar="NAME"),
    ] = None
    rivals: Annotated[
        Sequence[str] | None,
        Option(
            "A rival, such as onnx-int8; repeatable; all: every one that can run here; none: no rival. Default: "
            "torch-fp32 and torch-bf16; on a GPU torch-fp32, torch-fp16 and torch-fp16-compiled.",
            name="against",
            metavar="NAME",
        ),
    ] = None
    teacher: Annotated[
        str | None,
        Option(
            "What the rivals run: the full-precision model that MODEL was made of. Default: MODEL's own weights.",
            metavar="MODEL",
        ),
    ] = None
    shape: Annotated[
        str | None,
        Option(
            "The random model's, such as modernbert-base; a wrong name lists all. Default: bert-base.", metavar="NAME"
        ),
    ] = None
    batches: Annotated[
        Sequence[int] | None,
        Option("Batch sizes. Default: 1,8, and with --text 32.", name="batch", metavar="N,…", in_one=True),
    ] = None
    tokens: Annotated[
        Sequence[int] | None,
        Option("Lengths of texts, padding-free. Default: 16,128.", metavar="N,…", in_one=True),
    ] = None
    lengths: Annotated[
        str | None,
        Option(
            "Also time padded batches of these texts (one per line, or JSONL), with the lengths they have.",
            metavar="FILE",
        ),
    ] = None
    text: Annotated[
        str | None,
        Option(
            "Instead of all that: encode these texts, from strings to vectors, as users of each runtime do.",
            metavar="FILE",
        ),
    ] = None
    repeats: Annotated[int, Option("Timed calls per candidate and point.", min=1, max=_MOST)] = 50
    warmup: Annotated[int, Option("Untimed calls before.", min=0, max=_MOST)] = 2
    seconds: Annotated[float, Option("Time budget per point; cuts the repeats, not below three.", min=0.0)] = 10.0
    memory: Annotated[bool, Option("Measure memory, load time and first pass too, in a process per candidate.")] = True
    energy: Annotated[bool, Option("Measure joules per pass, too, where the GPU's driver counts them.")] = False
    neighbours: Annotated[
        int,
        Option(
            "Keep N processes busy beside all candidates.", name="neighbour", metavar="N", min=0, max=_MOST_NEIGHBOURS
        ),
    ] = 0
    threads: Annotated[int | None, THREADS] = None
    seed: Annotated[int, SEED] = 0
    allow_pickle: Annotated[bool, ALLOW_PICKLE] = False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The sizes of batches that are timed."""
        if self.batches is not None:
            return tuple(self.batches)
        return (1, 8) if self.text is None else (32,)

    def points(self, *, images: bool = False) -> "list[GridPoint]":
        """All points, small to large; of images, whose tokens are not chosen, if `images`."""
        from ternarize_cli.measuring.timing import GridPoint

        lengths = (0,) if images else self.tokens or DEFAULT_TOKENS
        return sorted({GridPoint(batch, tokens) for batch in self.batch_sizes for tokens in lengths})

    def check(self, *, random: bool) -> None:
        """Checks the options against each other.

        Args:
            random: a model with random weights is measured.

        Raises:
            InputError: `teacher` without a model, `shape` with one, or `tokens` or `lengths` with `text`.
        """
        if random and self.teacher is not None:
            raise InputError("--teacher is what MODEL was made of, and no MODEL was given", hint="give MODEL, too")
        if not random and self.shape is not None:
            raise InputError("--shape is that of a random model, and MODEL has its own", hint="leave one of them out")
        for option, value in {"--tokens": self.tokens, "--lengths": self.lengths}.items():
            if self.text is not None and value is not None:
                raise InputError(f"{option} is of forward passes, and --text encodes whole texts", hint="two runs")


@dataclass(frozen=True)
class BenchFiles:
    """Which files a report becomes; None: not written.

    Attributes:
        csv: a line for each row of the report.
        markdown: the tables.
    """

    csv: Annotated[Path | None, Option("Write all rows as CSV, for spreadsheets.", metavar="FILE")] = None
    markdown: Annotated[Path | None, Option("Write the tables.", metavar="FILE")] = None

    @property
    def by_option(self) -> dict[str, Path]:
        """What was asked for: option → file."""
        given = {"--csv": self.csv, "--markdown": self.markdown}
        return {option: path for option, path in given.items() if path is not None}

    def check(self, *, force: bool, inputs: Sequence[Path] = ()) -> None:
        """Checks that all files can be written, before any work is done.

        Args:
            force: files that exist may be replaced.
            inputs: files and folders that are read, which neither may replace.

        Raises:
            InputError: both are one file, or one would replace an input.
            OutputExistsError, OutputError: a file exists and `force` is False, or can't be written.
        """
        from ternarize_cli.storage import files

        seen: dict[Path, str] = {}
        for option, path in self.by_option.items():
            if (other := seen.setdefault(path.resolve(), option)) != option:
                raise InputError(f"{other} and {option} name the same file, {path}", hint="a file for each")
            files.check_output(path, force=force, inputs=inputs, folder=False)
