"""Every text family that `native` runs in PyTorch runs without it, and gives the same vectors, bit for bit."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.families import Family
from support.fused_families import FUSED, name_of, needs_native
from support.models import add_dense, save_modules
from support.packed_models import TEXTS, Both, merge, packed_text, same, variant
from ternarize_cli import load
from ternarize_cli.errors import UnavailableError
from ternarize_cli.format.scheme import Scheme
from ternarize_cli.runtime import Encoder
from ternarize_cli.runtime.native.interface import POOLINGS
from ternarize_cli.storage.weights import ShardWriter, open_shards

pytestmark = needs_native
FAMILIES = [family for family in FUSED if "image_size" not in family[2]]
TRANSFORMER = {"path": "", "type": "sentence_transformers.models.Transformer"}
BY_NAME = {family[0].removesuffix("Model"): family for family in FAMILIES}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed_text(BY_NAME["Bert"], tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed_text(BY_NAME["Qwen3"], tmp_path_factory.mktemp("qwen3"))


@pytest.mark.parametrize("family", FAMILIES, ids=name_of)
def test_a_family_gives_the_vectors_of_native(family: Family, tmp_path: Path) -> None:
    packed = packed_text(family, tmp_path)
    made = same(packed)
    encoder = Encoder(packed)
    assert made.shape == (len(TEXTS), encoder.dim)
    for i in (0, 2, 5):
        assert np.array_equal(encoder.encode([TEXTS[i]])[0], made[i]), "a vector depends on its batch"


@pytest.mark.parametrize("bits", [4, 16, 32])
@pytest.mark.parametrize("name", ["Bert", "MPNet", "ModernBert", "Gemma3Text", "T5Encoder"])
def test_tables_of_any_width_give_the_vectors_of_native(name: str, bits: int, tmp_path: Path) -> None:
    same(packed_text(BY_NAME[name], tmp_path, Scheme(table_bits=bits)))


@pytest.mark.parametrize("codec", ["2bit", "base3"])
@pytest.mark.parametrize("granularity", ["row", "tensor"])
def test_codecs_and_scales_give_the_vectors_of_native(codec: str, granularity: str, tmp_path: Path) -> None:
    from ternarize_cli.compress.pack import pack

    packed_text(BY_NAME["Bert"], tmp_path, Scheme(granularity=granularity))
    pack(tmp_path / "latent", tmp_path / "again", codec=codec, check=False)
    same(tmp_path / "again")


@pytest.mark.parametrize("modes", [*POOLINGS, POOLINGS, ("max", "mean")], ids=str)
def test_every_pooling_with_and_without_the_prompt(modes: Any, bert: Path, tmp_path: Path) -> None:
    count = 1 if isinstance(modes, str) else len(modes)
    for includes in (True, False):

        def change(folder: Path, includes: bool = includes) -> None:
            pooling = {"embedding_dimension": 32, "pooling_mode": modes, "include_prompt": includes}
            (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
            merge(folder / "config_sentence_transformers.json", prompts={"search": "find: the ", "empty": ""})

        both = Both(variant(bert, tmp_path / str(includes), change))
        texts = [text for text in TEXTS if text]  # of an empty one, a prompt that is left out leaves nothing
        found = [both.same(texts, **how) for how in ({}, {"prompt_name": "search"}, {"prompt": "read [SEP]"})]
        assert found[0].shape == (len(texts), 32 * count)
        assert all((a != b).any() for a, b in pairwise(found))
        assert np.array_equal(both.same(texts, prompt_name="query"), found[0]), "sentence-transformers has this prompt"


def test_old_names_of_poolings_and_a_default_prompt(bert: Path, tmp_path: Path) -> None:
    def change(folder: Path) -> None:
        old = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(old))
        settings = {"prompts": {"a": "tree ", "b": None}, "default_prompt_name": "a"}
        merge(folder / "config_sentence_transformers.json", **settings)

    both = Both(variant(bert, tmp_path / "changed", change))
    assert np.array_equal(both.same(), both.same(prompt_name="a"))
    assert (both.same(prompt_name="b") != both.same()).any()


@pytest.mark.parametrize("keep", [False, True], ids=["packed", "kept"])
@pytest.mark.parametrize("activation", ["Tanh", "Identity"])
def test_dense_modules_packed_or_kept(keep: bool, activation: str, tmp_path: Path) -> None:
    import torch

    from support.families import save_text, stages

    source = save_text(BY_NAME["MPNet"], tmp_path / "source")
    save_modules(source, 32)
    add_dense(source, out_features=40, activation_function=getattr(torch.nn, activation)())
    add_dense(source, in_features=40, out_features=24, bias=False, activation_function=None)
    packed = stages(source, tmp_path, keep_dense=keep)[2]
    described = [json.loads((packed / part / "config.json").read_text()) for part in ("2_Dense", "3_Dense")]
    assert all(("quantization_config" in values) != keep for values in described)
    assert same(packed).shape == (len(TEXTS), 24)


def test_layer_norm_dropout_and_no_normalize(tmp_path: Path) -> None:
    import torch
    from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm

    def change(source: Path) -> None:
        norm = LayerNorm(32)
        torch.nn.init.normal_(norm.norm.weight)
        torch.nn.init.normal_(norm.norm.bias)
        modules = json.loads((source / "modules.json").read_text())[:2]
        for i, module in ((2, Dropout(0.5)), (3, norm)):
            kind = type(module)
            (source / f"{i}_{kind.__name__}").mkdir()
            module.save(str(source / f"{i}_{kind.__name__}"))
            name = f"{i}_{kind.__name__}"
            modules.append({"idx": i, "name": str(i), "path": name, "type": f"{kind.__module__}.{kind.__name__}"})
        (source / "modules.json").write_text(json.dumps(modules))

    made = same(packed_text(BY_NAME["Bert"], tmp_path, change=change))
    assert not np.allclose(np.linalg.norm(made, axis=1), 1)


@pytest.mark.parametrize("where", ["model", "call"])
def test_vectors_that_are_cut(where: str, bert: Path, tmp_path: Path) -> None:
    settings = {"truncate_dim": 20} if where == "model" else {}
    packed = variant(bert, tmp_path / "cut", lambda f: merge(f / "config_sentence_transformers.json", **settings))
    encoder = Encoder(packed)
    assert encoder.dim == (20 if where == "model" else 32)
    if where == "model":
        assert same(packed).shape[1] == 20
    wanted: Any = load(packed, backend="native").encode(TEXTS, truncate_dim=7)
    assert np.array_equal(encoder.encode(TEXTS, dimensions=7), wanted)


def test_a_residual_dense_is_refused_here_and_right_in_pytorch(tmp_path: Path) -> None:
    import torch

    packed = packed_text(
        BY_NAME["Bert"], tmp_path, change=lambda source: add_dense(source, out_features=32, use_residual=True)
    )
    encoder: Any = load(packed, backend="native")
    plain = encoder.encode(TEXTS[:2], output_value=None)
    features = encoder.preprocess(TEXTS[:2])
    with torch.inference_mode():
        pooled = encoder[1](encoder[0](features))["sentence_embedding"].clone()
        dense = encoder[2]
        wanted = torch.nn.functional.normalize(dense.activation_function(dense.linear(pooled)) + pooled)
    made = torch.stack([row["sentence_embedding"] for row in plain])
    assert torch.allclose(made, wanted, atol=1e-5)
    with pytest.raises(UnavailableError, match="2_Dense asks for use_residual"):
        Encoder(packed)


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("sentence_bert_config.json", {"config_kwargs": {"is_causal": False}}, "config_kwargs sets is_causal to False"),
        ("sentence_bert_config.json", {"model_args": {"torch_dtype": "float16"}}, "model_args sets torch_dtype"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"max_length": 9}}}, "sets max_length to 9"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "names the task 'fill-mask'"),
        (
            "sentence_bert_config.json",
            {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}},
            "'method_output_name': 'pooler_output'",
        ),
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}, "sets module_input_name to 'token_emb"),
        ("config.json", {"output_hidden_states": True}, "asks for output_hidden_states"),
        ("config.json", {"return_dict": False}, "asks for return_dict: false"),
        (
            "modules.json",
            [{"name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}],
            "has no module that pools",
        ),
        (
            "modules.json",
            [
                {"name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
                {"name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.WeightedLayerPooling"},
            ],
            "names the module WeightedLayerPooling at place 1",
        ),
    ],
)
def test_what_would_give_other_vectors_is_refused_by_name(
    file: str, values: Any, words: str, qwen3: Path, tmp_path: Path
) -> None:
    def change(folder: Path) -> None:
        if isinstance(values, dict):
            merge(folder / file, **values)
        else:
            (folder / file).write_text(json.dumps(values))

    with pytest.raises(UnavailableError, match=words):
        Encoder(variant(qwen3, tmp_path / "changed", change))


def test_settings_that_change_nothing_are_taken(bert: Path, tmp_path: Path) -> None:
    settings = {
        "config_args": {"attention_dropout": 0.5, "use_cache": False},
        "model_kwargs": {"dtype": "float32", "attn_implementation": "eager", "add_pooling_layer": False},
        "processing_kwargs": {"text": {"padding": True, "truncation": "longest_first"}},
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        "module_output_name": "token_embeddings",
        "query_length": 5,
    }
    same(variant(bert, tmp_path / "changed", lambda f: merge(f / "sentence_bert_config.json", **settings)))


@pytest.mark.parametrize("name", ["NomicBert", "Gte", "T5Encoder"])
def test_a_packed_model_whose_names_are_not_known_is_refused(name: str, tmp_path: Path) -> None:
    def forget(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        del config["quantization_config"]["names"]
        (folder / "config.json").write_text(json.dumps(config))

    packed = variant(packed_text(BY_NAME[name], tmp_path), tmp_path / "older", forget)
    with pytest.raises(UnavailableError, match="or has it by a name that is not known here") as caught:
        Encoder(packed)
    assert "pack the model again" in str(caught.value.hint)


def test_linears_that_stay_as_they_are_are_refused_by_name(tmp_path: Path) -> None:
    from support.families import save_text, stages

    source = save_text(BY_NAME["Bert"], tmp_path / "source")
    save_modules(source, 32)
    packed = stages(source, tmp_path, skip=["encoder.layer.1.output.dense"])[2]
    with pytest.raises(UnavailableError, match=r"encoder\.layer\.1\.output\.dense is not packed"):
        Encoder(packed)


@pytest.mark.slow
def test_biases_that_calibration_added_to_a_model_whose_tensors_are_renamed(corpus: Path, tmp_path: Path) -> None:
    from support.families import save_text
    from ternarize_cli.compress.convert import convert
    from ternarize_cli.compress.options import Calibration, ConvertOptions
    from ternarize_cli.compress.pack import pack

    source = save_text(BY_NAME["NomicBert"], tmp_path / "source")
    save_modules(source, 32)
    convert(source, tmp_path / "latent", None, ConvertOptions(check=False), calibration=Calibration((corpus,), 32))
    pack(tmp_path / "latent", tmp_path / "packed", check=False)
    described = json.loads((tmp_path / "packed" / "config.json").read_text())["quantization_config"]
    assert {f"{name}.bias" for name in described["added_biases"]} & described["names"].keys()
    same(tmp_path / "packed")


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_a_prefix_and_old_names_of_norms_are_found(prefix: str, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    def change(source: Path) -> None:
        renamed = {"cls.predictions.bias": torch.zeros(4)}
        for name, tensor in load_file(source / "model.safetensors").items():
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            renamed[prefix + old] = tensor
        save_file(renamed, source / "model.safetensors", metadata={"format": "pt"})

    packed = packed_text(BY_NAME["Bert"], tmp_path, change=change)
    assert "names" not in json.loads((packed / "config.json").read_text())["quantization_config"]
    same(packed)


def test_weights_in_several_files(bert: Path, tmp_path: Path) -> None:
    def split(folder: Path) -> None:
        with open_shards(folder) as (shard,):
            tensors = {key: shard.get(key) for key in shard.keys()}  # noqa: SIM118
        (folder / "model.safetensors").unlink()
        writer, keys = ShardWriter(folder), sorted(tensors)
        for i, some in enumerate((keys[::2], keys[1::2]), start=1):
            writer.write(f"model-0000{i}-of-00002.safetensors", {key: tensors[key] for key in some})
        writer.finish()

    assert np.array_equal(same(variant(bert, tmp_path / "shards", split)), same(bert))
