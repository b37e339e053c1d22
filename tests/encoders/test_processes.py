"""A packed model in several processes, as sentence-transformers, datasets, joblib and torch start them."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from support.families import SMALL, TEXT, save_text, stages
from support.warm import shared
from ternarize_cli.errors import InputError

TEXTS = ["the cat", "a house by the river", "fire", "the the the the the"] * 6
PROGRAM = f"""
import sys
from concurrent.futures import ThreadPoolExecutor
import datasets, joblib, numpy, torch
from sentence_transformers import SentenceTransformer

TEXTS = {TEXTS!r}

class Vectors(torch.utils.data.Dataset):
    def __len__(self):
        return len(TEXTS)

    def __getitem__(self, i):
        return torch.tensor(model.encode(TEXTS[i]))

def rows(batch):
    return {{"vector": model.encode(batch["text"])}}

if __name__ == "__main__":
    torch.set_num_threads(2)
    model = SentenceTransformer(sys.argv[2], device="cpu")
    expected = model.encode(TEXTS)
    match sys.argv[1]:
        case "devices":  # which starts a pool
            made = model.encode(TEXTS, device=["cpu", "cpu"], chunk_size=5)
        case "map":
            mapped = datasets.Dataset.from_dict({{"text": TEXTS}}).map(rows, batched=True, batch_size=5, num_proc=2)
            made = numpy.float32(mapped["vector"])
        case "joblib":
            made = numpy.stack(joblib.Parallel(2)(joblib.delayed(model.encode)(text) for text in TEXTS))
        case "dataloader":
            made = torch.cat(list(torch.utils.data.DataLoader(Vectors(), batch_size=4, num_workers=2))).numpy()
    assert numpy.array_equal(made, expected)
"""


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The ternary checkpoint and the packed model of a tiny BERT."""
    folder = tmp_path_factory.mktemp("bert")
    _, ternary, packed = stages(save_text(("BertModel", "BertConfig", SMALL | TEXT), folder / "source"), folder)
    return ternary, packed


@pytest.mark.slow
@pytest.mark.parametrize("how", ["devices", "map", "joblib", "dataloader"])
def test_processes_give_the_same_vectors(how: str, artifacts: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = shared().run(how, artifacts[1], program=tmp_path / "program.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_copies_and_pickles_give_the_same_vectors_and_share_what_was_shared(artifacts: tuple[Path, Path]) -> None:
    encoder: Any = SentenceTransformer(str(artifacts[1]), device="cpu")
    blocks = encoder[0].model.encoder.layer
    blocks[1].attention.self.query.weight = blocks[0].attention.self.query.weight
    expected = encoder.encode(TEXTS)
    for made in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert np.array_equal(made.encode(TEXTS), expected)
        first, second = (block.attention.self.query.weight for block in made[0].model.encoder.layer)
        assert first.data_ptr() == second.data_ptr()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_trainer_refuses_a_packed_model(artifacts: tuple[Path, Path], tmp_path: Path) -> None:
    def train(model: Path) -> None:
        encoder = SentenceTransformer(str(model), device="cpu")
        settings = SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path), max_steps=1, report_to=[], use_cpu=True
        )
        pairs = Dataset.from_dict({"anchor": TEXTS[:4], "positive": TEXTS[:4]})
        loss = MultipleNegativesRankingLoss(encoder)
        SentenceTransformerTrainer(encoder, settings, train_dataset=pairs, loss=loss).train()

    with pytest.raises(InputError, match="can't be trained"):
        train(artifacts[1])
    train(artifacts[0])


def test_threads_that_call_a_model_first_together_get_the_same_vectors(artifacts: tuple[Path, Path]) -> None:
    expected = SentenceTransformer(str(artifacts[1]), device="cpu").encode(TEXTS)
    encoder = SentenceTransformer(str(artifacts[1]), device="cpu")
    together = Barrier(4)

    def encode(_: int) -> Any:
        together.wait()
        return encoder.encode(TEXTS)

    with ThreadPoolExecutor(4) as pool:
        assert [np.array_equal(made, expected) for made in pool.map(encode, range(4))] == [True] * 4
