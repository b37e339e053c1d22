"""Tokenizers in GGUF: what is written of each kind, holes in vocabularies, and what is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from support.gguf_files import read_gguf, save_byte_tokenizer, save_piece_tokenizer, save_unigram_tokenizer
from support.models import save_word_tokenizer
from ternarize_cli.errors import UnavailableError
from ternarize_cli.export.gguf import write_file
from ternarize_cli.export.gguf_vocabulary import add_vocabulary

gguf = pytest.importorskip("gguf")


def written(tokenizer: Any, rows: int, path: Path) -> dict[str, Any]:
    """The metadata that a file has of a tokenizer."""
    writer = gguf.GGUFWriter(None, "bert")
    add_vocabulary(writer, tokenizer, rows)
    write_file(writer, path)
    return {key.removeprefix("tokenizer.ggml."): value for key, value in read_gguf(path)[0].items()}


def changed(tokenizer: Any, change: Callable[[Any], object]) -> Any:
    """The tokenizer after a change of its JSON."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    change(state)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    return tokenizer


@pytest.mark.parametrize(
    ("save", "model", "pre"),
    [
        (save_word_tokenizer, "bert", "default"),
        (save_unigram_tokenizer, "t5", "default"),
        (save_byte_tokenizer, "gpt2", "gpt-2"),
        (save_piece_tokenizer, "llama", "default"),
    ],
)
def test_each_kind_is_written_with_its_special_tokens(
    save: Callable[[Path], int], model: str, pre: str, tmp_path: Path
) -> None:
    size = save(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    found = written(tokenizer, size + 3, tmp_path / "a.gguf")
    assert (found["model"], found["pre"]) == (model, pre)
    assert len(found["tokens"]) == len(set(found["tokens"])) == len(found["token_type"]) == size + 3
    assert found["tokens"][-3:] == [f"[PAD{i}]" for i in range(size, size + 3)]
    assert found["token_type"][-3:] == [5] * 3
    ids = tokenizer("cat")["input_ids"]
    assert [found["bos_token_id"], found["eos_token_id"]] == [ids[0], ids[-1]]
    assert found["token_type"][ids[0]] == 3
    assert found["add_bos_token"]
    assert found["add_eos_token"]


def test_an_id_without_a_token_gets_a_text_that_no_token_has(tmp_path: Path) -> None:
    size = save_word_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)

    def change(state: Any) -> None:
        state["model"]["vocab"] |= {"high": size + 2, f"[PAD{size}]": size + 3}
        state["added_tokens"].append(state["added_tokens"][0] | {"id": size + 3, "content": f"[PAD{size}]"})

    found = written(changed(tokenizer, change), size + 4, tmp_path / "a.gguf")
    assert found["tokens"][size:] == [f"[[PAD{size}]]", f"[PAD{size + 1}]", "▁high", f"[PAD{size}]"]


def long_token(state: Any) -> None:
    state["model"]["vocab"]["x" * 1_000_000] = 50


def test_a_huge_token_is_kept(tmp_path: Path) -> None:
    save_word_tokenizer(tmp_path)
    tokenizer = changed(AutoTokenizer.from_pretrained(tmp_path), long_token)
    assert written(tokenizer, 60, tmp_path / "a.gguf")["tokens"][50] == "▁" + "x" * 1_000_000


def set_in(*path: str, value: Any) -> Callable[[Any], object]:
    def change(state: Any) -> None:
        for name in path[:-1]:
            state = state[name]
        state[path[-1]] = value

    return change


def doubled(state: Any) -> None:
    state["model"]["vocab"].append(["▁the", -1.0])


@pytest.mark.parametrize(
    ("save", "change", "rows", "why"),
    [
        (save_word_tokenizer, set_in("normalizer", value=None), 60, "normalises by nothing and splits by BertPre"),
        (save_word_tokenizer, set_in("normalizer", "clean_text", value=False), 60, "keeps control characters"),
        (save_word_tokenizer, set_in("post_processor", value=None), 60, r"puts tokens \[\] in front of a text"),
        (save_word_tokenizer, lambda state: None, 20, "has the id 47, and its table of tokens 20 rows"),
        (save_unigram_tokenizer, doubled, 200, "of its vocabulary are both '▁the' there"),
        (save_unigram_tokenizer, set_in("pre_tokenizer", value={"type": "Whitespace"}), 200, "splits by Whitespace"),
        (save_unigram_tokenizer, set_in("normalizer", value={"type": "NFKC"}), 200, "normalises by NFKC"),
        (save_byte_tokenizer, set_in("pre_tokenizer", "add_prefix_space", value=True), 400, "splits by ByteLevel"),
        (save_byte_tokenizer, set_in("model", "ignore_merges", value=True), 400, "splits by ByteLevel"),
        (save_byte_tokenizer, set_in("model", "end_of_word_suffix", value="</w>"), 400, "the end of a word"),
        (save_piece_tokenizer, set_in("normalizer", value=None), 600, "it knows ▁ in place of spaces"),
    ],
)
def test_what_llama_cpp_has_no_code_for_is_refused(
    save: Callable[[Path], int], change: Callable[[Any], object], rows: int, why: str, tmp_path: Path
) -> None:
    save(tmp_path)
    tokenizer = changed(AutoTokenizer.from_pretrained(tmp_path), change)
    with pytest.raises(UnavailableError, match=why):
        add_vocabulary(gguf.GGUFWriter(None, "bert"), tokenizer, rows)


def test_a_missing_byte_is_refused(tmp_path: Path) -> None:
    save_piece_tokenizer(tmp_path, left_out="<0x0A>")
    with pytest.raises(UnavailableError, match="its vocabulary lacks 1 byte, such as <0x0A>"):
        add_vocabulary(gguf.GGUFWriter(None, "bert"), AutoTokenizer.from_pretrained(tmp_path), 600)
