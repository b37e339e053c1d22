"""A folder is checked before it is opened, what it holds decides what is made of it, and PyTorch is never imported."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.families import SMALL, TEXT, save_text, stages
from support.fused_families import needs_native
from support.heads import PAIRS, save_headed
from support.models import save_modules
from support.packed_models import TEXTS, merge, packed_text, variant
from ternarize_cli import load
from ternarize_cli.errors import CheckpointError, FormatError, UnavailableError
from ternarize_cli.format.scheme import Artifact, Scheme
from ternarize_cli.runtime import Classifier, Encoder, Reranker
from ternarize_cli.runtime.opening import open_model

pytestmark = needs_native
BERT = ("BertModel", "BertConfig", SMALL | TEXT)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed_text(BERT, tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reranker")
    return stages(save_headed(folder / "source"), folder)[2]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    return stages(save_headed(folder / "source", labels=3), folder)[2]


def test_the_kind_of_a_model_decides(encoder: Path, reranker: Path, classifier: Path, tmp_path: Path) -> None:
    assert type(open_model(encoder)) is Encoder
    assert type(open_model(str(reranker))) is Reranker
    assert type(open_model(classifier)) is Classifier
    settings = {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}
    ranks = variant(classifier, tmp_path / "ranks", lambda folder: merge(folder / "config.json", **settings))
    made = open_model(ranks)
    assert isinstance(made, Reranker)
    assert made.score(PAIRS).shape == (len(PAIRS), 3)


def test_a_sparse_encoder_is_refused(tmp_path: Path) -> None:
    source = save_headed(tmp_path / "source", "Bert", "MaskedLM")
    merge(source / "config_sentence_transformers.json", model_type="SparseEncoder")
    with pytest.raises(UnavailableError, match="is a sparse encoder"):
        open_model(stages(source, tmp_path)[2])


def test_models_that_are_not_packed_are_refused(encoder: Path) -> None:
    with pytest.raises(FormatError, match="is no packed model"):
        open_model(encoder.parent / "source")
    with pytest.raises(FormatError, match="is not packed"):
        open_model(encoder.parent / "latent")


@pytest.mark.parametrize("scheme", [Scheme(levels="int2"), Scheme(granularity="group", group_size=16)])
def test_other_codes_are_refused(scheme: Scheme, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="ternary or int4, by row and 8 bits run here"):
        open_model(packed_text(BERT, tmp_path, scheme))


def test_a_family_that_no_description_fits_is_refused(tmp_path: Path) -> None:
    source = save_text(("AlbertModel", "AlbertConfig", SMALL | TEXT | {"embedding_size": 16}), tmp_path / "source")
    save_modules(source, 32)
    with pytest.raises(UnavailableError, match="has no description of its blocks"):
        open_model(stages(source, tmp_path)[2])


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "1_Pooling/config.json", "config.json"])
def test_a_file_that_was_changed_is_refused(name: str, encoder: Path, tmp_path: Path) -> None:
    folder = variant(encoder, tmp_path / "changed", lambda folder: None)
    if name == "config.json":
        merge(folder / name, architectures=["OtherModel"])
    else:
        content = (folder / name).read_bytes()
        changed = content[:-1] + bytes([content[-1] ^ 1]) if name == "model.safetensors" else content + b"\n"
        (folder / name).write_bytes(changed)
    with pytest.raises(FormatError, match="is not what was packed"):
        open_model(folder)


def test_what_no_folder_may_ask_for_is_refused(encoder: Path, tmp_path: Path) -> None:
    settings = {"model_kwargs": {"subfolder": "elsewhere"}}
    folder = variant(encoder, tmp_path / "changed", lambda f: merge(f / "sentence_bert_config.json", **settings))
    with pytest.raises(CheckpointError, match="passes subfolder='elsewhere'"):
        open_model(folder)
    many = variant(encoder, tmp_path / "many", lambda f: merge(f / "config.json", num_hidden_layers=4000))
    with pytest.raises(CheckpointError, match="num_hidden_layers is 4000, and the weights files hold"):
        open_model(many)


@pytest.mark.parametrize("names", [[], {"a.weight": 3}, {"": "a"}, {"a..b": "a"}, {"a.weight": ""}, {"a": "b" * 201}])
def test_names_that_are_none_are_refused(names: Any) -> None:
    known = Artifact("packed", codec="2bit").to_dict()
    assert Artifact.from_dict({**known, "names": {"a.weight": "b.c"}}).names == {"a.weight": "b.c"}
    with pytest.raises(FormatError, match="names"):
        Artifact.from_dict({**known, "names": names})
    with pytest.raises(FormatError, match="torch_only is 3; it must be text"):
        Artifact.from_dict({**known, "torch_only": 3})


def test_names_and_reasons_are_written_only_where_there_are_any() -> None:
    plain = Artifact("packed", codec="2bit")
    assert not {"names", "torch_only"} & plain.to_dict().keys()
    full = Artifact("packed", codec="2bit", names={"a": "b"}, torch_only="it differs")
    assert Artifact.from_dict(full.to_dict()) == full


_ALONE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "sentence_transformers", "safetensors"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Absent())
for name in ("torch", "transformers"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} can be imported")

import json
import numpy as np
from ternarize_cli.runtime.opening import open_model

encoder, reranker, classifier, texts, pairs, output = sys.argv[1:]
texts, pairs = json.loads(texts), json.loads(pairs)
np.savez(
    output,
    vectors=open_model(encoder).encode(texts),
    scores=open_model(reranker).score(pairs),
    classes=open_model(classifier).classify(texts),
)
"""


def test_the_runtime_runs_where_pytorch_can_not_be_imported(
    encoder: Path, reranker: Path, classifier: Path, tmp_path: Path
) -> None:
    given = [encoder, reranker, classifier, json.dumps(TEXTS), json.dumps(PAIRS), tmp_path / "made.npz"]
    done = subprocess.run([sys.executable, "-c", _ALONE, *map(str, given)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made, native = np.load(tmp_path / "made.npz"), load(encoder, backend="native")
    assert np.array_equal(made["vectors"], native.encode(TEXTS))
    assert np.array_equal(made["scores"], Reranker(reranker).score(PAIRS))
    assert np.array_equal(made["classes"], Classifier(classifier).classify(TEXTS))
