"""Turns texts into ids of tokens with the tokenizer of a model's folder, as transformers' fast tokenizers do.

`tokenizer.json` holds the tokenizer. Beside it, tokenizer_config.json says on which side long texts are cut, and how a
BERT's tokenizer treats case and accents, which counts more than what tokenizer.json says of them; the settings of
sentence-transformers say how many tokens a text may have, and whether it is lower-cased first.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer, Lowercase
from tokenizers.normalizers import Sequence as Normalizers

from ternarize_cli.errors import CheckpointError, InputError, UnavailableError, is_panic, panicked, reason, shown
from ternarize_cli.model_folder.tokenizer_json import check_tokenizer_json
from ternarize_cli.runtime.packed_file import IN_TORCH
from ternarize_cli.runtime.transformer_settings import TransformerSettings
from ternarize_cli.storage.bounds import MAX_TOKENIZER, read_bytes, read_object

__all__ = ["MOST_TOKENS", "TextTokenizer", "Tokens", "read_tokenizer"]

MOST_TOKENS = 1 << 24
"""The limit of a tokenizer that has none."""
_LONG = 64  # a text with more characters than this for each token that is read may be cut before it is tokenised
_SPECIAL = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_WITH_TYPES = ("Bert", "Electra", "Ernie")
"""What the names of those classes of transformers begin with that tell apart two texts of a pair."""
_PADDING_LEFT = ("CodeLlama", "Cohere", "Gemma", "Llama", "Siglip2", "XLNet")
"""What the names of those begin with that pad on the left if the settings don't name a side."""
_AS_THEY_ARE = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes of transformers that take tokenizer.json as it is; those of families such as BERT make some of it anew."""
_MARGIN = 64  # tokens that are left of such a text behind those that are read: the cut may change a few


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
        pads_left: whether transformers pads texts of a batch on the left.
        padding: the id of the token that transformers pads with; None if it is not known.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], limit: int, *, lower: bool = False) -> None:
        """Reads tokenizer.json.

        Args:
            folder: the model's folder.
            settings: what tokenizer_config.json holds, and what the model's settings change of it.
            limit: the most tokens of a text, special tokens included.
            lower: whether texts are lower-cased first.

        Raises:
            CheckpointError: the file is damaged, or asks for something that is unknown.
            UnavailableError: there is no tokenizer.json.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UnavailableError(
                f"{folder} has no tokenizer.json, without which texts can't be read here",
                hint=f"pack the model again with this version of ternarize, which writes one, or {IN_TORCH}",
            )
        check_tokenizer_json(path)
        content = read_bytes(path, limit=MAX_TOKENIZER)
        try:
            tokenizer = Tokenizer.from_str(content.decode())
        except Exception as e:  # tokenizers raises plain Exceptions
            raise CheckpointError(f"{path} is no tokenizer: {reason(e)}", hint="fetch the file again") from e
        kind = str(settings.get("tokenizer_class") or "")
        sides = []
        for key, own, default in (
            ("truncation_side", tokenizer.truncation, "right"),
            ("padding_side", tokenizer.padding, "left" if kind.startswith(_PADDING_LEFT) else "right"),
        ):
            sides.append(settings.get(key) or (own or {}).get("direction") or default)
            if sides[-1] not in ("left", "right"):
                raise CheckpointError(f"{folder / 'tokenizer_config.json'}: {key} is {shown(sides[-1])}")
        self._side, self.pads_left = sides[0], sides[1] == "left"
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = settings.get("split_special_tokens") is True
        _set_case(tokenizer, settings, lower=lower)
        self.limit = min(limit, MOST_TOKENS)
        if self.limit <= tokenizer.num_special_tokens_to_add(is_pair=False):
            raise CheckpointError(f"{folder}: a text of {limit} tokens has no room for a token beside the special ones")
        tokenizer.enable_truncation(self.limit, strategy="longest_first", direction=self._side)
        self._tokenizer = tokenizer
        named_tokens = _special_tokens(settings)
        padding = named_tokens.get("pad_token")
        self.padding = None if padding is None else tokenizer.token_to_id(padding)
        added = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._special = {tokenizer.token_to_id(token) for token in named_tokens.values()} | added
        names = settings.get("model_input_names")
        has_types = not kind or kind.startswith(_WITH_TYPES)
        self._has_types = "token_type_ids" in names if isinstance(names, list) else has_types

    def __call__(self, texts: Sequence[str], prompt: str = "") -> list[Tokens]:
        """Tokenises texts behind a prompt, and cuts those that are longer than `limit` tokens.

        Raises:
            InputError: something is no text, or a text can't be encoded as UTF-8.
        """
        if isinstance(texts, str):
            raise InputError("one text is given where a list of texts is read", hint=f"[{shown(texts)}]")
        _checked(prompt)
        return self._encoded([self._readable(prompt, _checked(text)) for text in texts])

    def pairs(self, pairs: Sequence[tuple[str, str]], prompt: str = "") -> list[Tokens]:
        """Tokenises pairs of texts; of a long pair, the longer text is cut first.

        Raises:
            InputError: something is no text, or a text can't be encoded as UTF-8.
        """
        _checked(prompt)
        return self._encoded([(prompt + _checked(first), _checked(second)) for first, second in pairs])

    def prompt_tokens(self, prompt: str) -> int:
        """Returns how many tokens a prompt has at the beginning of a text, as sentence-transformers counts them.

        A special token at the end of the prompt alone, such as SEP, is not one of these.
        """
        ids = self._tokenizer.encode(prompt).ids
        return len(ids) - (bool(ids) and ids[-1] in self._special)

    def definition(self) -> str:
        """Returns the tokenizer as tokenizer.json would hold it, with what the settings change of it."""
        return str(self._tokenizer.to_str())

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
        with _panics_told():
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
        with _panics_told():
            dropped = sum(len(more.ids) for more in self._tokenizer.encode(part).overflowing)
        return part if dropped >= _MARGIN else prompt + text


@contextmanager
def _panics_told() -> Iterator[None]:
    """Tells a panic of the tokenizer's library, which would end a server's thread, as an error about the model."""
    try:
        yield
    except BaseException as e:
        if is_panic(e):
            raise panicked(e) from e
        raise


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


def read_tokenizer(
    folder: Path, config: Mapping[str, Any], settings: TransformerSettings, longest: int | None
) -> TextTokenizer:
    """Reads the tokenizer of a folder, with the length at which its settings cut texts.

    Args:
        folder: the model's folder.
        config: what config.json holds.
        settings: the settings of sentence-transformers.
        longest: the most tokens that the model has positions for; None for any number.

    Raises:
        CheckpointError: a file is damaged.
        UnavailableError: there is no tokenizer.json.
    """
    own: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            own |= read_object(folder / name, limit=MAX_TOKENIZER)
    own |= settings.tokenizer
    lengths = [own.get("model_max_length"), config.get("max_position_embeddings")]
    if "model_max_length" in settings.tokenizer:
        lengths = lengths[:1]
    elif settings.max_seq_length is not None:
        lengths = [settings.max_seq_length]
    known = [int(n) for n in lengths if isinstance(n, int | float) and not isinstance(n, bool) and 0 < n < MOST_TOKENS]
    limit = min([*known, *([] if longest is None else [longest])], default=MOST_TOKENS)
    return TextTokenizer(folder, own, limit, lower=settings.do_lower_case)


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Lists the special tokens that settings name, by their keys such as "pad_token".

    Raises:
        CheckpointError: one holds half of a surrogate pair.
    """
    found = {}
    for key in _SPECIAL:
        token = settings.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            try:
                found[key] = _checked(text)
            except InputError as e:
                raise CheckpointError(f"{key} of the tokenizer: {e}", hint="fetch the files again") from e
    return found


def _set_case(tokenizer: Tokenizer, settings: Mapping[str, Any], *, lower: bool) -> None:
    """Sets how a tokenizer treats case and accents, by tokenizer_config.json and the model's settings."""
    normalizer: Any = tokenizer.normalizer
    if isinstance(normalizer, BertNormalizer) and settings.get("tokenizer_class") not in _AS_THEY_ARE:
        for key, name in (
            ("do_lower_case", "lowercase"),
            ("strip_accents", "strip_accents"),
            ("tokenize_chinese_chars", "handle_chinese_chars"),
        ):
            if isinstance(settings.get(key), bool):
                setattr(normalizer, name, settings[key])
        tokenizer.normalizer = normalizer
    own = (
        list(cast(Any, normalizer))
        if isinstance(normalizer, Normalizers)
        else []
        if normalizer is None
        else [normalizer]
    )
    if lower and not any(isinstance(one, Lowercase) for one in own):
        tokenizer.normalizer = Normalizers([Lowercase(), *own])
