"""Rerankers and classifiers without PyTorch score as CrossEncoder does on backend `native`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from sentence_transformers import CrossEncoder

from support.families import DECODER, SMALL, TEXT, stages
from support.fused_families import needs_native
from support.heads import PAIRS
from support.models import save_word_tokenizer
from support.packed_models import merge, variant
from ternarize_cli.encoders.heads import load_cross_encoder
from ternarize_cli.errors import CheckpointError, InputError, UnavailableError
from ternarize_cli.runtime import Classifier, Reranker, Tokens

pytestmark = needs_native
LONG = [("the cat in a tree " * 20, "a dog"), ("", "read the file " * 30), ("ÜNÏ the 日本", "")]
ALL = [*PAIRS, *LONG]
WIDE = SMALL | TEXT | {"head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("Bert", "Roberta", "XLMRoberta", "Camembert", "MPNet", "ModernBert", "Ernie"), SMALL | TEXT),
    **dict.fromkeys(("NomicBert", "Gte"), WIDE),
    **dict.fromkeys(("EuroBert", "Qwen3", "Llama", "Mistral", "Gemma3Text"), DECODER),
    "Electra": SMALL | TEXT | {"embedding_size": 32},
    "DistilBert": TEXT | {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
}


def saved(family: str, folder: Path, labels: int = 1, **settings: Any) -> Path:
    """Saves a tiny model for sequence classification whose outputs differ clearly from input to input."""
    source = folder / "source"
    kind = getattr(hf, f"{family}ForSequenceClassification")
    torch.manual_seed(0)
    model = kind(kind.config_class(**{**FAMILIES[family], "num_labels": labels, **settings}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
            else:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(source)
    save_word_tokenizer(source)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    typed = getattr(model.config, "type_vocab_size", 0) > 1
    merge(source / "tokenizer_config.json", model_input_names=names if typed else ["input_ids", "attention_mask"])
    return source


def packed(family: str, folder: Path, labels: int = 1, **settings: Any) -> Path:
    return stages(saved(family, folder, labels, **settings), folder)[2]


def native(folder: Path) -> Any:
    model: Any = load_cross_encoder(folder, backend="native")
    inner = getattr(model.model, model.model.base_model_prefix)
    assert type(inner.forward).__name__ == "NativeForward"
    return model


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed("Bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed("Bert", tmp_path_factory.mktemp("classifier"), 3)


@torch.inference_mode()
@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_reranker_scores_as_cross_encoder(family: str, labels: int, tmp_path: Path) -> None:
    folder = packed(family, tmp_path, labels)
    model, reranker = native(folder), Reranker(folder)
    for raw in (False, True):
        wanted = model.predict(ALL, **({"activation_fn": torch.nn.Identity()} if raw else {}))
        made = reranker.score(ALL, raw=raw)
        assert made.dtype == np.float32
        assert made.shape == wanted.shape == ((len(ALL),) if labels == 1 else (len(ALL), 3))
        assert abs(made - wanted).max() < 1e-5
        assert np.ptp(made) > 1e-3
    inner: Any = getattr(model.model, model.model.base_model_prefix)
    features = {name: value for name, value in model.preprocess(ALL).items() if isinstance(value, torch.Tensor)}
    hidden = inner(**{n: v for n, v in features.items() if n in model[0]._declared_forward_params}).last_hidden_state
    own, _ = reranker._blocks(reranker.pairs(ALL))
    assert np.array_equal(own, hidden[features["attention_mask"].bool()].numpy()), "the encoder differs"


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("ModernBert", {"classifier_pooling": "mean", "classifier_activation": "relu", "classifier_bias": True}),
        ("ModernBert", {"classifier_activation": "silu", "norm_bias": True, "norm_eps": 1e-3}),
        *(("EuroBert", {"classifier_pooling": pooling}) for pooling in ("bos", "mean", "late")),
    ],
    ids=str,
)
def test_what_a_config_says_of_a_head(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    folder = packed(family, tmp_path, **settings)
    wanted, made = native(folder).predict(ALL), Reranker(folder).score(ALL)
    assert abs(wanted - made).max() < 1e-5
    assert np.ptp(made) > 1e-4


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_decoder_is_read_at_the_last_token_that_does_not_pad(side: str, tmp_path: Path) -> None:
    source = saved("Qwen3", tmp_path, pad_token_id=3)
    merge(source / "tokenizer_config.json", pad_token="[SEP]", padding_side=side)
    folder = stages(source, tmp_path)[2]
    reranker = Reranker(folder)
    wanted, made = native(folder).predict(ALL), reranker.score(ALL)
    assert abs(wanted - made).max() < 1e-5
    assert np.ptp(made) > 1e-3
    nothing = Tokens([], [])
    assert np.array_equal(reranker.logits([nothing, *reranker.pairs(PAIRS), nothing])[[0, -1]], np.zeros((2, 1)))


def test_a_decoder_whose_padding_is_taken_for_a_token_is_refused(tmp_path: Path) -> None:
    folder = packed("Qwen3", tmp_path, pad_token_id=3)
    with pytest.raises(UnavailableError, match="pads with the token 0, and its head takes 3 for padding"):
        Reranker(folder)
    left = variant(folder, tmp_path / "left", lambda f: merge(f / "tokenizer_config.json", padding_side="left"))
    assert abs(native(left).predict(ALL) - Reranker(left).score(ALL)).max() < 1e-5


@pytest.mark.parametrize("labels", [1, 3])
def test_a_folder_of_sentence_transformers(labels: int, tmp_path: Path) -> None:
    CrossEncoder(str(saved("Bert", tmp_path / "plain", labels)), device="cpu").save_pretrained(str(tmp_path / "source"))
    settings = {"prompts": {"search": "find the "}, "default_prompt_name": "search"}
    merge(tmp_path / "source" / "config_sentence_transformers.json", **settings)
    folder = stages(tmp_path / "source", tmp_path)[2]
    model, reranker = native(folder), Reranker(folder)
    assert abs(model.predict(ALL) - reranker.score(ALL)).max() < 1e-5
    bare = reranker.score(ALL, prompt="")
    assert abs(model.predict(ALL, prompt="") - bare).max() < 1e-5
    assert abs(bare - reranker.score(ALL)).max() > 1e-4


@pytest.mark.parametrize("name", ["Identity", "Sigmoid", "Tanh", "ReLU", "GELU", "SiLU"])
@pytest.mark.parametrize("key", ["sentence_transformers", "sbert_ce_default_activation_function"])
def test_the_activation_that_a_config_names(name: str, key: str, bert: Path, tmp_path: Path) -> None:
    path = f"torch.nn.modules.activation.{name}" if name != "Identity" else "torch.nn.modules.linear.Identity"
    value = {"activation_fn": path} if key == "sentence_transformers" else path
    folder = variant(bert, tmp_path / "changed", lambda f: merge(f / "config.json", **{key: value}))
    wanted = CrossEncoder(str(folder), device="cpu").predict(ALL)
    assert abs(wanted - Reranker(folder).score(ALL)).max() < 1e-5


def test_an_activation_that_is_not_known_is_refused(bert: Path, tmp_path: Path) -> None:
    settings = {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Softplus"}}
    folder = variant(bert, tmp_path / "changed", lambda f: merge(f / "config.json", **settings))
    with pytest.raises(UnavailableError, match="has the activation Softplus"):
        Reranker(folder)


@torch.inference_mode()
def test_a_classifier_reads_texts_and_pairs(classifier: Path) -> None:
    model, own = native(classifier), Classifier(classifier)
    texts = ["the cat", "", "a big red house by the river " * 9, "water"]
    scores = model(model.preprocess(texts))["scores"].numpy()
    assert own.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert (own.kind, own.limit, own.reads) == ("classifier", 64, {"text"})
    assert abs(own.classify(texts) - scores).max() < 1e-5
    mixed = own.classify(["the cat", ("read the file", "water"), ""])
    assert np.array_equal(mixed[[0, 2]], own.classify(["the cat", ""]))
    assert np.array_equal(mixed[1], Reranker(classifier).score([("read the file", "water")])[0])
    assert np.array_equal(own.logits(own.tokenize(texts)), own.classify(texts, raw=True))
    assert own.classify([]).shape == (0, 3)


def test_labels_have_the_names_in_the_config(tmp_path: Path) -> None:
    names = {0: "no", 1: "perhaps", 2: "yes"}
    folder = packed("Roberta", tmp_path, 3, id2label=names, label2id={v: k for k, v in names.items()})
    assert Classifier(folder).labels == ("no", "perhaps", "yes")
    for i, wrong in enumerate(({"0": "no"}, {"0": "no", "1": 1, "2": "yes"}, {"0": "no", "1": "a", "7": "yes"})):
        other = variant(folder, tmp_path / str(i), lambda f, w=wrong: merge(f / "config.json", id2label=w))
        with pytest.raises(CheckpointError, match="id2label does not name the 3 outputs"):
            Classifier(other)


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("tokenizer_config.json", {"padding_side": "left"}, "pads texts on the left"),
        ("config.json", {"model_type": "deberta-v2"}, "has the head of 'deberta-v2'"),
        ("config.json", {"output_attentions": True}, "asks for output_attentions"),
    ],
)
def test_what_would_give_other_scores_is_refused(
    file: str, values: dict[str, Any], words: str, bert: Path, tmp_path: Path
) -> None:
    folder = variant(bert, tmp_path / "changed", lambda f: merge(f / file, **values))
    with pytest.raises(UnavailableError, match=words):
        Reranker(folder)


def test_a_head_that_reads_the_first_token_is_refused_where_padding_comes_first(tmp_path: Path) -> None:
    folder = packed("ModernBert", tmp_path)
    left = variant(folder, tmp_path / "left", lambda f: merge(f / "tokenizer_config.json", padding_side="left"))
    with pytest.raises(UnavailableError, match="pads on the left, and its head reads the first token"):
        Reranker(left)


def test_modules_behind_a_cross_encoder_are_refused(bert: Path, tmp_path: Path) -> None:
    kinds = [("", "Transformer"), ("1_Dense", "Dense")]
    modules = [{"name": path, "path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds]
    folder = variant(bert, tmp_path / "more", lambda f: (f / "modules.json").write_text(json.dumps(modules)))
    with pytest.raises(UnavailableError, match="names the module Dense at place 1"):
        Reranker(folder)


@pytest.mark.parametrize("pair", ["text", ("a",), ("a", "b", "c"), ("a", 3), 7])
def test_what_is_no_pair_is_refused(pair: Any, bert: Path) -> None:
    with pytest.raises(InputError, match=r"is no pair of texts|is no text"):
        Reranker(bert).score([("a", "b"), pair])
    with pytest.raises(InputError, match="takes a list"):
        Classifier(bert).classify("a text")
