"""Models with a head keep it through every stage, or are refused in words; no stage ever makes a head up."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from sentence_transformers import CrossEncoder, SparseEncoder

from support.heads import PAIRS, save_headed, write_pairs
from support.instruction_sets import SETS, SHORT
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.dry_run import dry_run
from ternarize_cli.compress.options import Calibration, ConvertOptions
from ternarize_cli.compress.pack import pack
from ternarize_cli.encoders.heads import load_cross_encoder, load_sparse_encoder, load_with_head, logits, outputs
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.errors import CheckpointError, FormatError, InputError
from ternarize_cli.format.scheme import Scheme
from ternarize_cli.kernels.fused_encoder import FusedForward
from ternarize_cli.model_folder.model_kind import head_of, kind_of
from ternarize_cli.runtime.native.library import library

FAMILIES = ("Bert", "Roberta", "XLMRoberta", "DistilBert", "Electra", "DebertaV2", "ModernBert")
TEXTS = [first for first, _ in PAIRS[::4]] + [second for _, second in PAIRS[:4]]


def packed(source: Path, levels: str = "ternary") -> Path:
    convert(source, source.with_name("latent"), Scheme(levels=levels))
    pack(source.with_name("latent"), source.with_name("packed"))
    return source.with_name("packed")


def without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chooses instructions of the native library that compute all but products as the layers before packing do."""
    if SETS:
        monkeypatch.setattr(library(), "isa", next(i for i, name in enumerate(SETS) if name not in SHORT))


def scores(folder: Path) -> np.ndarray:
    return np.asarray(CrossEncoder(str(folder), device="cpu").predict(PAIRS, activation_fn=torch.nn.Identity()))


def weights(folder: Path) -> np.ndarray:
    encoder = SparseEncoder(str(folder), device="cpu")
    return encoder.encode(TEXTS, convert_to_sparse_tensor=False).numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_cross_encoder_scores_pairs_nearly_as_its_source(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_headed(tmp_path / "source", family)
    without_bfloat16(monkeypatch)
    before, after = scores(source), scores(packed(source, "int4"))
    assert spearmanr(before, after).statistic > 0.9
    assert abs(before - after).max() < 0.06 + 0.02 * abs(before).max()
    assert np.array_equal(after, scores(tmp_path / "packed"))
    assert abs(after - scores(tmp_path / "latent")).max() < 1e-5


@pytest.mark.parametrize("labels", [1, 3])
def test_a_folder_of_sentence_transformers_keeps_its_labels_and_its_activation(labels: int, tmp_path: Path) -> None:
    save_headed(tmp_path / "plain", labels=labels)
    CrossEncoder(str(tmp_path / "plain"), device="cpu").save_pretrained(str(tmp_path / "source"))
    assert kind_of(tmp_path / "source") == kind_of(packed(tmp_path / "source")) == "cross-encoder"
    teacher, student = (CrossEncoder(str(tmp_path / name), device="cpu") for name in ("source", "packed"))
    assert type(teacher.activation_fn) is type(student.activation_fn)
    assert student.predict(PAIRS).shape == teacher.predict(PAIRS).shape
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed")
    assert type(model.classifier) is torch.nn.Linear
    assert torch.equal(model.classifier.weight, teacher.model.classifier.weight)


def test_an_older_folder_with_its_activation_in_config_json_keeps_it(tmp_path: Path) -> None:
    source = save_headed(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.1.0"}
    (source / "config.json").write_text(json.dumps(config))
    assert isinstance(CrossEncoder(str(packed(source)), device="cpu").activation_fn, torch.nn.Identity)
    config["sentence_transformers"]["activation_fn"] = "torch.hub.load"
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"activation_fn is .torch\.hub\.load., no activation"):
        convert(source, tmp_path / "out")


def test_a_head_in_a_pickle_is_kept(tmp_path: Path) -> None:
    source = save_headed(tmp_path / "source")
    wanted = scores(source)
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    convert(source, tmp_path / "latent", Scheme(levels="int4"), ConvertOptions(allow_pickle=True))
    pack(tmp_path / "latent", tmp_path / "packed")
    assert spearmanr(wanted, scores(tmp_path / "packed")).statistic > 0.9


def test_the_encoder_of_a_packed_classifier_runs_fused(tmp_path: Path) -> None:
    model = load_cross_encoder(packed(save_headed(tmp_path / "source")))
    fused = logits(model, PAIRS)
    forward: Any = model.model.bert.forward
    if not isinstance(forward, FusedForward):
        pytest.skip("no backend of this machine runs fused")
    assert forward._encoder is not None
    del model.model.bert.forward
    assert abs(fused - logits(model, PAIRS)).max() < 0.05 * np.ptp(fused)


def test_the_plan_the_checkpoint_and_the_packed_model_agree_on_the_head(tmp_path: Path) -> None:
    source = save_headed(tmp_path / "source", "Roberta")
    foretold, done = dry_run(source), convert(source, tmp_path / "latent")
    report = pack(tmp_path / "latent", tmp_path / "packed")
    assert foretold.plan == done.plan
    assert foretold.bytes_packed["2bit"][8] == report.bytes_packed
    assert {"classifier.dense", "classifier.out_proj"} <= set(done.plan.excluded)
    assert "in the head" in done.plan.excluded["classifier.dense"]
    assert not [layer.name for layer in done.layers if layer.name.startswith("classifier")]


def test_a_missing_head_is_refused_at_every_stage(tmp_path: Path) -> None:
    source = save_headed(tmp_path / "source")
    folder = packed(source)
    for stage in (source, tmp_path / "latent", folder):
        tensors = load_file(stage / "model.safetensors")
        del tensors["classifier.weight"]
        save_file(tensors, stage / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"classifier\.weight is missing"):
        convert(source, tmp_path / "out")
    with pytest.raises(FormatError, match=r"classifier\.weight is missing"):
        pack(tmp_path / "latent", tmp_path / "out")
    with pytest.raises(FormatError, match="is not what was packed"):
        CrossEncoder(str(folder), device="cpu")
    assert not (tmp_path / "out").exists()


def test_an_encoder_that_calls_itself_a_cross_encoder_is_refused(tmp_path: Path, tiny_bert: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_bert, source)
    (source / "modules.json").unlink()
    (source / "config_sentence_transformers.json").write_text('{"model_type": "CrossEncoder"}')
    with pytest.raises(CheckpointError, match="class BertModel, which has no head for sequence-classification"):
        convert(source, tmp_path / "out")


def test_a_classifier_with_a_further_head_is_refused(tmp_path: Path) -> None:
    source = save_headed(tmp_path / "source")
    tensors = {**load_file(source / "model.safetensors"), "second_classifier.weight": torch.zeros(4, 32)}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"a further head, second_classifier\.weight"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("head", ["TokenClassification", "QuestionAnswering", "PreTraining"])
def test_of_other_heads_the_encoder_alone_is_taken_and_says_so(head: str, tmp_path: Path) -> None:
    source = save_headed(tmp_path / "source", "Bert", head)
    report = convert(source, tmp_path / "latent")
    assert any(f"config.json names BertFor{head}" in note for note in report.notes)
    assert json.loads((tmp_path / "latent" / "config.json").read_text())["architectures"] == ["BertModel"]
    assert load_encoder(tmp_path / "latent").encode(TEXTS).shape == (len(TEXTS), 32)


@pytest.mark.parametrize("family", ["Bert", "DistilBert", "Roberta", "ModernBert"])
def test_a_packed_sparse_encoder_weighs_tokens_nearly_as_its_source(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = save_headed(tmp_path / "plain", family, "MaskedLM")
    source = tmp_path / "source"
    SparseEncoder(str(plain), device="cpu").save_pretrained(str(source))
    without_bfloat16(monkeypatch)
    before, after = weights(source), weights(packed(source, "int4"))
    cosines = (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    assert before.max() > 0.1
    assert cosines.min() > 0.97
    assert abs(after - weights(tmp_path / "latent")).max() < 1e-5
    assert not [key for key in load_file(tmp_path / "packed" / "model.safetensors") if key.endswith("decoder.weight")]
    assert np.array_equal(after, outputs(load_with_head(tmp_path / "packed"), tmp_path / "packed", TEXTS))


def test_a_plain_masked_language_model_is_an_encoder(tmp_path: Path) -> None:
    source = save_headed(tmp_path / "source", "Bert", "MaskedLM")
    report = convert(source, tmp_path / "latent", Scheme(levels="int4"))
    assert any("if it is a sparse encoder (SPLADE), save it first" in note for note in report.notes)
    pack(tmp_path / "latent", tmp_path / "packed")
    assert (kind_of(tmp_path / "packed"), head_of(tmp_path / "packed")) == ("encoder", None)
    vectors = load_encoder(tmp_path / "packed").encode(TEXTS)
    wanted = load_encoder(source).encode(TEXTS)
    assert ((vectors * wanted).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(wanted, axis=1)).min() > 0.97


def test_rounding_alone_is_refused_where_it_costs_the_scores(tmp_path: Path, run: Any) -> None:
    ranks, plain = save_headed(tmp_path / "ranks"), save_headed(tmp_path / "plain", "Bert", "MaskedLM")
    SparseEncoder(str(plain), device="cpu").save_pretrained(str(tmp_path / "weighs"))
    for source, what in ((ranks, "a cross-encoder"), (tmp_path / "weighs", "a sparse encoder")):
        for more in ([], ["--dry-run"], ["--levels", "int2"]):
            result = run("convert", source, "-o", tmp_path / "out", *more)
            assert result.exit_code == 2
            assert f"is {what}, and rounding its weights" in result.stderr
            assert f"ternarize distill {source} --teacher {source} --data" in result.stderr
        assert run("convert", source, "-o", tmp_path / what, "--levels", "int4").exit_code == 0
    assert not (tmp_path / "out").exists()


def test_a_reranker_is_refused_before_any_note_and_work(tmp_path: Path, tiny_bert: Path, run: Any) -> None:
    ranks, pairs = save_headed(tmp_path / "ranks"), tmp_path / "pairs.csv"
    pairs.write_text("the cat,a cat,1\nthe cat,a dog,0\na dog,the dog,0.9\n")
    for command in (
        ("bench", ranks),
        ("eval", ranks, "--sts", pairs),
        ("eval", tiny_bert, "--against", ranks, "--sts", pairs),
    ):
        result = run(*command)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: {ranks} is a cross-encoder"), result.stderr


def test_models_of_another_kind_are_refused_with_what_to_do_instead(tmp_path: Path, tiny_bert: Path) -> None:
    ranks, weighs = save_headed(tmp_path / "ranks"), save_headed(tmp_path / "plain", "Bert", "MaskedLM")
    SparseEncoder(str(weighs), device="cpu").save_pretrained(str(tmp_path / "weighs"))
    for folder, why in ((ranks, "is a cross-encoder"), (tmp_path / "weighs", "is a sparse encoder")):
        with pytest.raises(CheckpointError, match=why) as refused:
            load_encoder(folder)
        assert str(folder) in str(refused.value.hint)
    for load in (load_cross_encoder, load_sparse_encoder):
        with pytest.raises(CheckpointError, match="is an encoder"):
            load(tiny_bert)
    with pytest.raises(InputError, match="a head over its vocabulary"):
        convert(tmp_path / "weighs", tmp_path / "out", options=ConvertOptions(trim=(str(ranks / "tokenizer.json"),)))


def test_calibration_on_pairs_keeps_more_of_a_cross_encoder_than_rounding(tmp_path: Path) -> None:
    source, pairs = save_headed(tmp_path / "source"), write_pairs(tmp_path / "pairs.csv")
    wanted = scores(source)
    rounded = abs(scores(packed(source)) - wanted).mean()
    convert(source, tmp_path / "calibrated", calibration=Calibration((pairs,)))
    assert abs(scores(tmp_path / "calibrated") - wanted).mean() < rounded


def test_a_classifier_that_no_class_in_the_config_has_is_refused(tmp_path: Path) -> None:
    source = save_headed(tmp_path / "source")
    config = json.loads((source / "config.json").read_text()) | {"architectures": ["BertModel"]}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"classifier\.\w+ belongs to a classifier beside the encoder"):
        convert(source, tmp_path / "out")
