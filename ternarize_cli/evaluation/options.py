"""What `evaluate` scores, against what, and how: the options of `ternarize eval`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ternarize_cli.errors import InputError
from ternarize_cli.storage.command_option import (
    ALLOW_PICKLE,
    BACKEND,
    DEVICE,
    MANY,
    MAX_BATCH,
    SEED,
    THREADS,
    Option,
    check_fields,
    plain_signature,
)

__all__ = ["EvaluationOptions"]


@plain_signature
@dataclass(frozen=True)
class EvaluationOptions:
    """What to evaluate on, against what, and how.

    At least one task is needed: a file in `sts`, `retrieval`, `classification`, `images`, `pairs` or `task_files`, or
    tasks of MTEB by `tasks`, `benchmarks`, `languages` or `task_types`.

    Attributes:
        against: the teacher, a full-precision model whose scores count as 1.
        candidates: further models to set beside the first.
        rivals: forms of the teacher, made on the spot, such as "onnx-int8" or "vectors-binary".
        sts: files of scored pairs of sentences.
        retrieval: folders of corpus.jsonl and queries.jsonl.
        classification: files of lines of label, tab, text.
        images: folders or files of labelled images.
        pairs: files of pairs of texts that a cross-encoder scores, alone or against its teacher's scores.
        task_files: TOML or JSON files that describe a task each.
        limit: the most test images of each of `images`; None: 200.
        queries_where: "KEY=VALUE": only queries whose JSON field KEY is VALUE.
        perturb: kinds of noise with commas between; each task of texts is scored again with it.
        tasks, benchmarks, languages, task_types: which tasks of MTEB, by its names.
        data_root: a folder of data sets that stand in for the hub's.
        results: the folder where results of MTEB tasks are kept.
        min_retention: gates, "0.98" for the mean, "TASK=0.97" for a task, or "index=0.99" for the student's queries in
            the teacher's documents, the mean over `retrieval`.
        diagnose: find out where information is lost.
        costs: measure time and memory of all models, too.
        cached: take scores that are known from the cache.
        strict: refuse images that can't be decoded instead of leaving them out.
        backend: kernels of the first model; the others run on what is best for them.
        device: torch device of all models.
        threads: CPU threads.
        batch_size: texts or images encoded at once.
        seed: of splits, draws, noise and the bootstrap.
        allow_pickle: read pytorch_model.bin where a model has no safetensors file.
    """

    against: Annotated[str | Path | None, Option("The teacher whose scores count as 1.", metavar="MODEL")] = None
    candidates: Annotated[
        Sequence[str | Path],
        Option("Another model, such as a smaller one. Repeatable.", name="candidate", metavar="MODEL"),
    ] = ()
    rivals: Annotated[
        Sequence[str],
        Option(
            "Made of the teacher on the spot: onnx-int8, openvino-int8, torch-bf16, vectors-int8, vectors-binary, "
            "truncate-128, … Repeatable.",
            name="rival",
            metavar="NAME",
        ),
    ] = ()
    sts: Annotated[
        Sequence[Path | str],
        Option(
            "Scored pairs: CSV sentence 1,sentence 2,score; or CSV, TSV, JSONL, Parquet with columns sentence1, "
            "sentence2, score. Repeatable.",
            metavar="FILE",
        ),
    ] = ()
    retrieval: Annotated[
        Sequence[Path | str],
        Option(
            "Folder of corpus.jsonl and queries.jsonl (`relevant` ids, or BEIR's qrels/test.tsv). Repeatable.",
            metavar="DIR",
        ),
    ] = ()
    classification: Annotated[
        Sequence[Path | str], Option("Lines of label, tab, text. Repeatable.", metavar="FILE")
    ] = ()
    images: Annotated[
        Sequence[Path | str],
        Option(
            "Labelled images: a folder with a subfolder per label, IDX, CIFAR or Parquet files; with a train and "
            "a test part, or else split in halves. Scored by the labels of the 5 nearest neighbours (cosine) and by a "
            "linear probe. Repeatable.",
            metavar="PATH",
        ),
    ] = ()
    pairs: Annotated[
        Sequence[Path | str],
        Option(
            "Pairs for a cross-encoder (reranker): columns sentence1, sentence2, score, or query, passage, score; the "
            "score may be missing with --against. Repeatable.",
            metavar="FILE",
        ),
    ] = ()
    task_files: Annotated[
        Sequence[Path | str],
        Option(
            "A task described in TOML or JSON, of these and more types (docs/guide/evaluate.md). Repeatable.",
            name="task_file",
            metavar="FILE",
        ),
    ] = ()
    limit: Annotated[
        int | None,
        Option(
            "At most N test images and 5 N to learn from of each --images, the same number of each label; "
            "default: 200.",
            metavar="N",
            max=MANY,
        ),
    ] = None
    queries_where: Annotated[str | None, Option("Only queries whose JSON field KEY is VALUE.", metavar="KEY=VALUE")] = (
        None
    )
    perturb: Annotated[
        str | None,
        Option("Each task again with typos, case, punctuation or truncation (a comma between them).", metavar="LIST"),
    ] = None
    tasks: Annotated[Sequence[str], Option("MTEB tasks by name. Repeatable.", metavar="NAME")] = ()
    benchmarks: Annotated[
        Sequence[str], Option('Such as "MTEB(cmn, v1)". Repeatable.', name="benchmark", metavar="NAME")
    ] = ()
    languages: Annotated[Sequence[str], Option("Only tasks in it, such as eng or zh. Repeatable.", metavar="CODE")] = ()
    task_types: Annotated[Sequence[str], Option("Only such tasks: STS, Retrieval, … Repeatable.", metavar="TYPE")] = ()
    data_root: Annotated[
        Path | None,
        Option("Data sets as DIR/ORG/NAME, in the layout of the hub, in place of the hub's.", metavar="DIR"),
    ] = None
    results: Annotated[
        Path | None, Option("Where results of MTEB tasks are kept, in MTEB's own layout.", metavar="DIR")
    ] = None
    min_retention: Annotated[
        Sequence[str],
        Option(
            "Exit 3 if student / teacher is below VALUE: the mean of all tasks, one TASK, or `index`: the student's "
            "queries with the teacher's index, the mean over --retrieval. Repeatable.",
            metavar="[TASK=]VALUE",
        ),
    ] = ()
    diagnose: Annotated[
        bool, Option("Show where quality is lost: layers, attention, neighbourhoods, sentences that moved.")
    ] = False
    costs: Annotated[bool, Option("Time all models, in turns, on 8 of the inputs, and measure their memory.")] = False
    cached: Annotated[bool, Option("Compute scores that are known already, too.", name="no_cache")] = True
    strict: Annotated[bool, Option("Refuse images that can't be decoded instead of leaving them out.")] = False
    backend: Annotated[str, BACKEND] = "auto"
    device: Annotated[str | None, DEVICE] = None
    threads: Annotated[int | None, THREADS] = None
    batch_size: Annotated[int, Option("Texts or images encoded at once.", min=1, max=MAX_BATCH)] = 32
    seed: Annotated[int, SEED] = 0
    allow_pickle: Annotated[bool, ALLOW_PICKLE] = False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def is_of_mteb(self) -> bool:
        """Whether tasks of MTEB are asked for."""
        return bool(self.tasks or self.benchmarks or self.languages or self.task_types)

    @property
    def files(self) -> dict[str, list[Path]]:
        """Tasks in files, by the names that `reading.read_tasks` takes."""
        names = ("sts", "retrieval", "classification", "images", "pairs", "task_files")
        return {name: [Path(path) for path in getattr(self, name)] for name in names}

    def reads(self, model: str | Path) -> list[str | Path]:
        """Lists the models and files that an evaluation of a model reads."""
        models = [model, *self.candidates, *([] if self.against is None else [self.against])]
        return [*models, *(path for paths in self.files.values() for path in paths)]

    def _check_alone(self) -> None:
        """Checks that nothing is asked of a cross-encoder that needs vectors."""
        names = ("sts", "retrieval", "classification", "images", "task_files", "rivals", "perturb", "diagnose", "costs")
        other = next((name for name in names if getattr(self, name)), "tasks" if self.is_of_mteb else None)
        if other is not None:
            flag = {"task_files": "task-file", "rivals": "rival"}.get(other, other)
            raise InputError(
                f"--pairs scores a cross-encoder, and --{flag} is for encoders, which give vectors",
                hint="one evaluation for each kind of model",
            )

    def check(self) -> None:
        """Checks the options against each other, before any file is read.

        Raises:
            InputError: `pairs` together with an option for encoders; `min_retention`, `rivals` or `diagnose` without
                `against`; a `min_retention` that is not above 0 and at most 1; or `results` or `data_root` without a
                task of MTEB.
        """
        if self.min_retention and self.against is None:
            raise InputError("--min-retention compares with a teacher, and none is given", hint="--against MODEL")
        if self.rivals and self.against is None:
            raise InputError("rivals are made of the teacher, and none is given", hint="--against MODEL")
        if self.diagnose and self.against is None:
            raise InputError("a diagnosis compares with the teacher, and none is given", hint="--against MODEL")
        if self.pairs:
            self._check_alone()
        from ternarize_cli.evaluation.gates import parse_gates

        parse_gates(self.min_retention)
        if not self.is_of_mteb and (self.results is not None or self.data_root is not None):
            raise InputError("--results and --data-root are for tasks of MTEB", hint="--tasks NAME or --benchmark NAME")
