"""The runtime tokenises as transformers does, after `pack` has made sure of it; where it can't, it says so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from support.families import DECODER, SMALL, TEXT, Family, save_family, stages
from support.fused_families import needs_native
from support.models import save_modules
from support.packed_models import TEXTS, Both, merge, packed_text, same, variant
from ternarize_cli.compress import tokenizer_check
from ternarize_cli.errors import CheckpointError, InputError, UnavailableError
from ternarize_cli.runtime import Encoder

pytestmark = needs_native
SAMPLE = [*TEXTS, *tokenizer_check._TEXTS]
CORPUS = [
    "The cat SAT on the big red house by a river of stone.",
    "Ünïcödé naïve façade, Привет мир",
    "日本語の文、中文句子",
    "query: passage: file list open close 1234567890 !?.,;:()[]",
]
BERT: Family = ("BertModel", "BertConfig", SMALL | TEXT | {"vocab_size": 600})
ROBERTA: Family = ("RobertaModel", "RobertaConfig", SMALL | TEXT | {"vocab_size": 600, "pad_token_id": 1})
LLAMA: Family = ("LlamaModel", "LlamaConfig", DECODER | {"vocab_size": 600})
DISTILBERT: Family = (
    *("DistilBertModel", "DistilBertConfig"),
    TEXT | {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 600},
)


def trained(kind: str, special: list[str]) -> dict[str, Any]:
    """Trains a model of a tokenizer on a few sentences; returns what the tokenizers of transformers are made of."""
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special)
    elif kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>")
    elif kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
    else:
        made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        made.normalizer = normalizers.Replace(" ", "▁")
        pieces = [*special, *(f"<0x{i:02X}>" for i in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=pieces)
    made.train_from_iterator(CORPUS * 4, trainer)
    found = json.loads(made.to_str())["model"]
    if kind == "unigram":
        return {"vocab": [tuple(piece) for piece in found["vocab"]]}
    return {"vocab": found["vocab"]} | ({"merges": list(map(tuple, found["merges"]))} if "merges" in found else {})


def saved(family: Family, folder: Path, tokenizer: str, kind: str, special: str, **settings: Any) -> Path:
    """Saves a tiny model with a tokenizer of a class of transformers."""
    source = save_family(family, folder / "source")
    save_modules(source, 32)
    made = getattr(hf, tokenizer)(**trained(kind, special.split()), model_max_length=64, **settings)
    made.save_pretrained(source)
    return source


BERTS, ROBERTAS = "[PAD] [UNK] [CLS] [SEP] [MASK]", "<s> <pad> </s> <unk> <mask>"
CLASSES: dict[str, tuple[Family, str, str, str, dict[str, Any]]] = {
    "bert": (BERT, "BertTokenizer", "wordpiece", BERTS, {}),
    "bert-cased": (BERT, "BertTokenizer", "wordpiece", BERTS, {"do_lower_case": False}),
    "bert-accents": (
        *(BERT, "BertTokenizer", "wordpiece", BERTS),
        {"strip_accents": False, "tokenize_chinese_chars": False},
    ),
    "distilbert": (DISTILBERT, "DistilBertTokenizer", "wordpiece", BERTS, {}),
    "roberta": (ROBERTA, "RobertaTokenizer", "bytes", ROBERTAS, {}),
    "roberta-prefix": (ROBERTA, "RobertaTokenizer", "bytes", ROBERTAS, {"add_prefix_space": True}),
    "roberta-left": (ROBERTA, "RobertaTokenizer", "bytes", ROBERTAS, {"padding_side": "left"}),
    "xlm-roberta": (ROBERTA, "XLMRobertaTokenizer", "unigram", "<s> <pad> </s> <unk>", {}),
    "qwen2": (LLAMA, "Qwen2Tokenizer", "bytes", ROBERTAS, {"pad_token": "<pad>", "eos_token": "</s>"}),
    "t5": (LLAMA, "T5Tokenizer", "unigram", "<pad> </s> <unk>", {"extra_ids": 0}),
    "llama": (LLAMA, "LlamaTokenizer", "sentencepiece", "<unk> <s> </s> <pad>", {"pad_token": "<pad>"}),
    "llama-eos": (
        *(LLAMA, "LlamaTokenizer", "sentencepiece", "<unk> <s> </s> <pad>"),
        {"pad_token": "<pad>", "add_eos_token": True, "add_bos_token": False},
    ),
    "gemma": (LLAMA, "GemmaTokenizer", "sentencepiece", "<pad> <eos> <bos> <unk>", {}),
}


@pytest.mark.parametrize("name", CLASSES)
def test_the_tokenizers_of_transformers(name: str, tmp_path: Path) -> None:
    family, tokenizer, kind, special, settings = CLASSES[name]
    source = saved(family, tmp_path, tokenizer, kind, special, **settings)
    packed = stages(source, tmp_path)[2]
    assert (packed / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    both = Both(packed)
    both.same(SAMPLE)
    end = both.theirs.tokenizer.all_special_tokens[0]
    for prompt in ("find ", f"find {end}", "ÜÜÜ", ""):
        length = both.theirs.preprocess(["a"], prompt=prompt).get("prompt_length", 0)
        assert both.ours._text.tokenizer.prompt_tokens(prompt) * bool(prompt) == length


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def other_case(source: Path) -> None:
    edited(source / "tokenizer.json", lambda values: values["normalizer"].update(lowercase=False, strip_accents=False))
    edited(source / "tokenizer_config.json", lambda values: values.pop("do_lower_case"))


def more_tokens(source: Path) -> None:
    token = {"content": "river of", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    merge(source / "tokenizer_config.json", added_tokens_decoder={"590": {**token, "special": False}})


def vocabulary_alone(source: Path) -> None:
    vocabulary = json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]
    (source / "vocab.txt").write_text("".join(f"{word}\n" for word in sorted(vocabulary, key=vocabulary.__getitem__)))
    (source / "tokenizer.json").unlink()


@pytest.mark.parametrize("change", [other_case, more_tokens, vocabulary_alone])
def test_pack_writes_the_tokenizer_that_transformers_builds(change: Callable[[Path], None], tmp_path: Path) -> None:
    source = saved(BERT, tmp_path, "BertTokenizer", "wordpiece", BERTS)
    change(source)
    before = hf.AutoTokenizer.from_pretrained(source)(SAMPLE)["input_ids"]
    packed = stages(source, tmp_path)[2]
    old, new = source / "tokenizer.json", packed / "tokenizer.json"
    assert not old.is_file() or old.read_bytes() != new.read_bytes()
    assert hf.AutoTokenizer.from_pretrained(packed)(SAMPLE)["input_ids"] == before
    same(packed, [*SAMPLE, "a river of stone"])


def no_positions_named(source: Path) -> None:
    edited(source / "config.json", lambda values: values.pop("max_position_embeddings"))
    edited(source / "tokenizer_config.json", lambda values: values.pop("model_max_length"))


def types_for_no_table(source: Path) -> None:
    merge(source / "tokenizer_config.json", model_input_names=["input_ids", "token_type_ids", "attention_mask"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (no_positions_named, "transformers reads 2,048 tokens of a text, and its files say 16,777,216"),
        (types_for_no_table, "token types, which its model has no table for"),
    ],
)
def test_a_model_that_the_runtime_would_read_otherwise_says_so(
    change: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    source = saved(LLAMA, tmp_path, "LlamaTokenizer", "sentencepiece", "<unk> <s> </s> <pad>", pad_token="<pad>")
    change(source)
    packed = stages(source, tmp_path)[2]
    described = json.loads((packed / "config.json").read_text())["quantization_config"]
    assert words in described["torch_only"]
    with pytest.raises(UnavailableError, match=words):
        Encoder(packed)


@pytest.fixture(scope="module")
def packed_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    return stages(saved(BERT, folder, "BertTokenizer", "wordpiece", BERTS, do_lower_case=False), folder)[2]


@pytest.fixture(scope="module")
def packed_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, special = tmp_path_factory.mktemp("llama"), "<unk> <s> </s> <pad>"
    return stages(saved(LLAMA, folder, "LlamaTokenizer", "sentencepiece", special, pad_token="<pad>"), folder)[2]


@pytest.mark.parametrize(
    ("file", "values", "limit"),
    [
        ("tokenizer_config.json", {"truncation_side": "left"}, 64),
        ("sentence_bert_config.json", {"processor_kwargs": {"truncation_side": "left"}, "max_seq_length": 9}, 9),
        ("sentence_bert_config.json", {"tokenizer_args": {"model_max_length": 12}, "max_seq_length": 9}, 12),
        ("sentence_bert_config.json", {"max_seq_length": 9, "do_lower_case": True}, 9),
        ("sentence_bert_config.json", {"processor_kwargs": {"do_lower_case": True}}, 64),
        ("sentence_roberta_config.json", {"max_seq_length": 200}, 80),
        ("tokenizer_config.json", {"model_max_length": 1e30}, 80),
    ],
)
def test_lengths_sides_and_cases(
    file: str, values: dict[str, Any], limit: int, packed_bert: Path, tmp_path: Path
) -> None:
    both = Both(variant(packed_bert, tmp_path / "changed", lambda folder: merge(folder / file, **values)))
    assert both.ours.limit == both.theirs.max_seq_length == limit
    both.same(SAMPLE)
    both.same(["é" * 9000, " ".join(["house river"] * 9000), "x" * 30000 + " stone" * 400, "\n" * 20000 + "river"])


def test_padding_on_the_left_changes_nothing_where_positions_are_turned(packed_llama: Path, tmp_path: Path) -> None:
    found = []
    for side in ("left", "right"):
        settings = {"padding_side": side}
        packed = variant(packed_llama, tmp_path / side, lambda f, s=settings: merge(f / "tokenizer_config.json", **s))
        both = Both(packed)
        assert both.theirs.tokenizer.padding_side == side
        found.append(both.same(SAMPLE))
    assert (found[0] == found[1]).all()


def test_padding_on_the_left_of_learned_positions_is_refused(packed_bert: Path, tmp_path: Path) -> None:
    packed = variant(packed_bert, tmp_path / "left", lambda f: merge(f / "tokenizer_config.json", padding_side="left"))
    with pytest.raises(UnavailableError, match="pads texts on the left, and has a table of positions"):
        Encoder(packed)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ('{"model": null}', "it has no model"),
        ('{"model": {"type": "Nothing"}}', "is no tokenizer"),
    ],
)
def test_a_damaged_tokenizer(content: str, words: str, packed_bert: Path, tmp_path: Path) -> None:
    changed = variant(packed_bert, tmp_path / "changed", lambda f: (f / "tokenizer.json").write_text(content))
    with pytest.raises(CheckpointError, match=words):
        Encoder(changed)


def test_a_pattern_that_takes_too_many_steps_is_an_error_about_the_model(
    run: Callable[..., Any], packed_bert: Path, tmp_path: Path
) -> None:
    """The library tokenizers panics then, which is no Exception and would end a server's thread."""
    split = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}

    def change(folder: Path) -> None:
        merge(folder / "tokenizer.json", pre_tokenizer=split)
        merge(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")  # takes it as it is

    changed = variant(packed_bert, tmp_path / "changed", change)
    encoder = Encoder(changed)
    assert encoder.encode(["the cat"]).shape == (1, 32)
    with pytest.raises(CheckpointError, match=r"the model's tokenizer fails with a text: .*[Rr]etry"):
        encoder.encode(["the cat", "x" * 60])
    (tmp_path / "texts.txt").write_text("the cat\n" + "x" * 60 + "\n")
    result = run("encode", changed, tmp_path / "texts.txt")
    assert (result.exit_code, result.stderr.count("error: the model's tokenizer fails")) == (2, 1)
    assert "Traceback" not in result.stderr
    result = run("encode", changed, tmp_path / "texts.txt", "--backend", "reference")  # in PyTorch
    assert (result.exit_code, "Traceback" in result.stderr) == (2, False)
    assert "error: the model's tokenizer fails with a text" in result.stderr


def test_a_model_without_a_tokenizer_of_this_kind(packed_bert: Path, tmp_path: Path) -> None:
    changed = variant(packed_bert, tmp_path / "changed", lambda f: (f / "tokenizer.json").unlink())
    with pytest.raises(UnavailableError, match=r"has no tokenizer\.json"):
        Encoder(changed)


@pytest.mark.parametrize(("text", "words"), [(3, "3 is no text"), ("a\ud800b", "which is no character")])
def test_what_is_no_text_is_refused(text: Any, words: str, packed_bert: Path) -> None:
    with pytest.raises(InputError, match=words):
        Encoder(packed_bert).encode(["the cat", text])


def test_a_tokenizer_of_another_model_ends_in_words(tmp_path: Path) -> None:
    packed = packed_text(("BertModel", "BertConfig", SMALL | TEXT | {"vocab_size": 10}), tmp_path)
    with pytest.raises(InputError, match=r"a token has the id \d+, and the model's table has 10 rows"):
        Encoder(packed).encode(["the cat sat by the river"])
