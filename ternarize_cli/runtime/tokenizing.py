"""Turns texts into ids of tokens with the tokenizer of a model's folder, as transformers' fast tokenizers do.

`tokenizer.json` holds the tokenizer. Beside it, tokenizer_config.json says on which side long texts are cut, and how a
BERT's tokenizer treats case and accents, which counts more than what tokenizer.json says of them; the settings of
sentence-transformers say how many tokens a text may have, and whether it is lower-cased first.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer, Lowercase
from tokenizers.normalizers import Sequence as Normalizers

from ternarize_cli.errors import CheckpointError, InputError, shown
from ternarize_cli.storage.bounds import MAX_TOKENIZER, read_bytes

__all__ = ["TextTokenizer", "Tokens"]

_MOST = 1 << 24
_LONG = 64  # a text with more characters than this for each token that is read may be cut before it is tokenised


class Tokens(NamedTuple):
    """A text, or a pair of texts, as its tokens.

    Attributes:
        ids: the ids of its tokens, special tokens included.
        types: for each token the type: 0 for the first text, and 1 for the second of a pair, where a model tells them.
        truncated: whether the end was cut off.
    """

    ids: list[int]
    types: list[int]
    truncated: bool = False


class TextTokenizer:
    """A model's tokenizer.

    Attributes:
        limit: the most tokens of a text, special tokens included.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], limit: int, *, lower: bool = False) -> None:
        """Reads tokenizer.json.

        Args:
            folder: the model's folder.
            settings: what tokenizer_config.json holds.
            limit: the most tokens of a text, special tokens included.
            lower: whether texts are lower-cased first, if the tokenizer does not do so itself.

        Raises:
            CheckpointError: the file is missing or damaged, or asks for something that is unknown.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(
                f"{folder} has no tokenizer.json, without which texts can't be read here",
                hint="AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) writes one",
            )
        content = read_bytes(path, limit=MAX_TOKENIZER)
        try:
            tokenizer = Tokenizer.from_str(content.decode())
        except Exception as e:  # tokenizers raises plain Exceptions
            text = " ".join(str(e).split())[:200]
            raise CheckpointError(f"{path} is no tokenizer: {text}", hint="fetch the file again") from e
        side = settings.get("truncation_side", "right")
        if side not in ("left", "right"):
            raise CheckpointError(f"{folder / 'tokenizer_config.json'}: truncation_side is {shown(side)}")
        tokenizer.no_padding()
        _set_case(tokenizer, settings, lower=lower)
        self.limit = min(limit, _MOST)
        if self.limit <= tokenizer.num_special_tokens_to_add(is_pair=False):
            raise CheckpointError(f"{folder}: a text of {limit} tokens has no room for a token beside the special ones")
        tokenizer.enable_truncation(self.limit, strategy="longest_first", direction=side)
        self._side, self._tokenizer = side, tokenizer
        names = settings.get("model_input_names")
        self._has_types = not isinstance(names, list) or "token_type_ids" in names

    def __call__(self, texts: Sequence[str], prompt: str = "") -> list[Tokens]:
        """Tokenises texts behind a prompt, and cuts those that are longer than `limit` tokens.

        Raises:
            InputError: something is no text, or a text can't be encoded as UTF-8.
        """
        return self._encoded([self._readable(prompt, _checked(text)) for text in texts])

    def pairs(self, pairs: Sequence[tuple[str, str]], prompt: str = "") -> list[Tokens]:
        """Tokenises pairs of texts; of a long pair, the longer text is cut first.

        Raises:
            InputError: something is no text, or a text can't be encoded as UTF-8.
        """
        return self._encoded([(prompt + _checked(first), _checked(second)) for first, second in pairs])

    def prompt_tokens(self, prompt: str) -> int:
        """Returns how many tokens a prompt has at the beginning of a text, as sentence-transformers counts them.

        A special token at the end of the prompt alone, such as SEP, is not one of these.
        """
        encoded = self._tokenizer.encode(prompt)
        ends = bool(encoded.special_tokens_mask) and encoded.special_tokens_mask[-1] == 1
        return len(encoded.ids) - ends

    def spans(self, tokens: Tokens, text: str) -> list[tuple[str, int, int, bool]]:
        """Returns of each token of a text its string, the places where it begins and ends, and whether it is special.

        Args:
            tokens: what the tokenizer gave for the text.
            text: the text, with its prompt.
        """
        encoded = self._tokenizer.encode(_checked(text))
        found = zip(encoded.tokens, encoded.offsets, encoded.special_tokens_mask, strict=True)
        return [(token, begin, end, bool(special)) for token, (begin, end), special in found][: len(tokens.ids)]

    def _encoded(self, texts: Sequence[Any]) -> list[Tokens]:
        found = self._tokenizer.encode_batch(list(texts))
        zeros = not self._has_types
        return [Tokens(one.ids, [0] * len(one.ids) if zeros else one.type_ids, bool(one.overflowing)) for one in found]

    def _readable(self, prompt: str, text: str) -> str:
        """Returns a prompt and a text, of which the end that is not read may be missing if it is very long.

        Tokenising takes some 300 bytes a character, so a text of many megabytes is cut at a blank where what is left
        has more tokens than are read.
        """
        room = _LONG * self.limit
        if len(text) <= room:
            return prompt + text
        if self._side == "left":
            space = text.find(" ", len(text) - room)
            part = text[space:] if space >= 0 else ""
        else:
            part = prompt + text[:room].rpartition(" ")[0]
        return part if part and self._encoded([part])[0].truncated else prompt + text


def _checked(text: Any) -> str:
    """Returns a text that tokenizers take.

    Raises:
        InputError: it is no text, or holds half of a surrogate pair, which is no character.
    """
    if not isinstance(text, str):
        raise InputError(f"{shown(text)} is no text", hint="pass a list of strings")
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise InputError(
            f"a text holds {text[e.start]!r} at place {e.start}, which is no character",
            hint="decode the text anew with errors='replace'",
        ) from e
    return text


def _set_case(tokenizer: Tokenizer, settings: Mapping[str, Any], *, lower: bool) -> None:
    """Sets how a tokenizer treats case and accents, by tokenizer_config.json and the model's settings."""
    normalizer = tokenizer.normalizer
    if isinstance(normalizer, BertNormalizer):
        for key, name in (
            ("do_lower_case", "lowercase"),
            ("strip_accents", "strip_accents"),
            ("tokenize_chinese_chars", "handle_chinese_chars"),
        ):
            if isinstance(settings.get(key), bool):
                setattr(normalizer, name, settings[key])
        if lower and normalizer.lowercase:
            lower = False
        tokenizer.normalizer = normalizer
    if lower:
        tokenizer.normalizer = Normalizers([Lowercase(), *([normalizer] if normalizer is not None else [])])
