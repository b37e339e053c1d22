"""Weights files, read and written a tensor at a time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ternarize_cli.storage import weights

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def every_dtype() -> dict[str, torch.Tensor]:
    """Tensors of every dtype, of sizes that leave nothing aligned, and of none."""
    tensors = {f"{name}.weight": torch.arange(3).to(dtype) for name, dtype in weights.DTYPES.items()}
    tensors |= {"scalar": torch.tensor(1.5), "nothing": torch.empty(0, 4), 'é "quoted"': torch.ones(2, 3).T}
    return tensors


def test_a_shard_has_the_bytes_that_safetensors_writes(tmp_path: Path) -> None:
    tensors = every_dtype()
    weights.ShardWriter(tmp_path).write("model.safetensors", tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors", "theirs"]


def test_tensors_come_back_as_they_were_whatever_the_order(tmp_path: Path) -> None:
    tensors = every_dtype()
    writer = weights.ShardWriter(tmp_path)
    with writer.shard("model.safetensors") as shard:
        for key in reversed(tensors):
            shard.add(key, tensors[key])
    writer.finish()
    with weights.open_shards(tmp_path) as (shard,):
        assert shard.keys() == sorted(tensors)
        for key, tensor in tensors.items():
            back = shard.get(key)
            assert shard.shape(key) == tuple(tensor.shape)
            assert weights.DTYPES[shard.dtype(key)] == tensor.dtype == back.dtype
            raw, expected = (t.contiguous().reshape(-1).view(torch.uint8) for t in (back, tensor))
            assert torch.equal(raw, expected)


def test_the_index_names_shards_and_counts_the_bytes_of_tensors(tmp_path: Path) -> None:
    writer = weights.ShardWriter(tmp_path)
    writer.write(FIRST, {"a": torch.zeros(5), "b": torch.zeros(3, dtype=torch.uint8)})
    writer.write("model-00003-of-00003.safetensors", {})
    writer.write(SECOND, {"c": torch.zeros(2, 2, dtype=torch.float16)})
    writer.finish()
    assert json.loads((tmp_path / "model.safetensors.index.json").read_text()) == {
        "metadata": {"total_size": 20 + 3 + 8},
        "weight_map": {"a": FIRST, "b": FIRST, "c": SECOND},
    }
    assert writer.bytes == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert [path.name for path in weights.weight_files(tmp_path)] == [FIRST, SECOND]


def test_one_shard_under_a_name_of_shards_keeps_its_index(tmp_path: Path) -> None:
    writer = weights.ShardWriter(tmp_path)
    writer.write("model-00001-of-00001.safetensors", {"a": torch.zeros(5)})
    writer.finish()
    assert len(weights.weight_files(tmp_path)) == 1


def test_a_shard_that_fails_half_way_leaves_no_data_behind(tmp_path: Path) -> None:
    writer = weights.ShardWriter(tmp_path)
    with pytest.raises(NotImplementedError):
        writer.write("model.safetensors", {"a": torch.zeros(5), "b": torch.zeros(5, device="meta")})
    assert list(tmp_path.iterdir()) == []


def test_pickled_shards_are_read_like_others(tmp_path: Path) -> None:
    tensors = {f"{i}.weight": torch.full((3, 2), float(i)) for i in range(4)}
    names = list(tensors)
    weight_map = {}
    for i, keys in enumerate((names[:2], names[2:]), start=1):
        file = f"pytorch_model-0000{i}-of-00002.bin"
        torch.save({k: tensors[k] for k in keys}, tmp_path / file)
        weight_map |= dict.fromkeys(keys, file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with weights.open_shards(tmp_path, allow_pickle=True) as shards:
        assert [shard.name for shard in shards] == [FIRST, SECOND]
        found = {key: shard.get(key) for shard in reversed(shards) for key in reversed(shard.keys())}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_all_finite_sees_one_bad_value(dtype: torch.dtype) -> None:
    tensor = torch.linspace(-100, 100, 1001, dtype=dtype)
    assert weights.all_finite(tensor)
    assert weights.all_finite(torch.empty(0, dtype=dtype))
    for bad in (float("nan"), float("inf"), float("-inf")):
        changed = tensor.clone()
        changed[700] = bad
        assert not weights.all_finite(changed)


COPY = """
import resource, sys
from pathlib import Path
from ternarize_cli.storage import weights
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source, target = map(Path, sys.argv[1:])
writer = weights.ShardWriter(target)
with weights.open_shards(source) as shards:
    for shard in shards:
        with writer.shard(shard.name) as out:
            for key in shard.keys():
                out.add(key, shard.get(key))
writer.finish()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_copying_a_checkpoint_needs_memory_for_one_tensor(tmp_path: Path) -> None:
    each = 1 << 22  # values of a tensor, 16 MiB; the checkpoint has 256 MiB
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    writer = weights.ShardWriter(source)
    for file in (FIRST, SECOND):
        writer.write(file, {f"{file[6:11]}.{i}": torch.full((each,), float(i)) for i in range(8)})
    writer.finish()
    done = subprocess.run([sys.executable, "-c", COPY, source, target], capture_output=True, text=True, check=True)
    unit = 1024 if sys.platform == "linux" else 1  # of ru_maxrss
    assert int(done.stdout) * unit < 2.5 * 4 * each
    assert load_file(target / SECOND)["00002.7"][-1] == 7.0
