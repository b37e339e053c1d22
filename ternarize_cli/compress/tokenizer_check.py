"""Makes sure, when a model is packed, that the runtime without PyTorch tokenises as transformers does.

The runtime reads tokenizer.json. transformers builds the tokenizers of some families anew, from their vocabulary and
tokenizer_config.json, and those may differ from the file. So a fixed sample of texts is tokenised both ways. If the ids
differ, or the definitions of the two tokenizers do, that of transformers becomes the tokenizer.json of the packed
model, provided that both sides then give the ids that transformers gave before. Otherwise the file stays, and if the
ids differ, the packed model says that it runs in PyTorch only (`Artifact.torch_only`).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ternarize_cli.encoders import checkpoint
from ternarize_cli.encoders.defaults import pad_tokenizer
from ternarize_cli.encoders.positions import readable_tokens
from ternarize_cli.errors import CheckpointError, UnavailableError, reason, shown
from ternarize_cli.model_folder.folder_check import LOADING, loading_arguments
from ternarize_cli.model_folder.model_files import module_folders
from ternarize_cli.model_folder.model_kind import head_of
from ternarize_cli.runtime.tokenizing import MOST_TOKENS, read_tokenizer
from ternarize_cli.runtime.transformer_settings import read_settings
from ternarize_cli.storage.bounds import read_object
from ternarize_cli.storage.library_output import library_output
from ternarize_cli.tokenizers.tokenizer_files import has_tokenizer

__all__ = ["settle_tokenizer"]

_TEXTS = (
    *("", "a", "The Cat SAT by the door.", "don't stop; we'll see: \"yes\" (no) [maybe] {x} <y>", "HELLO hello HeLLo"),
    *("  two  blanks  ", " leading", "trailing ", "a\tb\nc\r\nd", "line\n\n\nbreaks\n", "\u00a0no-break\u00a0\u2003em"),
    *("Ünïcödé naïve façade Ångström", "U\u0308 n\u0303 e\u0301", "ÀÉÎÕÜ àéîõü", "İstanbul ıspanak", "Straße ẞ"),
    *("ﬁne ﬂow ½ ² ™ Ⅳ ａｂｃ", "日本語の文、カタカナとひらがな。", "中文句子，没有空格。", "한국어 문장입니다"),
    *("漢字kanji混ぜ", "Привет, мир! Ёлка", "Καλημέρα ΚΌΣΜΕ", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया"),
    *(
        "สวัสดีชาวโลก",
        "Xin chào thế giới",
        "😀 👩‍👩‍👧 🏳️‍🌈 ❤️ 1️⃣",
        "zero\u200bwidth\u200djoin",
        "soft\u00adhyphen \ufeffbom",
    ),
    *("a\u0000b\u0007c\u001bd", "\ufffd \ue000", "https://example.org/a?b=c&d=%20#e", "someone@example.org"),
    *("def f(x): return x**2  # ok", "snake_case camelCase KEBAB-CASE", "1,234,567.89", "2024-02-29T12:00", "42"),
    *("€5 £6 ¥7 3.14 × 10^-5", "... — – -‐", "''``\"\"", "a" * 30, "x" * 120, "▁ ▁a", "##ing ##", "query: passage: "),
    *("<s> </s> <pad> <mask> <unk>", "[CLS] [SEP] [PAD] [MASK] [UNK]", "<|endoftext|> <|im_start|>", "a</s>b[SEP]c"),
    *(" ".join(("the", "cat", "Über", "日本") * 400), " ".join(("antidisestablishmentarianism",) * 300)),
)
"""Cases, accents, scripts, blanks, control signs, emoji, numbers, code, special tokens, and texts that are cut."""
_MOST_SPECIAL = 32
_IGNORED = ("version", "truncation", "padding", "decoder", "post_processor")
"""Parts of a tokenizer's definition that change no ids, or whose effect each text shows."""


class _Reading(NamedTuple):
    """What one side makes of the sample.

    Attributes:
        limit: the most tokens of a text.
        tokens: for each text, then for each pair of texts, the ids and types of its tokens.
        prompts: for each text how many tokens it has as a prompt; empty if prompts count like texts.
        pads_left: whether texts are padded on the left; False if that changes no vector.
        definition: the definition of the tokenizer, without `_IGNORED`.
    """

    limit: int
    tokens: list[tuple[list[int], list[int]]]
    prompts: list[int]
    pads_left: bool
    definition: dict[str, Any]

    def difference(self, other: "_Reading", texts: Sequence[str]) -> str:
        """Says what another side makes otherwise of the sample; "" if it makes the same."""
        if self.limit != other.limit:
            return f"transformers reads {self.limit:,} tokens of a text, and its files say {other.limit:,}"
        for i, (own, given) in enumerate(zip(self.tokens, other.tokens, strict=True)):
            if own != given:
                which = shown(texts[i]) if i < len(texts) else "a pair of texts"
                return f"transformers makes other tokens of {which} than its tokenizer.json"
        if self.pads_left != other.pads_left:
            return "transformers pads texts on another side than its files say"
        if self.prompts != other.prompts:
            return "transformers takes other tokens for the end of a prompt than its files name"
        return ""


class _Options(NamedTuple):
    """What is compared: token types, pairs of texts, the number of tokens of prompts, and the side of padding."""

    types: bool
    pairs: bool
    prompts: bool
    sides: bool


def settle_tokenizer(folder: Path) -> str:
    """Compares how transformers and the runtime tokenise, and writes another tokenizer.json if that makes them agree.

    Args:
        folder: a packed model with its configs and its tokenizer, before its files get their digest.

    Returns:
        Why the runtime can't tokenise for this model; "" if it can, or if the model does not run there at all.
    """
    artifact, head = checkpoint.artifact_of(folder), head_of(folder)
    tables = [b.embeddings for b in artifact.block.values() if b.embeddings is not None] if artifact else []
    if not tables or head == "fill-mask" or not has_tokenizer(folder):
        return ""
    excluded = any(_pools_without_prompt(folder / where) for where in module_folders(folder))
    sides = head is not None or any(table.positions is not None for table in tables)
    options = _Options(any(table.types is not None for table in tables), head is not None, excluded, sides)
    try:
        str(folder).encode()
        with library_output(to_stderr=True):
            return _settled(folder, options)
    except UnicodeEncodeError:
        return "it was packed in a folder whose name is not UTF-8, from which transformers reads no tokenizer"
    except UnavailableError:  # the settings ask for something that the runtime refuses by itself
        return ""
    except Exception as e:  # damaged or unusual tokenizer files can raise any error
        why = f"its tokenizer can't be compared with its tokenizer.json: {type(e).__name__}: {reason(e)}"
        return _without_place(why, folder)


def _without_place(why: str, folder: Path) -> str:
    """Takes the folder, which has another name while it is made, out of a text, and what is not UTF-8."""
    return why.replace(f"{folder}/", "").replace(str(folder), "it").encode(errors="backslashreplace").decode()


def _settled(folder: Path, options: _Options) -> str:
    transformer = _transformer(folder)
    if "text" not in transformer.modalities:
        return ""
    special = transformer.tokenizer.all_special_tokens[:_MOST_SPECIAL]
    texts = (*_TEXTS, *(text for token in special for text in (token, f"a{token}b", f"a {token} b {token}")))
    if not options.types and _passes_types(transformer):
        return "its tokenizer gives token types, which its model has no table for: PyTorch runs it linear by linear"
    theirs = _theirs(transformer, texts, options)
    why, is_same = _compared(theirs, folder, transformer, texts, options)
    if is_same:
        return ""
    path = folder / "tokenizer.json"
    before = path.read_bytes() if path.is_file() else None
    try:
        path.write_text(_effective(folder), encoding="utf-8")
        transformer = _transformer(folder)
        again = _theirs(transformer, texts, options)
        agrees = not theirs.difference(again, texts) and not _compared(again, folder, transformer, texts, options)[0]
    except Exception:  # transformers can't read what it has written
        agrees = False
    if agrees:
        return ""
    path.unlink(missing_ok=True)
    if before is not None:
        path.write_bytes(before)
    return why


def _compared(
    theirs: _Reading, folder: Path, transformer: Any, texts: Sequence[str], options: _Options
) -> tuple[str, bool]:
    """Says how the runtime tokenises otherwise than transformers, and whether the definitions are equal, too."""
    if not (folder / "tokenizer.json").is_file():
        return "it has no tokenizer.json", False
    try:
        ours = _ours(folder, transformer, texts, options)
    except CheckpointError as e:
        return _without_place(str(e), folder), False
    why = theirs.difference(ours, texts)
    return why, not why and ours.definition == theirs.definition


def _transformer(folder: Path) -> Any:
    """Makes sentence-transformers' Transformer of a folder as `loading` does, with a skeleton in place of the model."""
    from sentence_transformers.base.modules import Transformer

    class WithoutWeights(Transformer):
        def _load_model(self, *arguments: Any, **options: Any) -> Any:
            return checkpoint.skeleton(folder, head_of(folder))

    how: dict[str, Any] = loading_arguments(allow_pickle=False)
    if (folder / "modules.json").is_file():
        made: Any = WithoutWeights.load(str(folder), **LOADING, **how)
    else:
        made = WithoutWeights(str(folder), transformer_task=head_of(folder) or "feature-extraction", **how)
    tokenizer, longest = made.tokenizer, readable_tokens(made.model)
    if tokenizer is not None and tokenizer.pad_token is None:
        pad_tokenizer(tokenizer, folder)
    if tokenizer is not None and longest is not None and tokenizer.model_max_length > longest:
        tokenizer.model_max_length = longest
    return made


def _effective(folder: Path) -> str:
    """Returns the definition of the tokenizer that transformers builds for a folder."""
    from transformers import AutoTokenizer

    settings = read_settings(folder, checkpoint.read_config(folder), head_of(folder) or "feature-extraction")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, **{**settings.tokenizer, **LOADING})
    return str(tokenizer.backend_tokenizer.to_str(pretty=True))


def _theirs(transformer: Any, texts: Sequence[str], options: _Options) -> _Reading:
    tokenizer = transformer.tokenizer
    inputs: list[Any] = [*texts, *(map(list, _pairs(texts)) if options.pairs else ())]
    tokens: list[tuple[list[int], list[int]]] = []
    for some in (inputs[: len(texts)], inputs[len(texts) :]):
        features = transformer.preprocess(some)
        for i in range(len(some)):
            real = features["attention_mask"][i].bool()
            ids = features["input_ids"][i][real].tolist()
            types = features.get("token_type_ids") if options.types else None
            tokens.append((ids, [0] * len(ids) if types is None else types[i][real].tolist()))
    ends = set(tokenizer.all_special_ids)
    prompts = [len(ids) - (ids[-1:] != [] and ids[-1] in ends) for ids, _ in tokens[: len(texts)]]
    definition = _without_ignored(tokenizer.backend_tokenizer.to_str())
    limit = min(int(min(tokenizer.model_max_length, MOST_TOKENS)), MOST_TOKENS)
    return _Reading(
        limit, tokens, prompts * options.prompts, options.sides and tokenizer.padding_side == "left", definition
    )


def _passes_types(transformer: Any) -> bool:
    """Returns whether sentence-transformers calls the model with token types."""
    known = transformer.model_forward_params  # None: all names
    return "token_type_ids" in transformer.preprocess(["a"]) and (known is None or "token_type_ids" in known)


def _ours(folder: Path, transformer: Any, texts: Sequence[str], options: _Options) -> _Reading:
    config = checkpoint.read_config(folder)
    settings = read_settings(folder, config, head_of(folder) or "feature-extraction")
    tokenizer = read_tokenizer(folder, config, settings, readable_tokens(transformer.model))
    found = [*tokenizer(texts), *(tokenizer.pairs(_pairs(texts)) if options.pairs else ())]
    tokens = [(one.ids, one.types if options.types else [0] * len(one.ids)) for one in found]
    prompts = [tokenizer.prompt_tokens(text) for text in texts]
    definition = _without_ignored(tokenizer.definition())
    return _Reading(
        tokenizer.limit, tokens, prompts * options.prompts, options.sides and tokenizer.pads_left, definition
    )


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(texts, [*texts[1:], texts[0]], strict=True))


def _without_ignored(definition: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(definition).items() if key not in _IGNORED}


def _pools_without_prompt(folder: Path) -> bool:
    path = folder / "config.json"
    return path.is_file() and not read_object(path).get("include_prompt", True)
