"""`convert` and `pack` open what they made before it gets its name; what is wrong is refused, and nothing is left."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.models import save_tiny_bert
from ternarize_cli.compress import convert as conversion
from ternarize_cli.compress import pack as packing
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.options import ConvertOptions
from ternarize_cli.compress.pack import pack
from ternarize_cli.compress.result_check import Reference, vectors_of, with_latent_weights
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.errors import CheckpointError, TernarizeError
from ternarize_cli.format.scheme import Scheme


def _changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def _shuffled(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if name.endswith("word_embeddings.weight"):
            tensors[name] = tensor.flip(0).contiguous()


@pytest.mark.parametrize("levels", ["ternary", "int4"])
def test_with_its_latent_weights_a_checkpoint_gives_the_vectors_of_its_source(
    tiny_bert: Path, tmp_path: Path, levels: str
) -> None:
    convert(tiny_bert, tmp_path / "made", Scheme(levels=levels), ConvertOptions(check=False))
    wanted = vectors_of(load_encoder(tiny_bert, device="cpu"), tiny_bert)["text"]
    made = load_encoder(tmp_path / "made", device="cpu")
    rounded = vectors_of(made, tmp_path)["text"]
    with with_latent_weights(made):
        assert abs(vectors_of(made, tmp_path)["text"] - wanted).max() < 1e-5
    assert abs(rounded - wanted).max() > 1e-2
    assert (vectors_of(made, tmp_path)["text"] == rounded).all()


@pytest.mark.parametrize("levels", ["ternary", "int4"])
def test_a_checkpoint_with_another_pooling_is_found_out(tiny_bert: Path, tmp_path: Path, levels: str) -> None:
    convert(tiny_bert, tmp_path / "made", Scheme(levels=levels), ConvertOptions(check=False))
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "made" / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(TernarizeError, match="with the source's weights its vectors of texts are away") as caught:
        Reference.of(tiny_bert).check(tmp_path / "made", latent=True)
    assert caught.value.exit_code == 1


def test_nothing_is_left_of_a_checkpoint_that_gives_other_vectors(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = conversion._write

    def wrong(source: Any, output: Path, *rest: Any, **options: Any) -> Any:
        reports = written(source, output, *rest, **options)
        _changed(output, _shuffled)
        return reports

    monkeypatch.setattr(conversion, "_write", wrong)
    with pytest.raises(TernarizeError, match="is wrong"):
        convert(tiny_bert, tmp_path / "made")
    assert list(tmp_path.iterdir()) == []
    convert(tiny_bert, tmp_path / "made", options=ConvertOptions(check=False))


def test_nothing_is_left_of_a_packed_model_that_gives_other_vectors(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(tiny_bert, tmp_path / "made")
    sealed = packing.integrity.seal

    def wrong(folder: Path) -> Any:
        _changed(folder, _shuffled)
        return sealed(folder)

    monkeypatch.setattr(packing.integrity, "seal", wrong)
    with pytest.raises(TernarizeError, match="its vectors of texts are away from the source's"):
        pack(tmp_path / "made", tmp_path / "packed")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_source_that_does_not_encode_is_refused_before_anything_is_written(
    tmp_path: Path, run: Callable[..., Any]
) -> None:
    source = save_tiny_bert(tmp_path / "source")
    settings = json.loads((source / "tokenizer.json").read_text())
    nothing = {"type": "Replace", "pattern": {"Regex": r"[\s\S]+"}, "content": ""}
    settings |= {"normalizer": nothing, "post_processor": None}  # no text has a token
    (source / "tokenizer.json").write_text(json.dumps(settings))
    done = run("convert", source, "-o", tmp_path / "made")
    assert done.exit_code == 2
    assert "does not encode a short text" in done.stderr or "can't be loaded" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_folder_without_tokenizer_is_converted_with_a_note(tiny_bert: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_bert / name, source)
    report = convert(source, tmp_path / "made")
    assert any("no vectors were compared" in note for note in report.notes)


def test_a_dry_run_opens_no_model(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]) -> None:
    monkeypatch.setattr(Reference, "of", None)
    assert run("convert", tiny_bert, "--dry-run").exit_code == 0


def test_a_model_that_draws_random_numbers_is_refused(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.bert.modeling_bert import BertEmbeddings

    plain = BertEmbeddings.forward
    monkeypatch.setattr(
        BertEmbeddings, "forward", lambda *args, **kwargs: (x := plain(*args, **kwargs)) + torch.randn_like(x)
    )
    with pytest.raises(CheckpointError, match="another vector for the same text each time"):
        convert(tiny_bert, tmp_path / "made")


def test_a_result_that_safetensors_can_not_open_is_said_to_be_unchecked(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ternarize_cli.model_folder.integrity._noted", set())
    convert(tiny_bert, tmp_path / "checkpoint")
    assert not caplog.records
    convert(tiny_bert, tmp_path / os.fsdecode(b"checkpoint\xff"))
    (record,) = caplog.records
    assert "not opened and compared with its source: safetensors opens no file whose path" in record.getMessage()
