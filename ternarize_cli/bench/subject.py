"""The model under test, in the two forms that a comparison needs: packed, and in full precision.

    MODEL is               packed form                    full-precision form (what the rivals run)
    a full-precision model convert and pack, in a         the model itself
                           temporary folder
    a ternary checkpoint   pack, in a temporary folder    twin of the packed form
    a packed model         the model itself               twin of the packed form
    none                   as for a full-precision model  BERT-base with random weights

A *twin* is the packed model with its codes multiplied out into fp32 matrices: the same shapes and so the same work,
because a dense forward pass takes as long for one set of values as for another. Everything goes through the real
`convert` and `pack`, so that bytes are those of files a user would get.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ternarize_cli import checkpoint, hf, models, weights
from ternarize_cli.convert import convert
from ternarize_cli.errors import CheckpointError, InputError
from ternarize_cli.pack import pack
from ternarize_cli.progress import Track, silent
from ternarize_cli.surgery import dequantize

__all__ = ["BERT_BASE_CHINESE", "Subject", "max_tokens", "prepare", "random_bert"]

BERT_BASE_CHINESE: dict[str, int] = {"vocab_size": 21128}
"""What a BERT-base config must say to have bert-base-chinese's shapes: the vocabulary; the rest is the default."""


@dataclass(frozen=True)
class Subject:
    """The folders of one model under test, and what the user should know about how they came to be.

    Attributes:
        name: what to call the model in a report.
        packed: the packed model.
        dense: the same model in full precision, as safetensors.
        notes: how the two came to be, a sentence each.
    """

    name: str
    packed: Path
    dense: Path
    notes: tuple[str, ...]


@contextmanager
def prepare(
    model: str | None,
    *,
    seed: int = 0,
    allow_pickle: bool = False,
    random_config: dict[str, int] = BERT_BASE_CHINESE,
    say: Callable[[str], None] = lambda text: None,
    track: Track = silent,
) -> Iterator[Subject]:
    """Yields the subject; the temporary folders are removed afterwards.

    Args:
        model: MODEL as users type it; None for random weights.
        seed: of the random weights.
        allow_pickle: read a MODEL that has only pickled weights.
        random_config: BERT config values of the random model.
        say: is told the subject's notes as they come up, before the work that each is about.
        track: progress of converting and packing.

    Raises:
        InputError: MODEL can't be found or read, or is no text encoder.
    """
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        say(text)

    hf.quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="ternarize-bench-") as name:
        work = Path(name)
        if model is None:
            note(f"no MODEL was given: measuring a BERT with random weights{_like(random_config)}")
            title, source = "random BERT", random_bert(work / "random", random_config, seed)
        else:
            title, source = models.model_name(model), models.resolve(model, allow_pickle=allow_pickle)
            _require_text_encoder(source)
        stage, packed, dense = checkpoint.stage(source), source, source
        if stage is None:
            if model is not None:
                note("the model is converted and packed for this run, without training: latency is all it shows")
            convert(source, work / "ternary", allow_pickle=allow_pickle, seed=seed, track=track)
            packed = _pack(work / "ternary", work / "packed", track)
            shutil.rmtree(work / "ternary")
        elif stage == "latent":
            note("the ternary checkpoint is packed for this run")
            packed = _pack(source, work / "packed", track)
        if stage is not None or not _has_safetensors(source):
            note("the rivals run the packed weights multiplied out to full width: same shapes, same work")
            dense = _write_twin(packed, work / "twin")
        yield Subject(title, packed, dense, tuple(notes))


def random_bert(folder: Path, config: dict[str, int], seed: int) -> Path:
    """Writes a BERT of that config with random weights and a tokenizer of as many made-up words into `folder`."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    settings = BertConfig(**config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(settings).save_pretrained(folder)
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = specials + [f"word{i}" for i in range(len(specials), settings.vocab_size)]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), specials, strict=True))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=settings.max_position_embeddings, **named
    ).save_pretrained(folder)
    return folder


def max_tokens(config: dict[str, Any]) -> int | None:
    """The longest sequence a model takes; None if its config sets no limit.

    RoBERTa's family counts positions from the padding id + 1 on, so that many of its positions are never used.
    """
    positions = config.get("max_position_embeddings")
    if positions is not None and config.get("model_type") in ("roberta", "xlm-roberta", "camembert"):
        return positions - config.get("pad_token_id", 1) - 1
    return positions


def _like(config: dict[str, int]) -> str:
    return ", in the shapes of bert-base-chinese" if config == BERT_BASE_CHINESE else f" ({config})"


def _require_text_encoder(folder: Path) -> None:
    if "vocab_size" not in checkpoint.read_config(folder):
        raise InputError(
            f"{folder} is no text encoder: its config.json has no vocab_size, and bench feeds token ids",
            hint="a BERT-type model, or no MODEL at all for a random BERT-base",
        )


def _pack(ternary: Path, output: Path, track: Track) -> Path:
    pack(ternary, output, track=track)
    return output


def _has_safetensors(folder: Path) -> bool:
    try:
        weights.weight_files(folder)
    except CheckpointError:  # pickled only, and allowed: convert has read it
        return False
    return True


def _write_twin(packed: Path, folder: Path) -> Path:
    encoder = models.load_encoder(packed, backend="reference", device="cpu")
    state = dequantize(encoder[0].auto_model).state_dict()
    folder.mkdir()
    wide = {name: (t.float() if t.is_floating_point() else t).clone() for name, t in state.items()}
    weights.ShardWriter(folder).write("model.safetensors", wide)
    config = checkpoint.read_config(packed) | {"dtype": "float32"}
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
