"""`convert --trim-vocabulary`: fewer tokens, the same embeddings."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from support.models import WORDS, save_modules, save_tiny_bert, save_word_tokenizer
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.options import ConvertOptions
from ternarize_cli.compress.pack import pack
from ternarize_cli.distill import Sources, Training, distill
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.errors import CheckpointError, DataError, TernarizeError
from ternarize_cli.tokenizers.tokenizer_files import TokenizerFile

SPECIALS = {"pad": "<pad>", "unk": "<unk>", "bos": "<s>", "eos": "</s>", "mask": "<mask>"}
USED = WORDS[::3]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def sentences(words: list[str], count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(words, k=draw.randint(1, 9))) for _ in range(count)]


def roberta_specials() -> list[str]:
    return ["<s>", "<pad>", "</s>", "<unk>"]


def train(kind: str) -> Tokenizer:
    """A tokenizer of some 300 tokens, trained on all WORDS."""
    specials = [*roberta_specials(), "<mask>"]
    if kind == "wordpiece":
        specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
    elif kind in ("unigram", "unigram-tied"):
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=specials, unk_token="<unk>", show_progress=False, max_piece_length=6
        )
    elif kind == "bpe-bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=420, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        )
    elif kind == "bpe-suffix":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=specials, end_of_word_suffix="</w>", show_progress=False
        )
    tokenizer.train_from_iterator(sentences(WORDS, 400, 0) + WORDS, trainer)
    ends = ("[SEP]", 3), ("[CLS]", 2)
    if kind == "wordpiece":
        tokenizer.post_processor = processors.BertProcessing(*ends)
    elif kind == "bpe-bytes":
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    return tokenizer


def save_model(folder: Path, kind: str) -> Path:
    """A tiny encoder with a tokenizer of a kind, as a sentence-transformers folder with a prompt."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    wide = {"initializer_range": 0.15, **SIZES}
    if kind == "wordlevel":
        count = save_word_tokenizer(folder)
    else:
        tokenizer = train(kind)
        count = tokenizer.get_vocab_size() + 3  # tables are often longer than the vocabulary
        names = {f"{k}_token": v for k, v in SPECIALS.items()}
        if kind == "wordpiece":
            names = {f"{k}_token": f"[{k.upper()}]" for k in ("pad", "unk", "cls", "sep", "mask")}
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    if kind in ("wordlevel", "wordpiece"):
        BertModel(BertConfig(vocab_size=count, max_position_embeddings=64, **wide)).save_pretrained(folder)
    elif kind == "unigram-tied":
        config = T5Config(vocab_size=count, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
        T5EncoderModel(config).save_pretrained(folder)
    else:
        config_class, model = (
            (XLMRobertaConfig, XLMRobertaModel) if kind == "unigram" else (RobertaConfig, RobertaModel)
        )
        model(config_class(vocab_size=count, max_position_embeddings=66, **wide)).save_pretrained(folder)
    if kind == "unigram":  # the class that transformers rebuilds from a vocabulary
        change(folder / "tokenizer_config.json", tokenizer_class="XLMRobertaTokenizer")
        (folder / "sentencepiece.bpe.model").write_bytes(b"a trained model")
    save_modules(folder, 32)
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "find: "}}))
    return folder


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def corpus(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """A corpus of a third of the words."""
    return corpus(tmp_path / "used.txt", [*USED, *sentences(USED, 50, 1)])


@pytest.fixture(scope="module", params=["wordlevel", "wordpiece", "unigram", "unigram-tied", "bpe-bytes", "bpe-suffix"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("vocabularies") / request.param, request.param)


def ids_of(folder: Path, text: str) -> list[int]:
    return AutoTokenizer.from_pretrained(folder)(text)["input_ids"]


def tokens_of(folder: Path, text: str) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


# ---- what stays the same


@pytest.mark.slow
def test_texts_of_the_corpus_words_embed_exactly_as_before(model: Path, used: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "whole")
    report = convert(model, tmp_path / "trimmed", options=ConvertOptions(trim=[used]))
    assert report.vocabulary is not None
    assert report.vocabulary.bytes_after < report.vocabulary.bytes_before
    pack(tmp_path / "trimmed", tmp_path / "packed")
    texts = sentences(USED, 40, 2)
    for prompt in (None, "find: "):
        whole, trimmed, packed = (
            load_encoder(tmp_path / name, backend=backend).encode(texts, prompt=prompt)
            for name, backend in (("whole", "auto"), ("trimmed", "auto"), ("packed", "reference"))
        )
        assert np.array_equal(whole, trimmed)
        assert np.abs(trimmed - packed).max() < 1e-3


def test_files_and_config_agree_with_the_trimmed_table(model: Path, used: Path, tmp_path: Path) -> None:
    report = convert(model, tmp_path / "out", options=ConvertOptions(trim=[used]))
    assert report.vocabulary is not None
    count = len(report.vocabulary.ids)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == count < json.loads((model / "config.json").read_text())["vocab_size"]
    old, new = AutoTokenizer.from_pretrained(model), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(new) <= count
    assert new.special_tokens_map == old.special_tokens_map
    tables = [t for t in load_file(tmp_path / "out" / "model.safetensors").values() if t.dim() == 2]
    assert any(t.shape[0] == count for t in tables)
    # the file itself, as the library `tokenizers` reads it, agrees with what transformers makes of it
    own = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    own.no_padding()
    assert own.encode(USED[0]).ids == new(USED[0])["input_ids"]
    assert own.encode(USED[0]).tokens == tokens_of(model, USED[0])


def test_a_text_that_the_corpus_does_not_foresee_still_embeds(model: Path, used: Path, tmp_path: Path) -> None:
    report = convert(model, tmp_path / "out", options=ConvertOptions(trim=[used]))
    assert report.vocabulary is not None
    other = [word for word in WORDS if word not in USED]
    assert max(max(ids_of(tmp_path / "out", text)) for text in [*other, "Ünseen ☃ 7%"]) < len(report.vocabulary.ids)
    assert np.isfinite(load_encoder(tmp_path / "out").encode(other)).all()


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe-bytes", "bpe-suffix"])
def test_new_words_of_known_characters_are_never_unknown(kind: str, used: Path, tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", kind)
    convert(source, tmp_path / "out", options=ConvertOptions(trim=[used]))
    old, new = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(tmp_path / "out")
    characters = sorted(set("".join(USED)))
    words = ["".join(random.Random(i).choices(characters, k=7)) for i in range(50)]
    known = [word for word in words if old.unk_token not in old.tokenize(word)]
    assert len(known) > 5
    assert not any(new.unk_token in new.tokenize(word) for word in known)


# ---- single rules, by hand


def write_tokenizer(folder: Path, model: dict[str, Any], **parts: Any) -> Path:
    state = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, **parts, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(state))
    return folder


def trimmed(source: Path, corpus_lines: list[str], tmp_path: Path) -> Path:
    convert(source, tmp_path / "trimmed", options=ConvertOptions(trim=[corpus(tmp_path / "corpus.txt", corpus_lines)]))
    return tmp_path / "trimmed"


def wordpiece(tmp_path: Path, tokens: list[str]) -> Path:
    source = save_tiny_bert(tmp_path / "source")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *tokens]
    state = json.loads((source / "tokenizer.json").read_text())
    state["model"] = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    state["model"] |= {"max_input_chars_per_word": 100, "vocab": {piece: i for i, piece in enumerate(pieces)}}
    (source / "tokenizer.json").write_text(json.dumps(state))
    return source


def test_a_wordpiece_word_that_gets_stuck_stays_unknown(tmp_path: Path) -> None:
    source = wordpiece(tmp_path, ["cat", "ab", "a", "##bc", "dog"])
    assert tokens_of(source, "abc") == ["[CLS]", "[UNK]", "[SEP]"]  # "ab" is longer than "a", and no "##c" follows
    out = trimmed(source, ["cat cat abc cat"], tmp_path)
    assert tokens_of(out, "abc") == ["[CLS]", "[UNK]", "[SEP]"]
    assert AutoTokenizer.from_pretrained(out).get_vocab().keys() >= {"ab", "cat"}
    assert "dog" not in AutoTokenizer.from_pretrained(out).get_vocab()


def test_unigram_keeps_the_smallest_score_by_which_unknown_characters_count() -> None:
    vocab = [["<unk>", 0.0], ["a", -1.0], ["b", -9.5], ["ab", -3.0]]
    file = TokenizerFile({"model": {"type": "Unigram", "unk_id": 0, "vocab": vocab}}, "Unigram", {"ab": 3, "b": 2})
    assert file.fixed() >= {0, 2}


def test_bpe_keeps_the_merges_on_the_way_to_a_token_and_drops_the_others(tmp_path: Path) -> None:
    letters = list("lowernsti")
    made = ["lo", "low", "er", "lower", "ne", "new", "st", "est"]
    merges = [["l", "o"], ["lo", "w"], ["e", "r"], ["low", "er"], ["n", "e"], ["ne", "w"], ["s", "t"], ["e", "st"]]
    model = {"type": "BPE", "vocab": {t: i for i, t in enumerate([*letters, *made])}, "merges": merges}
    file = TokenizerFile.read(write_tokenizer(tmp_path, model), "BPE")
    kept = file.closure({file.ids["lower"]})
    assert {token for token, i in file.ids.items() if i in kept} == {*"lower", "lo", "low", "er", "lower"}
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    file.write(tmp_path, {old: new for new, old in enumerate(sorted(kept))})
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("lower").tokens == ["lower"]
    assert (tmp_path / "merges.txt").read_text() == "#version: 0.2\nl o\nlo w\ne r\nlow er\n"


def test_all_that_holds_ids_is_renumbered(tmp_path: Path) -> None:
    source = wordpiece(tmp_path, ["bird", "cat", "dog", "[NEW]"])
    state = json.loads((source / "tokenizer.json").read_text())
    state["added_tokens"].append({**state["added_tokens"][0], "content": "[NEW]", "id": 8})
    state["padding"] = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 8}
    state["padding"] |= {"pad_type_id": 0, "pad_token": "[NEW]"}
    (source / "tokenizer.json").write_text(json.dumps(state))
    pieces = list(state["model"]["vocab"])
    (source / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    (source / "added_tokens.json").write_text(json.dumps({"[NEW]": 8}))
    decoder = {"8": {"content": "[NEW]", "special": True}}
    change(source / "tokenizer_config.json", added_tokens_decoder=decoder, mask_token="[NEW]")
    change(source / "config.json", sep_token_id=8, eos_token_id=[3, 8])
    out = trimmed(source, ["cat"], tmp_path)
    state = json.loads((out / "tokenizer.json").read_text())
    assert state["model"]["vocab"] == {p: i for i, p in enumerate([*pieces[:5], "cat", "[NEW]"])}
    assert [token["id"] for token in state["added_tokens"] if token["content"] == "[NEW]"] == [6]
    assert state["padding"]["pad_id"] == 6
    assert (out / "vocab.txt").read_text().split() == [*pieces[:5], "cat", "[NEW]"]
    assert json.loads((out / "added_tokens.json").read_text()) == {"[NEW]": 6}
    assert json.loads((out / "tokenizer_config.json").read_text())["added_tokens_decoder"] == {"6": decoder["8"]}
    config = json.loads((out / "config.json").read_text())
    assert (config["sep_token_id"], config["eos_token_id"], config["vocab_size"]) == (6, [3, 6], 7)


def test_a_sentencepiece_file_is_dropped_and_named(used: Path, tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "unigram")
    report = convert(source, tmp_path / "out", options=ConvertOptions(trim=[used]))
    assert not (tmp_path / "out" / "sentencepiece.bpe.model").exists()
    assert any("sentencepiece.bpe.model" in note for note in report.notes)


# ---- what a corpus is


def test_a_corpus_is_files_folders_and_jsonl(tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    corpus(folder / "a.txt", ["cat dog"])
    (folder / "more" / "b.jsonl").write_text('{"title": "tree", "text": "river"}\n')
    (folder / "notes.md").write_text("stone\n")
    report = convert(
        tiny_bert, tmp_path / "out", options=ConvertOptions(trim=[folder, corpus(tmp_path / "c.txt", ["light"])])
    )
    assert report.vocabulary is not None
    kept = AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab().keys()
    assert kept & set(WORDS) == {"cat", "dog", "tree", "river", "light"}


def test_prompts_and_lower_case_count_as_the_model_will_see_them(tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source")
    state = json.loads((source / "tokenizer.json").read_text())
    state["normalizer"] = {"type": "Strip", "strip_left": True, "strip_right": True}
    (source / "tokenizer.json").write_text(json.dumps(state))
    (source / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": True}))
    (source / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "search the index "}}))
    out = trimmed(source, ["CAT Dog"], tmp_path)
    kept = AutoTokenizer.from_pretrained(out).get_vocab().keys()
    assert kept & set(WORDS) == {"cat", "dog", "search", "the", "index"}


def test_the_command_reports_tokens_and_bytes(run: Callable[..., Any], tiny_bert: Path, tmp_path: Path) -> None:
    texts = corpus(tmp_path / "texts.txt", ["cat dog", "dog tree snow"])
    done = run("convert", tiny_bert, "-o", tmp_path / "out", "--trim-vocabulary", texts, "--json")
    assert done.exit_code == 0, done.stderr
    rows = 5 + len(WORDS)
    assert json.loads(done.stdout)["vocabulary"] == {
        "tokens_before": rows,
        "tokens_after": 8,
        "table_bytes_before": rows * 32 * 4,
        "table_bytes_after": 8 * 32 * 4,
        "corpus_tokens": 5,
        "corpus_unknown": 1,
    }
    done = run("convert", tiny_bert, "-o", tmp_path / "out", "--trim-vocabulary", texts, "--force")
    assert f"8 of {rows} tokens kept" in done.stdout


@pytest.mark.slow
def test_a_trimmed_student_learns_from_the_whole_teacher(tiny_bert: Path, used: Path, tmp_path: Path) -> None:
    convert(tiny_bert, tmp_path / "student", options=ConvertOptions(trim=[used]))
    texts = list(dict.fromkeys(sentences(USED, 60, 3)))
    data = Sources([corpus(tmp_path / "corpus.txt", texts)])
    report = distill(tmp_path / "student", tiny_bert, data, tmp_path / "out", Training(steps=30, batch_size=16))
    assert report.cosine_after > report.cosine_before


# ---- refusals


def refused(source: Path, lines: list[str], tmp_path: Path, error: type[TernarizeError], match: str) -> None:
    before = {p.name for p in tmp_path.iterdir()}
    texts = corpus(tmp_path / "corpus.txt", lines)
    with pytest.raises(error, match=match):
        convert(source, tmp_path / "out", options=ConvertOptions(trim=[texts]))
    assert {p.name for p in tmp_path.iterdir()} == before | {"corpus.txt"}


def test_a_model_without_a_fast_tokenizer_is_refused(tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source")
    vocab = json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]
    (source / "vocab.txt").write_text("".join(f"{token}\n" for token in vocab))
    (source / "tokenizer.json").unlink()
    change(source / "tokenizer_config.json", tokenizer_class="BertTokenizer")
    refused(source, ["cat"], tmp_path, CheckpointError, "no fast tokenizer")


def test_an_image_encoder_is_refused(tiny_vit: Path, tmp_path: Path) -> None:
    refused(tiny_vit, ["cat"], tmp_path, CheckpointError, "no token table")


def test_a_corpus_that_is_empty_unknown_or_stdin_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    refused(tiny_bert, [""], tmp_path, DataError, "holds no text")
    refused(tiny_bert, ["猫 犬 cat 木"], tmp_path, DataError, r"75% of the corpus is unknown .* 3 of 4 tokens")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.txt and no"):
        convert(tiny_bert, tmp_path / "out", options=ConvertOptions(trim=[tmp_path / "empty"]))
    with pytest.raises(DataError, match="stdin"):
        convert(tiny_bert, tmp_path / "out", options=ConvertOptions(trim=["-"]))


def test_a_vocabulary_larger_than_the_table_is_refused(tmp_path: Path) -> None:
    source = wordpiece(tmp_path, [f"word{i}" for i in range(100)])
    refused(source, ["word1"], tmp_path, CheckpointError, "vocabulary is larger than the token table")
    state = json.loads((source / "tokenizer.json").read_text())
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "word"]
    state["model"]["vocab"] = {**{word: i for i, word in enumerate(words)}, "[MASK]": 5 + len(WORDS)}
    state["added_tokens"][-1]["id"] = 5 + len(WORDS)
    (source / "tokenizer.json").write_text(json.dumps(state))
    refused(source, ["word"], tmp_path, CheckpointError, r"would drop the special token '\[MASK\]'")


def test_positions_that_start_at_the_padding_id_must_not_move(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "bpe-suffix")
    words = ["house", "<pad>", "<s>", "</s>", "<unk>", "<mask>", "cat"]
    state = json.loads((source / "tokenizer.json").read_text())
    state["model"] = {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(words)}, "unk_token": "<unk>"}
    state["added_tokens"] = [
        {**token, "id": words.index(token["content"])} for token in state["added_tokens"] if token["content"] in words
    ]
    ids = {word: {"id": word, "ids": [words.index(word)], "tokens": [word]} for word in ("<s>", "</s>")}
    state["post_processor"]["special_tokens"] = ids
    (source / "tokenizer.json").write_text(json.dumps(state))
    change(source / "config.json", bos_token_id=2, eos_token_id=3)
    (source / "config_sentence_transformers.json").unlink()
    refused(source, ["cat"], tmp_path, CheckpointError, "would move the padding id 1")


def test_a_tokenizer_that_changes_when_trimmed_leaves_nothing_behind(tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source")
    pieces = [["<s>", 0.0], ["▁stone", -1.0], ["</s>", 0.0], ["<unk>", 0.0], ["<pad>", 0.0], ["▁cat", -2.0]]
    added = [
        {"id": i, "content": t, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i, (t, _) in enumerate(pieces)
        if t.startswith("<")
    ]
    model = {"type": "Unigram", "unk_id": 3, "vocab": pieces}
    write_tokenizer(source, model, added_tokens=added, pre_tokenizer={"type": "Metaspace", "replacement": "▁"})
    # this class says that the unknown token is number 3, and without "▁stone" it is number 2
    values = {"tokenizer_class": "XLMRobertaTokenizer", **{f"{k}_token": v for k, v in SPECIALS.items() if k != "mask"}}
    values |= {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<s>"}
    (source / "tokenizer_config.json").write_text(json.dumps(values))
    (source / "special_tokens_map.json").unlink(missing_ok=True)
    refused(source, ["cat"] * 3, tmp_path, TernarizeError, "unknown characters")


def test_float16_rows_and_shards_are_trimmed_alike(tiny_bert: Path, used: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    save_tiny_bert(source)
    tensors = {k: v.half() for k, v in load_file(source / "model.safetensors").items()}
    (source / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({k: tensors[k] for k in keys}, source / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {k: file for file, keys in parts.items() for k in keys}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    report = convert(source, tmp_path / "out", options=ConvertOptions(trim=[used]))
    assert report.vocabulary is not None
    kept = list(report.vocabulary.ids)
    written = {k: v for file in parts for k, v in load_file(tmp_path / "out" / file).items()}
    table = "embeddings.word_embeddings.weight"
    assert torch.equal(written[table], tensors[table][kept].float())
    assert report.vocabulary.bytes_before == 2 * tensors[table].numel()
