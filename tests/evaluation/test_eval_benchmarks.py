"""MTEB's tasks: chosen by name, benchmark, language and type; scored on data that stand in for the hub's."""

import json
import random
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support.models import WORDS
from ternarize_cli.errors import CheckpointError, DataError, InputError, OutputError

Encoder = Callable[[], Any]
LCQMC, T2 = "C-MTEB/LCQMC", "mteb/T2Retrieval"


@pytest.fixture(autouse=True)
def _private_data_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` prepares, and what the hub's client finds, is this test's own."""
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "prepared")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def sentences(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 9))) for _ in range(count)]


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> None:
    from datasets import Dataset

    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns).to_parquet(path)


def write_card(folder: Path, configs: dict[str, dict[str, str]]) -> None:
    """The README.md of a repository on the hub: which files are which split of which configuration."""
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, path in splits.items():
            lines += [f"  - split: {split}", f"    path: {path}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def write_lcqmc(folder: Path, *, seed: int = 0, splits: tuple[str, ...] = ("train", "test")) -> Path:
    for split in splits:
        pairs = {"sentence1": sentences(20, seed), "sentence2": sentences(20, seed + 100)}
        scores = [random.Random(seed + i).randint(0, 1) for i in range(20)]
        write_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", pairs | {"score": scores})
    write_card(folder, {"default": {split: f"data/{split}-*" for split in splits}})
    return folder


def write_t2(folder: Path) -> Path:
    texts = sentences(30, 1)
    corpus = {"_id": [f"d{i}" for i in range(30)], "title": [""] * 30, "text": texts}
    queries = {"_id": [f"q{i}" for i in range(10)], "text": [text.rpartition(" ")[0] for text in texts[:10]]}
    judged = {"query-id": queries["_id"], "corpus-id": corpus["_id"][:10], "score": [1] * 10}
    for config, rows in {"corpus": corpus, "queries": queries, "qrels": judged}.items():
        write_parquet(folder / config / "dev-00000-of-00001.parquet", rows)
    write_card(folder, {config: {"dev": f"{config}/dev-*"} for config in ("corpus", "queries", "qrels")})
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_lcqmc(tmp_path / "data" / LCQMC)
    write_t2(tmp_path / "data" / T2)
    return tmp_path / "data"


@pytest.fixture
def encoder(tiny_bert: Path) -> Encoder:
    from ternarize_cli.encoders.loading import load_encoder
    from ternarize_cli.evaluation.encoder import LocalEncoder

    return lambda: LocalEncoder(load_encoder(tiny_bert, device="cpu"), name="tiny-bert", content_hash="c" * 64)


def choose(*args: Any, **kwargs: Any) -> Any:
    from ternarize_cli.evaluation.benchmarks import choose

    return choose(*args, **kwargs)


def score(*args: Any, **kwargs: Any) -> Any:
    from ternarize_cli.evaluation.benchmarks import score_benchmark

    return score_benchmark(*args, **kwargs)


def names(tasks: Any) -> list[str]:
    return [task.metadata.name for task in tasks]


@pytest.mark.slow
def test_the_chinese_benchmark_has_31_tasks() -> None:
    tasks = choose(benchmark="MTEB(cmn, v1)")
    assert len(set(names(tasks))) == len(tasks) == 31
    assert {"T2Retrieval", "LCQMC", "TNews", "CLSClusteringS2S", "Ocnli"} <= set(names(tasks))


def test_languages_and_types_choose_among_tasks_and_benchmarks() -> None:
    pairs = names(choose(benchmark=["MTEB(cmn, v1)"], task_types=["STS"]))
    assert sorted(pairs) == ["AFQMC", "ATEC", "BQ", "LCQMC", "PAWSX", "QBQTC", "STSB"]
    assert names(choose(["STSBenchmark", "LCQMC", "LCQMC"], "MTEB(cmn, v1)", languages=["eng"])) == ["STSBenchmark"]
    for language in ("zh", "zho", "zho-Hans", "cmn"):
        assert {"LCQMC", "BQ"} <= set(names(choose(languages=[language], task_types=["STS"])))


def test_a_macrolanguage_means_its_standard_variety_too() -> None:
    chinese = names(choose(languages=["zh"], task_types=["PairClassification"]))
    for alone in ("zho", "cmn"):
        assert set(names(choose(languages=[alone], task_types=["PairClassification"]))) <= set(chinese)
    (task,) = choose(["STS22.v2"], languages=["zh"])
    assert sorted(task.hf_subsets) == ["zh", "zh-en"]


@pytest.mark.slow
def test_all_tasks_of_a_language_are_of_texts_or_images() -> None:
    assert all(set(task.metadata.modalities) <= {"text", "image"} for task in choose(languages=["deu"]))


@pytest.mark.parametrize(
    ("wrong", "message", "near"),
    [
        ({"tasks": ["LCQNC"]}, "no task 'LCQNC'", "LCQMC"),
        ({"tasks": ["t2retrieval"]}, "no task 't2retrieval'", "T2Retrieval"),
        ({"benchmark": "MTEB(cmn)"}, "no benchmark 'MTEB(cmn)'", "MTEB(cmn, v1)"),
        ({"languages": ["zhh-"], "tasks": ["LCQMC"]}, "no language 'zhh-'", "zh"),
        ({"languages": ["chinese"], "tasks": ["LCQMC"]}, "no language 'chinese'", "zho (Chinese)"),
        ({"task_types": ["Retreival"]}, "no type of task 'Retreival'", "Retrieval"),
        ({}, "no MTEB task is named", "--tasks"),
        (
            {"benchmark": "MTEB(cmn, v1)", "languages": ["en"]},
            "no task of MTEB(cmn, v1) is in en",
            "name fewer languages or types",
        ),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(wrong: dict[str, Any], message: str, near: str) -> None:
    with pytest.raises(InputError) as error:
        choose(**wrong)
    assert message in str(error.value)
    assert near in (error.value.hint or "")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LCQMC", "T2Retrieval"])
def test_the_score_is_that_of_plain_mteb_on_the_same_data(
    encoder: Encoder, tiny_bert: Path, root: Path, name: str
) -> None:
    import mteb
    from sentence_transformers import SentenceTransformer

    from ternarize_cli.evaluation.encoder import quiet_mteb

    (task,) = choose([name], data_root=root)
    ((found,), missing) = score(encoder, [task])
    plain = mteb.get_task(name)
    plain.metadata = task.metadata
    with quiet_mteb(), warnings.catch_warnings(action="ignore"):  # MTEB warns of its own calls
        expected = mteb.evaluate(SentenceTransformer(str(tiny_bert), device="cpu"), plain, cache=None)
    assert missing == ()
    assert found.value == pytest.approx(expected.task_results[0].get_score(), abs=1e-6)
    assert 0 < abs(found.value) < 1
    assert (found.task, found.metric) == (name, plain.metadata.main_score)
    assert found.size == {"LCQMC": 20, "T2Retrieval": 10}[name]
    assert found.samples.value() == pytest.approx(found.value, abs=1e-6)
    assert len(found.samples.values) == found.size


@pytest.mark.slow
def test_missing_data_are_reported_and_the_others_go_on(encoder: Encoder, root: Path) -> None:
    tasks = choose(["BQ", "LCQMC", "CovidRetrieval"], data_root=root)
    scores, missing = score(encoder, tasks)
    assert [s.task for s in scores] == ["LCQMC"]
    assert [(m.task, m.dataset) for m in missing] == [("BQ", "C-MTEB/BQ"), ("CovidRetrieval", "mteb/CovidRetrieval")]
    assert missing[0].reason == "Couldn't reach 'C-MTEB/BQ' on the Hub (OfflineModeIsEnabled)"
    for part in (
        "hf download C-MTEB/BQ --repo-type dataset --revision e3dda5e115e487b39ec7e618c0c6a29137052a55",
        "HF_HOME",
        "--data-root",
    ):
        assert part in missing[0].how


def test_an_aggregate_names_the_part_that_is_missing(encoder: Encoder) -> None:
    scores, (missing,) = score(encoder, choose(["CQADupstackRetrieval"]))
    assert scores == ()
    assert (missing.task, missing.dataset) == ("CQADupstackRetrieval", "mteb/CQADupstackAndroidRetrieval")


def test_a_model_of_texts_is_not_asked_about_images(encoder: Encoder) -> None:
    scores, (missing,) = score(encoder, choose(["CIFAR10"]))
    assert scores == ()
    assert missing.reason == "its data are image, and tiny-bert reads text"


@pytest.mark.slow
def test_a_folder_in_the_wrong_layout_says_so(encoder: Encoder, tmp_path: Path) -> None:
    write_lcqmc(tmp_path / "split" / LCQMC, splits=("train",))
    write_parquet(tmp_path / "column" / LCQMC / "test.parquet", {"first": ["a"], "second": ["b"], "score": [1]})
    (tmp_path / "empty" / LCQMC).mkdir(parents=True)
    for name, reason in (("split", "no split 'test'"), ("column", "sentence1"), ("empty", "data file")):
        scores, (missing,) = score(encoder, choose(["LCQMC"], data_root=tmp_path / name))
        assert scores == ()
        assert missing.dataset == str(tmp_path / name / LCQMC)
        assert reason in missing.reason
    with pytest.raises(DataError, match="none is no folder"):
        choose(["LCQMC"], data_root=tmp_path / "none")


@pytest.mark.slow
def test_a_folder_without_a_card_is_read_by_the_names_of_its_files(encoder: Encoder, root: Path) -> None:
    import pyarrow.parquet as pq

    expected = score(encoder, choose(["LCQMC"], data_root=root))
    rows = pq.read_table(next(root.rglob("test-*"))).to_pylist()
    folder = root / "jsonl" / LCQMC
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert score(encoder, choose(["LCQMC"], data_root=root / "jsonl")) == expected


@pytest.mark.slow
def test_a_snapshot_of_the_hub_is_read_offline(encoder: Encoder, tmp_path: Path) -> None:
    (task,) = choose(["LCQMC"])
    revision = task.metadata.dataset["revision"]
    write_lcqmc(tmp_path / "hub" / "datasets--C-MTEB--LCQMC" / "snapshots" / revision)
    (found,), missing = score(encoder, [task], results=tmp_path / "results")
    assert (missing, found.size) == ((), 20)
    (file,) = (tmp_path / "results").rglob("LCQMC.json")
    assert json.loads(file.read_text())["dataset_revision"] == revision


@pytest.mark.slow
def test_mteb_reads_the_results(
    encoder: Encoder, tiny_bert: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mteb
    from mteb.models.model_implementations import MODEL_REGISTRY

    from ternarize_cli.evaluation.model_meta import model_meta

    loaded = encoder()
    loaded.mteb_model_meta = meta = model_meta(tiny_bert, "tiny-bert", "c" * 64, loaded.model)
    tasks = choose(["LCQMC", "T2Retrieval"], data_root=root)
    scores, _ = score(lambda: loaded, tasks, results=tmp_path / "results")
    folder = tmp_path / "results" / "results" / "local__tiny-bert" / ("c" * 64)
    assert {"LCQMC.json", "T2Retrieval.json"} <= {path.name for path in folder.iterdir()}
    written = json.loads((folder / "model_meta.json").read_text())
    assert {key: written[key] for key in ("n_parameters", "memory_usage_mb", "embed_dim")} == {
        "n_parameters": meta.n_parameters,
        "memory_usage_mb": meta.memory_usage_mb,
        "embed_dim": 32,
    }
    results = mteb.ResultCache(tmp_path / "results").load_results(tasks="MTEB(cmn, v1)")
    (found,) = results.model_results
    assert (found.model_name, found.model_revision) == ("local/tiny-bert", "c" * 64)
    values = {s.task: s.value for s in scores}
    assert {r.task_name: r.get_score() for r in found.task_results} == pytest.approx(values, abs=1e-5)
    assert {r.dataset_revision for r in found.task_results} == {t.metadata.dataset["revision"] for t in tasks}
    monkeypatch.setitem(MODEL_REGISTRY, meta.name, meta)
    (row,) = results.get_benchmark_result().to_dict("records")
    assert (row["Model"], row["Embedding Dimensions"], row["Max Tokens"]) == ("local/tiny-bert", 32, 64)
    assert (row["STS"], row["Retrieval"]) == pytest.approx((values["LCQMC"], values["T2Retrieval"]), abs=1e-5)


def test_results_that_can_not_be_kept_are_said_to_be_so(encoder: Encoder, root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can't keep results in"):
        score(encoder, choose(["LCQMC"], data_root=root), results=tmp_path / "file")


def test_scores_that_are_known_are_not_computed_again(encoder: Encoder, root: Path, tmp_path: Path) -> None:
    from ternarize_cli.evaluation.score_cache import ScoreCache, score_key

    def untouched() -> Any:
        raise AssertionError("the model was loaded")

    cache, key = ScoreCache(tmp_path / "scores"), partial(score_key, model="c" * 64, backend="auto", device="cpu")
    tasks = choose(["LCQMC", "BQ"], data_root=root)
    first, missing = score(encoder, tasks[:1], cache=cache, key=key)
    assert (first, missing) == score(untouched, tasks[:1], cache=cache, key=key)
    with pytest.raises(AssertionError, match="the model was loaded"):
        score(untouched, tasks[:1], cache=cache, key=partial(key, model="d" * 64))
    with pytest.raises(AssertionError, match="the model was loaded"):
        score(untouched, tasks, cache=cache, key=key)  # what was missing may be there by now
    write_lcqmc(root / LCQMC, seed=5)
    changed = choose(["LCQMC"], data_root=root)
    with pytest.raises(AssertionError, match="the model was loaded"):
        score(untouched, changed, cache=cache, key=key)
    assert score(encoder, changed, cache=cache, key=key)[0][0].value != first[0].value


@pytest.mark.slow
def test_a_known_score_is_computed_again_where_its_result_is_missing(
    encoder: Encoder, root: Path, tmp_path: Path
) -> None:
    from ternarize_cli.evaluation.score_cache import ScoreCache, score_key

    cache, key = ScoreCache(tmp_path / "scores"), partial(score_key, model="c" * 64, backend="auto", device="cpu")
    tasks, results = choose(["LCQMC"], data_root=root), tmp_path / "results"
    first = score(encoder, tasks, cache=cache, key=key)
    for _ in range(2):
        assert score(encoder, tasks, cache=cache, key=key, results=results) == first
        (file,) = results.rglob("LCQMC.json")
        file.unlink()
    assert score(encoder, tasks, cache=cache, key=key, results=results) == first
    written = file.stat().st_mtime_ns
    assert score(encoder, tasks, cache=cache, key=key, results=results) == first
    assert file.stat().st_mtime_ns == written


@pytest.mark.slow
def test_the_order_of_tasks_does_not_change_their_scores(encoder: Encoder, root: Path) -> None:
    tasks = choose(["LCQMC", "T2Retrieval"], data_root=root)
    assert score(encoder, tasks)[0] == score(encoder, tasks[::-1])[0][::-1]


def test_a_broken_model_stops_the_run(encoder: Encoder, root: Path) -> None:
    import torch

    broken = encoder()
    with torch.no_grad():
        next(broken.model.parameters()).fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        score(lambda: broken, choose(["LCQMC"], data_root=root))


def test_a_hub_that_is_out_of_reach_is_asked_once(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from mteb.abstasks import AbsTask

    asked: list[str] = []

    def load_data(self: AbsTask, **kwargs: Any) -> None:
        if datasets.config.HF_HUB_OFFLINE:
            raise ConnectionError("offline")
        asked.append(self.metadata.name)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(AbsTask, "load_data", load_data)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    _, missing = score(encoder, choose(["BQ", "LCQMC", "ATEC"]))
    assert [m.reason for m in missing] == ["no route to host", "offline", "offline"]
    assert asked == ["BQ"]
    assert datasets.config.HF_HUB_OFFLINE is False


def test_the_meta_of_a_packed_model_says_what_it_weighs(run: Any, tiny_bert: Path, tmp_path: Path) -> None:
    from ternarize_cli.compress.inspect import inspect
    from ternarize_cli.encoders.loading import load_encoder
    from ternarize_cli.evaluation.model_meta import model_meta
    from ternarize_cli.storage.digests import content_hash

    run("convert", tiny_bert, "-o", tmp_path / "latent", "-q")
    run("pack", tmp_path / "latent", "-o", tmp_path / "packed", "-q")
    metas = {}
    for folder in (tiny_bert, tmp_path / "packed"):
        digest = content_hash(folder)
        metas[folder.name] = meta = model_meta(folder, folder.name, digest, load_encoder(folder, device="cpu"))
        assert (meta.name, meta.revision) == (f"local/{folder.name}", digest)
        assert meta.n_parameters == inspect(folder).parameters
        stored = (folder / "model.safetensors").stat().st_size
        assert meta.memory_usage_mb == pytest.approx(stored / 1024**2, abs=1e-3)
        assert (meta.embed_dim, meta.max_tokens, meta.modalities) == (32, 64, ["text"])
        assert meta.similarity_fn_name == "cosine"
        assert meta.model_type == ["dense"]
        json.dumps(meta.to_dict(), default=str)
    full, packed = metas["tiny-bert"], metas["packed"]
    assert full.n_parameters == packed.n_parameters
    assert full.n_embedding_parameters == packed.n_embedding_parameters == 32 * (5 + len(set(WORDS)))
    assert packed.memory_usage_mb < full.memory_usage_mb
    assert (full.adapted_from, packed.adapted_from) == (None, "tiny-bert")


def test_the_meta_of_an_image_model_knows_no_tokens(tiny_vit: Path) -> None:
    from ternarize_cli.encoders.loading import load_encoder
    from ternarize_cli.evaluation.model_meta import model_meta

    meta = model_meta(tiny_vit, "tiny-vit", "d" * 64, load_encoder(tiny_vit, device="cpu"))
    assert (meta.modalities, meta.max_tokens, meta.n_embedding_parameters, meta.embed_dim) == (
        ["image"],
        None,
        None,
        32,
    )
