"""Describes a tokenizer in the metadata of a GGUF file, as far as llama.cpp has code for it.

The file names one of llama.cpp's tokenizers, and holds the vocabulary. Normalising and splitting is code there:

    tokenizer.json                                               llama.cpp
    WordPiece or WordLevel, BertNormalizer, BertPreTokenizer     bert    the first piece of a word begins with ▁
    Unigram, Metaspace, normalised by a charsmap or not          t5      scores, charsmap
    BPE of bytes, split by a known expression                    gpt2    merges, and the expression's name
    BPE with bytes as fallback, ▁ for spaces                     llama   scores: the order of merges

Anything else is refused by name. llama.cpp does not normalise to NFC, and knows no longest word. Where it strips
accents it keeps only the first letter of a syllable of Hangul. The check compares the ids of tokens.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ternarize_cli.errors import UnavailableError, counted, shown
from ternarize_cli.export.gguf_architectures import refuse

__all__ = ["add_vocabulary"]

_WORD, _NO_SCORE = "▁", -10000.0
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's kinds of tokens."""
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3, _QWEN2 = (
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in ("{1,3}", "")
)
_SPLITS = {(_GPT2, False): "gpt-2", (_QWEN2, False): "qwen2", (_LLAMA3, True): "llama-bpe"}
"""llama.cpp's names of expressions, by the expression and whether words of the vocabulary are not split."""


@dataclass
class _Vocabulary:
    """What is written of a tokenizer.

    Attributes:
        model: llama.cpp's name of the tokenizer.
        texts: the texts of tokens, by their ids.
        scores: the scores of tokens, by their ids; empty if the tokenizer has none.
        pre: the name of the expression that splits texts.
        merges: pairs of tokens that are joined, in their order.
        settings: further metadata, by their keys.
        charsmap: the table by which texts are normalised.
    """

    model: str
    texts: dict[int, str]
    scores: dict[int, float] = field(default_factory=dict)
    pre: str = "default"
    merges: list[str] = field(default_factory=list)
    settings: dict[str, bool] = field(default_factory=dict)
    charsmap: bytes = b""


def add_vocabulary(writer: Any, tokenizer: Any, rows: int) -> None:
    """Adds a tokenizer to a `gguf.GGUFWriter`.

    Args:
        writer: the writer.
        tokenizer: the tokenizer of transformers.
        rows: the number of rows of the table of tokens; rows without a token get one that no text has.

    Raises:
        UnavailableError: llama.cpp has no code for such a tokenizer, or can't hold its vocabulary.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise refuse("its tokenizer is not one of the library tokenizers (tokenizer.json)")
    state = json.loads(backend.to_str())
    model = state["model"]
    made = {"WordPiece": _word_piece, "WordLevel": _word_piece, "Unigram": _unigram, "BPE": _bpe}
    if model["type"] not in made:
        raise refuse(f"it has no tokenizer of type {shown(model['type'])}")
    found = made[model["type"]](state, model)
    special = {entry["id"]: entry for entry in state.get("added_tokens", ())}
    first, last = _ends(backend, found.model)
    unknown = _unknown(state)
    kinds = {i: _UNKNOWN if i == unknown else _CONTROL if entry["special"] else _USER for i, entry in special.items()}
    texts = found.texts | {i: entry["content"] for i, entry in special.items()}
    if found.model == "llama":
        kinds |= {i: _BYTE for i, text in texts.items() if len(text) == 6 and text.startswith("<0x")}
    tokens = _tokens(texts, rows)
    writer.add_tokenizer_model(found.model)
    writer.add_tokenizer_pre(found.pre)
    writer.add_token_list([tokens[i].encode() for i in range(rows)])
    writer.add_token_types([kinds.get(i, _NORMAL if i in texts else _UNUSED) for i in range(rows)])
    if found.scores:
        writer.add_token_scores([found.scores.get(i, 0.0 if i in texts else _NO_SCORE) for i in range(rows)])
    if found.merges:
        writer.add_token_merges(found.merges)
    if found.charsmap:
        writer.add_precompiled_charsmap(found.charsmap)
    for key, value in found.settings.items():
        writer.add_bool(key, value)
    _add_ends(writer, first, last, unknown, tokenizer)


def _tokens(texts: Mapping[int, str], rows: int) -> list[str]:
    """Lists the texts of tokens by their ids, with texts for ids that have none.

    Raises:
        UnavailableError: two tokens have the same text, one is not Unicode, or there are more tokens than rows.
    """
    if texts and max(texts) >= rows:
        raise refuse(f"its tokenizer has the id {max(texts)}, and its table of tokens {counted(rows, 'row')}")
    by_text: dict[str, int] = {}
    for i, text in sorted(texts.items()):
        if by_text.setdefault(text, i) != i:
            raise refuse(f"tokens {by_text[text]} and {i} of its vocabulary are both {shown(text)} there")
    found = []
    for i in range(rows):
        text = texts.get(i, "")
        if not text:  # llama.cpp makes up a text of its own for an empty one
            text = f"[PAD{i}]"
            while text in by_text:
                text = f"[{text}]"
        try:
            text.encode()
        except UnicodeEncodeError:
            raise refuse(f"token {i} of its vocabulary is no Unicode text: {shown(text)}") from None
        found.append(text)
    return found


def _ends(backend: Any, model: str) -> tuple[int | None, int | None]:
    """Finds the tokens that are put in front of a text and behind it.

    Raises:
        UnavailableError: there is more than one at an end, or none where llama.cpp always puts one.
    """
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(backend.to_str())
    plain.no_truncation()
    plain.no_padding()
    for sample in ("a", "the", "1", "."):
        bare, whole = (plain.encode(sample, add_special_tokens=added).ids for added in (False, True))
        places = [i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare] if bare else []
        if places:
            first, last = whole[: places[0]], whole[places[0] + len(bare) :]
            break
    else:
        raise refuse("its tokenizer makes no token of a letter")
    if len(first) > 1 or len(last) > 1 or (model == "bert" and not (first and last)):
        raise refuse(f"its tokenizer puts tokens {first} in front of a text and {last} behind it")
    return (first[0] if first else None), (last[0] if last else None)


def _add_ends(writer: Any, first: int | None, last: int | None, unknown: int | None, tokenizer: Any) -> None:
    writer.add_add_bos_token(first is not None)
    writer.add_add_eos_token(last is not None)
    ids = {
        "bos": first,
        "eos": tokenizer.eos_token_id if last is None else last,
        "sep": last,
        "unk": unknown,
        "pad": tokenizer.pad_token_id,
        "mask": tokenizer.mask_token_id,
    }
    for name, value in ids.items():
        if value is not None:
            getattr(writer, f"add_{name}_token_id")(value)


def _unknown(state: Mapping[str, Any]) -> int | None:
    model = state["model"]
    if "unk_id" in model:
        return model["unk_id"]  # type: ignore[no-any-return]
    return None if model.get("unk_token") is None else model["vocab"].get(model["unk_token"])


def _word_piece(state: Mapping[str, Any], model: Mapping[str, Any]) -> _Vocabulary:
    normal, split = state.get("normalizer") or {}, state.get("pre_tokenizer") or {}
    if normal.get("type") != "BertNormalizer" or split.get("type") != "BertPreTokenizer":
        raise _unknown_way(normal, split, "BertNormalizer and BertPreTokenizer")
    if not normal["clean_text"] or not normal["handle_chinese_chars"]:
        raise refuse("its tokenizer keeps control characters, or does not split Chinese characters")
    pieces = model["type"] == "WordPiece"
    prefix = model.get("continuing_subword_prefix", "")
    if pieces and (not prefix or model["unk_token"] not in model["vocab"]):
        raise refuse("its vocabulary has no mark for pieces inside of a word, or no unknown token")
    inside = {text: text[len(prefix) :] for text in model["vocab"] if pieces and text.startswith(prefix)}
    texts = {i: inside.get(text) or _WORD + text for text, i in model["vocab"].items()}
    settings = {"tokenizer.ggml.normalizer.lowercase": normal["lowercase"]}
    if normal.get("strip_accents") is not None:
        settings["tokenizer.ggml.normalizer.strip_accents"] = normal["strip_accents"]
    return _Vocabulary("bert", texts, settings=settings)


def _unigram(state: Mapping[str, Any], model: Mapping[str, Any]) -> _Vocabulary:
    steps, splits = _steps(state.get("normalizer"), "normalizers"), _steps(state.get("pre_tokenizer"), "pretokenizers")
    spaces = [step for step in steps if step["type"] == "Replace" and step.get("content") in (" ", _WORD)]
    maps = [base64.b64decode(step["precompiled_charsmap"]) for step in steps if step["type"] == "Precompiled"]
    rest = [step["type"] for step in steps if step not in spaces and step["type"] not in ("Precompiled", "Strip")]
    marks = [step for step in splits if step["type"] == "Metaspace"]
    if rest or len(maps) > 1 or len(marks) != 1 or not {s["type"] for s in splits} <= {"Metaspace", "WhitespaceSplit"}:
        raise _unknown_way(state.get("normalizer"), state.get("pre_tokenizer"), "a charsmap and Metaspace")
    if model.get("byte_fallback") or model.get("unk_id") is None:
        raise refuse("its tokenizer falls back to bytes, or has no unknown token")
    merges_spaces = bool(spaces) or len(splits) > 1
    settings = {
        "tokenizer.ggml.add_space_prefix": marks[0].get("prepend_scheme", "always") != "never",
        "tokenizer.ggml.remove_extra_whitespaces": merges_spaces,
    }
    texts, scores = ({i: entry[j] for i, entry in enumerate(model["vocab"])} for j in (0, 1))
    return _Vocabulary("t5", texts, scores, settings=settings, charsmap=b"".join(maps))


def _bpe(state: Mapping[str, Any], model: Mapping[str, Any]) -> _Vocabulary:
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise refuse("its tokenizer marks pieces inside of a word, or the end of a word")
    texts = {i: text for text, i in model["vocab"].items()}
    pairs = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    if model.get("byte_fallback"):
        return _sentence_piece(state, texts, pairs)
    steps = _steps(state.get("pre_tokenizer"), "pretokenizers")
    expression = None
    if steps and steps[-1]["type"] == "ByteLevel" and not steps[-1]["add_prefix_space"]:
        expression = _GPT2 if len(steps) == 1 and steps[0].get("use_regex", True) else None
        if len(steps) == 2 and steps[0]["type"] == "Split" and not steps[-1].get("use_regex", True):
            expression = steps[0]["pattern"].get("Regex")
    pre = _SPLITS.get((expression or "", bool(model.get("ignore_merges"))))
    normal = {step["type"] for step in _steps(state.get("normalizer"), "normalizers")}
    if pre is None or not normal <= {"NFC"}:
        raise _unknown_way(
            state.get("normalizer"), state.get("pre_tokenizer"), "the splits of GPT-2, Qwen 2 or Llama 3"
        )
    if any(" " in part for pair in pairs for part in pair):
        raise refuse("a merge of its tokenizer has a space")
    return _Vocabulary("gpt2", texts, pre=pre, merges=[" ".join(pair) for pair in pairs])


def _sentence_piece(state: Mapping[str, Any], texts: dict[int, str], pairs: list[tuple[str, ...]]) -> _Vocabulary:
    steps, splits = _steps(state.get("normalizer"), "normalizers"), _steps(state.get("pre_tokenizer"), "pretokenizers")
    prepended = steps[:1] == [{"type": "Prepend", "prepend": _WORD}]
    replaced = [step["type"] == "Replace" and step["content"] == _WORD for step in steps[int(prepended) :]]
    # Splitting at spaces does nothing behind a normaliser that has replaced them.
    harmless = all(step["type"] == "Split" and step["pattern"] == {"String": " "} for step in splits)
    if replaced != [True] or not harmless:
        raise _unknown_way(state.get("normalizer"), state.get("pre_tokenizer"), "▁ in place of spaces")
    if missing := {f"<0x{byte:02X}>" for byte in range(256)} - {*texts.values()}:
        raise refuse(f"its vocabulary lacks {counted(len(missing), 'byte')}, such as {min(missing)}")
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(pairs):
        ranks.setdefault("".join(pair), rank)
    scores = {i: -float(ranks.get(text, len(pairs))) for i, text in texts.items()}
    return _Vocabulary("llama", texts, scores, settings={"tokenizer.ggml.add_space_prefix": prepended})


def _steps(part: Mapping[str, Any] | None, key: str) -> list[Any]:
    """Lists the steps of a normaliser or of a splitter."""
    if part is None:
        return []
    return [step for inner in part[key] for step in _steps(inner, key)] if part["type"] == "Sequence" else [part]


def _unknown_way(normal: Any, split: Any, known: str) -> UnavailableError:
    kinds = [_steps(normal or None, "normalizers"), _steps(split or None, "pretokenizers")]
    names = [", ".join(step.get("type", "?") for step in steps) or "nothing" for steps in kinds]
    return refuse(f"its tokenizer normalises by {names[0]} and splits by {names[1]}, and it knows {known}")
