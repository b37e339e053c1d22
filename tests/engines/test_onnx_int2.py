"""The rival `onnx-int2`: the codes of a packed model in ONNX Runtime's product of 2-bit weights."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from ternarize_cli.bench.candidates import BACKEND, BenchCandidate, relative_l2
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.options import ConvertOptions, SchemeOptions
from ternarize_cli.compress.pack import pack
from ternarize_cli.engines import baselines
from ternarize_cli.engines.inputs import random_batch
from ternarize_cli.errors import InputError
from ternarize_cli.measuring.timing import GridPoint

needs_onnx = pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="the extra `rivals` is not installed"
)


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize(("group", "source"), [(None, "tiny_bert"), (None, "tiny_vit"), (32, "tiny_bert")])
def test_the_packed_model_runs_in_onnx_runtime(
    group: int | None, source: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    granularity = "row" if group is None else f"group:{group}"
    scheme = SchemeOptions(granularity=granularity).scheme()
    convert(request.getfixturevalue(source), tmp_path / "t", scheme, ConvertOptions(check=False))
    pack(tmp_path / "t", tmp_path / "packed", check=False)
    rival = baselines.require_baseline("onnx-int2")
    path = rival.prepare(tmp_path / "packed")
    run = rival.load(path, "cpu")
    reference, _ = BenchCandidate("reference", BACKEND, tmp_path / "packed", "cpu").load()
    assert "products of 2-bit weights in blocks of" in rival.describe(path)
    assert group is None or "in blocks of 32," in rival.describe(path)
    with torch.inference_mode():
        for batch in (random_batch(tmp_path / "packed", GridPoint(n, 9), seed=0) for n in (1, 3)):
            assert relative_l2(run(*batch), reference(*batch)) < 0.1


def test_a_model_that_is_not_packed_is_refused(tiny_bert: Path) -> None:
    with pytest.raises(InputError, match=r"runs the codes of a packed model, and .* is none"):
        baselines.require_baseline("onnx-int2").prepare(tiny_bert)


@pytest.mark.slow
@needs_onnx
def test_codes_that_are_not_ternary_are_refused_in_words(tiny_bert: Path, tmp_path: Path) -> None:
    convert(tiny_bert, tmp_path / "t", SchemeOptions(levels="int4").scheme(), ConvertOptions(check=False))
    pack(tmp_path / "t", tmp_path / "packed", check=False)
    with pytest.raises(InputError, match=r"the codes of .* are int4, and onnx-int2 runs ternary ones"):
        baselines.require_baseline("onnx-int2").prepare(tmp_path / "packed")
