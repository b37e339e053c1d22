"""`ternarize eval`: retention, gates, and what the command prints and exits with."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.images import make_labels, make_pixels, write_folder
from support.models import save_tiny_bert, save_tiny_vit
from support.sentences import cosines, load, make_sentences
from support.task_files import write_pairs, write_retrieval
from ternarize_cli.data.images import read_labelled
from ternarize_cli.errors import GateMissedError, InputError
from ternarize_cli.evaluation.gates import check, parse_gates
from ternarize_cli.evaluation.reading import read_tasks

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def other_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("models") / "other-bert", seed=1)


def comparison(*scores: tuple[float, float]) -> Any:
    """(teacher, student) per task, named a, b, …"""
    from ternarize_cli.evaluation.compare import Evaluation, Score, compare

    names = "abcdef"[: len(scores)]
    teacher, student = (
        Evaluation(who, who, 1, tuple(Score(n, "accuracy", 9, s[i]) for n, s in zip(names, scores, strict=True)))
        for i, who in enumerate(("teacher", "student"))
    )
    return compare([student], teacher)


def test_mean_retention_is_the_mean_of_the_ratios() -> None:
    result = comparison((0.8, 0.4), (0.5, 0.5))
    assert [t.retention for t in result.tasks[0]] == [0.5, 1.0]
    assert result.mean_retention() == 0.75


@pytest.mark.parametrize("teacher", [0.0, -0.1])
def test_a_teacher_at_or_below_zero_leaves_retention_undefined(teacher: float) -> None:
    result = comparison((teacher, 0.4), (0.5, 0.5))
    assert [t.retention for t in result.tasks[0]] == [None, 1.0]
    assert result.mean_retention() is None
    for gate in ("0.1", "a=0.1"):
        with pytest.raises(GateMissedError, match=rf"undefined \(the teacher scores {teacher:g} on a\)"):
            check(parse_gates([gate], ["a", "b"]), result)
    check(parse_gates(["b=1"], ["a", "b"]), result)


def test_a_mean_without_all_its_tasks_misses_its_gate() -> None:
    result = comparison((1.0, 0.9), (1.0, 0.8))
    with pytest.raises(GateMissedError, match="the mean retention lacks 1 task: STS12"):
        check(parse_gates(["0.1"], ["a", "b", "STS12"]), result, ["STS12"])
    check(parse_gates(["a=0.9"], ["a", "b", "STS12"]), result, ["STS12"])


def test_every_missed_gate_is_named() -> None:
    result = comparison((1.0, 0.9), (1.0, 0.8))
    check(parse_gates(["0.85", "a=0.9", "b=0.8"], ["a", "b"]), result)
    with pytest.raises(GateMissedError) as error:
        check(parse_gates(["0.86", "a=0.91", "b=0.8"], ["a", "b"]), result)
    assert str(error.value) == (
        "quality gate missed: the mean retention is 0.85, below 0.86; the retention on a is 0.9, below 0.91"
    )


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        (["98"], "'98' is not a number above 0 and at most 1"),
        (["nan"], "'nan' is not a number"),
        (["0"], "'0' is not a number above 0"),
        (["a=high"], "'high' is not a number"),
        (["c=0.9"], "there is no task 'c'"),
        (["0.9", "0.8"], "given twice for the mean"),
        (["a=0.9", "a=0.8"], "given twice for a"),
    ],
)
def test_gates_that_make_no_sense_are_refused(gates: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_gates(gates, ["a", "b"])


@pytest.fixture(scope="module")
def taught(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs scored by the tiny BERT itself, so that its Spearman is 1."""
    sentences = make_sentences()
    first, second = sentences[:30], sentences[30:]
    scores = cosines(load(tiny_bert), first, second)
    return write_pairs(tmp_path_factory.mktemp("data") / "taught.csv", list(zip(first, second, scores, strict=True)))


def test_eval_compares_with_a_teacher(run: Run, tiny_bert: Path, other_bert: Path, taught: Path) -> None:
    from scipy.stats import spearmanr

    from ternarize_cli.storage.digests import content_hash

    (data,) = read_tasks(sts=[taught])
    expected = spearmanr(cosines(load(other_bert), data.first, data.second), data.scores)[0]
    result = run(
        "eval", other_bert, "--against", tiny_bert, "--sts", taught, "--min-retention", "0.001", "--json", "-q"
    )
    assert (result.exit_code, result.stderr) == (0, "")
    payload = json.loads(result.stdout)
    (task,) = payload["tasks"]
    assert (task["name"], task["metric"], task["size"]) == ("taught", "cosine_spearman", 30)
    assert task["teacher"] == pytest.approx(1.0)
    assert task["student"] == pytest.approx(expected, abs=1e-6)
    assert payload["mean_retention"] == task["retention"] == pytest.approx(expected, abs=1e-6)
    assert payload["student"]["name"] == "other-bert"
    assert payload["student"]["content_hash"] == content_hash(other_bert)
    assert payload["teacher"]["weights_bytes"] == (tiny_bert / "model.safetensors").stat().st_size


def test_a_missed_gate_exits_3_after_the_results(run: Run, tiny_bert: Path, other_bert: Path, taught: Path) -> None:
    arguments = ("eval", other_bert, "--against", tiny_bert, "--sts", taught, "--min-retention", "taught=0.99")
    result = run(*arguments, "--json")
    assert result.exit_code == 3
    retention = json.loads(result.stdout)["tasks"][0]["retention"]
    assert f"the retention on taught is {retention:.6g}, below 0.99" in result.stderr
    result = run(*arguments)
    assert result.exit_code == 3
    assert f"{retention:.4f}" in result.stdout


def test_eval_of_one_model_has_scores_only(run: Run, tiny_bert: Path, taught: Path, tmp_path: Path) -> None:
    pages = write_retrieval(tmp_path / "pages")
    result = run("eval", tiny_bert, "--sts", taught, "--retrieval", pages, "--json", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    payload = json.loads(result.stdout)
    assert [(t["name"], t["teacher"], t["retention"]) for t in payload["tasks"]] == [
        ("taught", None, None),
        ("pages", None, None),
    ]
    assert payload["tasks"][0]["student"] == pytest.approx(1.0)
    assert payload["teacher"] is None
    assert payload["mean_retention"] is None
    table = run("eval", tiny_bert, "--sts", taught, "--quiet")
    assert (table.exit_code, table.stderr) == (0, "")
    assert "cosine_spearman" in table.stdout
    assert "1.0000" in table.stdout


def test_an_opposed_teacher_is_said_to_have_no_retention(
    run: Run, tiny_bert: Path, taught: Path, tmp_path: Path
) -> None:
    (data,) = read_tasks(sts=[taught])
    opposed = [(a, b, -s) for a, b, s in zip(data.first, data.second, data.scores, strict=True)]
    file = write_pairs(tmp_path / "opposed.csv", opposed)
    result = run("eval", tiny_bert, "--against", tiny_bert, "--sts", file, "--min-retention", "0.5")
    assert result.exit_code == 3
    assert "undefined" in result.stdout
    assert "opposed: the teacher scores -1.0000, so retention is undefined" in result.stderr
    assert "the mean retention is undefined (the teacher scores -1 on opposed)" in result.stderr


def test_a_folder_without_pooling_is_said_to_be_mean_pooled(
    run: Run, tiny_bert: Path, taught: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in tiny_bert.iterdir():
        if file.is_file() and file.name != "modules.json":
            (plain / file.name).write_bytes(file.read_bytes())
    result = run("eval", plain, "--sts", taught, "--json")
    assert result.exit_code == 0, result.stderr
    assert "token embeddings are mean-pooled" in result.stderr
    assert json.loads(result.stdout)["tasks"][0]["student"] == pytest.approx(1.0)


def test_eval_says_what_is_wrong_with_the_usage(run: Run, tiny_bert: Path, taught: Path) -> None:
    for arguments, message in [
        ((tiny_bert,), "there is no task to evaluate on"),
        ((tiny_bert, "--sts", taught, "--min-retention", "0.9"), "--min-retention compares with a teacher"),
        ((tiny_bert, "--sts", taught, "--queries-where", "seen=false"), "no --retrieval is given"),
        ((tiny_bert, "--sts", taught, "--against", tiny_bert, "--min-retention", "x=1"), "there is no task 'x'"),
        # a value is refused before any file is read
        (
            (tiny_bert, "--sts", "none.csv", "--against", tiny_bert, "--min-retention", "2"),
            "'2' is not a number above 0",
        ),
        ((tiny_bert, "--sts", tiny_bert / "none.csv"), "there is no file"),
        ((tiny_bert, "--sts", taught, "--results", tiny_bert), "--results and --data-root are for tasks of MTEB"),
        ((tiny_bert, "--sts", taught, "--plot", "a.png", "--junit", "a.png"), "name the same file"),
        ((tiny_bert, "--sts", taught, "--junit", taught, "--force"), "overlap"),
        ((tiny_bert, "--sts", taught, "--junit", tiny_bert / "config.json", "--force"), "overlap"),
        ((tiny_bert / "none", "--sts", taught), "there is no folder"),
    ]:
        result = run("eval", *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr


@pytest.mark.parametrize(
    ("name", "more"), [("STS12", ("--tasks", "STS12")), ("taught+case", ("--perturb", "case"))], ids=["MTEB", "noise"]
)
def test_a_file_named_like_another_task_is_refused(
    name: str, more: tuple[str, ...], run: Run, tiny_bert: Path, taught: Path, tmp_path: Path
) -> None:
    copy = tmp_path / f"{name}.csv"
    copy.write_bytes(taught.read_bytes())
    result = run("eval", tiny_bert, "--sts", taught, "--sts", copy, *more)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"two tasks are called '{name}'" in result.stderr


def test_the_longest_name_of_a_file_is_a_task(run: Run, tiny_bert: Path, taught: Path, tmp_path: Path) -> None:
    long = tmp_path / f"{80 * '很'}.csv"
    long.write_bytes(taught.read_bytes())
    result = run("eval", tiny_bert, "--sts", long, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["tasks"][0]["name"] == 80 * "很"


@pytest.mark.slow
def test_everything_in_one_command(run: Run, tiny_bert: Path, other_bert: Path, taught: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / f"found.{name}" for name in ("html", "png", "xml")}
    result = run(
        *("eval", other_bert, "--against", tiny_bert, "--sts", taught, "--candidate", tiny_bert),
        *("--rival", "vectors-binary", "--perturb", "case", "--diagnose", "--json"),
        *("--report", files["html"], "--plot", files["png"], "--junit", files["xml"]),
    )
    assert result.exit_code == 0, result.stderr
    payload = json.loads(result.stdout)
    assert [task["name"] for task in payload["tasks"]] == ["taught", "taught+case"]
    itself, binary = payload["candidates"][1:]
    assert (itself["name"], itself["mean_retention"], itself["mean_interval"]) == ("tiny-bert-2", 1.0, [1.0, 1.0])
    assert binary["name"] == "vectors-binary"
    assert 0 < binary["mean_retention"] < 1
    for model in (payload["teacher"], *payload["candidates"]):
        assert model["latency_ms"] > 0
        assert model["memory_bytes"] > 0
    assert payload["mean_retention"] == payload["tasks"][0]["retention"]  # of the task without noise
    assert payload["noisy_mean_retention"] == payload["tasks"][1]["retention"]
    low, high = payload["mean_interval"]
    assert low < payload["mean_retention"] < high
    assert [layer["name"] for layer in payload["diagnosis"]["layers"]] == ["embeddings", "1", "2"]
    assert "taught+case" in files["html"].read_text()
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert "<testsuite" in files["xml"].read_text()


def test_a_second_run_takes_scores_from_the_cache_and_another_model_does_not(
    run: Run, tiny_bert: Path, other_bert: Path, taught: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ternarize_cli.evaluation import run as session

    command = ("eval", tiny_bert, "--sts", taught, "--json", "-q")
    first = json.loads(run(*command).stdout)
    with monkeypatch.context() as patch:
        patch.setattr(session, "score", None)  # nothing is computed
        assert json.loads(run(*command).stdout) == first
    other = json.loads(run("eval", other_bert, "--sts", taught, "--json", "-q").stdout)
    assert other["tasks"][0]["student"] != first["tasks"][0]["student"]
    again = json.loads(run(*command, "--no-cache").stdout)
    assert again == first


@pytest.mark.real
def test_minilm_ranks_real_pairs(run: Run, minilm: Path, tmp_path: Path) -> None:
    rows = [
        ("A man is playing a guitar.", "A person plays an instrument.", 4.0),
        ("A dog runs through the snow.", "A dog is running in snow.", 5.0),
        ("The stock market fell today.", "A child eats an apple.", 0.0),
        ("She is slicing an onion.", "A woman cuts a vegetable.", 3.5),
        ("The train leaves at noon.", "Cats like to sleep.", 0.5),
    ]
    result = run("eval", minilm, "--sts", write_pairs(tmp_path / "pairs.csv", rows), "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["tasks"][0]["student"] > 0.8


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """24 bright and dark images to find neighbours among, 8 to label."""
    for part, count in (("train", 24), ("test", 8)):
        write_folder(tmp_path / "pictures" / part, make_pixels(count, seed=count), make_labels(count))
    return tmp_path / "pictures"


@pytest.mark.slow
def test_eval_of_images_prints_neighbours_accuracy_and_cosine(run: Run, tiny_vit: Path, pictures: Path) -> None:
    from ternarize_cli.encoders.loading import load_encoder

    other = save_tiny_vit(pictures.parent / "other-vit", seed=1)
    result = run("eval", other, "--against", tiny_vit, "--images", pictures, "--json", "-q")
    assert result.exit_code == 0
    task, probe = json.loads(result.stdout)["tasks"]
    assert (task["name"], task["metric"], task["size"]) == ("pictures", "knn_accuracy", 8)
    assert (probe["name"], probe["metric"], probe["size"]) == ("pictures-linear", "linear_accuracy", 8)
    for found in (task, probe):
        assert (found["teacher"], found["student"], found["retention"]) == (1.0, 1.0, 1.0)  # bright is far from dark
    a, b = (
        load_encoder(folder, device="cpu").encode(list(read_labelled(pictures, "test")), normalize_embeddings=True)
        for folder in (tiny_vit, other)
    )
    assert task["cosine"] == pytest.approx(float((a * b).sum(axis=1).mean()), abs=1e-5)
    table = run("eval", other, "--against", tiny_vit, "--images", pictures, "--limit", 4).stdout
    assert "knn_accuracy" in table
    assert "cosine" in table


def test_eval_of_a_model_with_itself_keeps_every_image_where_it_is(run: Run, tiny_vit: Path, pictures: Path) -> None:
    result = run("eval", tiny_vit, "--against", tiny_vit, "--images", pictures, "--json", "-q")
    task, _ = json.loads(result.stdout)["tasks"]
    assert task["cosine"] == pytest.approx(1.0)
    alone = run("eval", tiny_vit, "--images", pictures, "--json", "-q")
    task, _ = json.loads(alone.stdout)["tasks"]
    assert (task["cosine"], task["retention"], task["student"]) == (None, None, 1.0)


def test_images_that_are_left_out_are_named_before_anything_is_scored(
    run: Run, tiny_vit: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures / "train" / "0" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")

    def begin(*args: object, **options: object) -> None:
        raise InputError("scoring began")

    monkeypatch.setattr("ternarize_cli.evaluation.run.run", begin)
    told = run("eval", tiny_vit, "--images", pictures, "-q").stderr
    assert "broken.png" in told[told.index("warning: left out: ") : told.index("scoring began")]


@pytest.mark.slow
def test_a_source_without_parts_is_split_in_halves(run: Run, tiny_vit: Path, pictures: Path) -> None:
    source = pictures / "train"
    results = [run("eval", tiny_vit, "--images", source, "--json", "-q", "--seed", seed) for seed in (0, 0, 1)]
    payloads = [json.loads(result.stdout) for result in results]
    assert [payload["tasks"][0]["size"] for payload in payloads] == [12, 12, 12]
    digests = [payload["tasks"][0]["data_sha256"] for payload in payloads]
    assert digests[0] == digests[1] != digests[2]


def test_the_limit_draws_the_same_number_of_each_label(tmp_path: Path) -> None:
    for part, count in (("train", 60), ("test", 40)):
        write_folder(tmp_path / part, make_pixels(count), [int(i >= 10) for i in range(count)])
    task, _ = read_tasks(images=[tmp_path], limit=6, seed=3)
    assert Counter(task.queries.labels) == {"0": 3, "1": 3}
    assert Counter(task.neighbours.labels) == {"0": 10, "1": 20}  # as far as they reach
    again, _ = read_tasks(images=[tmp_path], limit=6, seed=3)
    assert again.sha256 == task.sha256


@pytest.mark.slow
def test_images_that_can_not_be_scored_are_refused(run: Run, tiny_vit: Path, tiny_bert: Path, pictures: Path) -> None:
    flat = write_folder(pictures.parent / "flat", make_pixels(4), None)
    one = write_folder(pictures.parent / "one", make_pixels(9), [0] * 9)
    few = write_folder(pictures.parent / "few", make_pixels(6), make_labels(6))
    unknown = pictures.parent / "unknown"
    write_folder(unknown / "train", make_pixels(8), make_labels(8))
    write_folder(unknown / "test", make_pixels(3), [0, 1, 2])
    half = pictures.parent / "half"
    write_folder(half / "val", make_pixels(8), make_labels(8))
    write_folder(half / "test", make_pixels(8), make_labels(8))
    for model, options, message in (
        (tiny_vit, ["--images", flat], "flat has images without labels"),
        (tiny_vit, ["--images", one], "every image has the label '0'"),
        (tiny_vit, ["--images", few], "4 images, fewer than the 5 neighbours that vote"),
        (tiny_vit, ["--images", unknown], "no image to find neighbours among has the label '2'"),
        (tiny_vit, ["--images", half], "neighbours come from a train part"),
        (tiny_vit, ["--images", pictures, "--limit", "0"], "--limit 0 leaves no image"),
        (tiny_vit, ["--limit", "5"], "there is no task"),
        (tiny_bert, ["--images", pictures], "tiny-bert reads text, not images"),
    ):
        result = run("eval", model, *options)
        assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
    pairs = write_pairs(pictures.parent / "pairs.csv", [("cat", "dog", 1.0), ("tree", "house", 2.0)])
    result = run("eval", tiny_vit, "--sts", pairs)
    assert result.exit_code == 2
    assert "tiny-vit reads images, not text" in result.stderr
    result = run("eval", tiny_bert, "--sts", pairs, "--limit", "5")
    assert result.exit_code == 2
    assert "--limit is for image tasks" in result.stderr
