"""Reads a fast tokenizer's files, finds the tokens that a smaller tokenizer must keep, and writes the smaller one.

Dropping tokens that a text does not use must not change how it is split. The four model types of `tokenizers` need:

- **WordLevel**: nothing.
- **WordPiece** takes the longest known piece, again and again, and a word that gets stuck is unknown as a whole. Pieces
  that were used stay the longest; but a stuck word's pieces are used and not seen, so they must be kept as well, or a
  shorter piece takes their place and the word gets through (`TokenizerFile.stuck`).
- **Unigram** takes the segmentation with the largest sum of scores. It stays possible, and other segmentations only
  become fewer. The score of an unknown character is the smallest score of all pieces minus 10, so the piece with that
  smallest score stays.
- **BPE** joins neighbours in the order of the merges. The merges that made a kept token stay, and their parts become
  kept tokens; the other merges were not used before and can't be used now.

For other texts, single characters stay as pieces: those of every kept token, ASCII, and the 256 bytes of byte-level and
byte-fallback tokenizers. A new word made of such characters is never unknown.

Ids change: kept tokens are renumbered without gaps and keep their order. Every file that holds ids or tokens is
rewritten. Formats that only their own libraries can write (SentencePiece) are dropped; tokenizer.json holds all of
their content.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

from ternarize_cli.errors import CheckpointError
from ternarize_cli.storage.bounds import MAX_TOKENIZER, read_bytes, read_object

__all__ = ["KINDS", "TokenizerFile", "has_tokenizer"]

KINDS = ("BPE", "Unigram", "WordLevel", "WordPiece")
_FILE = "tokenizer.json"
_FOREIGN = ("*.model", "*.spm", "*.vocab", "unigram.json", "tekken.json", "bpe.codes")
_ASCII = [chr(code) for code in range(33, 127)]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_ANY = ("tokenizer.json", "tokenizer_config.json", "vocab*.txt", "vocab*.json", *_FOREIGN)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a file of a tokenizer."""
    return any(fnmatchcase(path.name, pattern) for path in folder.iterdir() for pattern in _ANY)


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer.json.

    Attributes:
        state: the parsed JSON.
        kind: the type of the model, one of KINDS.
        ids: a dict from the model's tokens to their ids; it has added tokens only if the model has them too.
    """

    state: dict[str, Any]
    kind: str
    ids: dict[str, int]

    @classmethod
    def read(cls, folder: Path, kind: str) -> "TokenizerFile":
        """Reads a folder's tokenizer.json; `kind` is given because older files don't name it.

        Raises:
            CheckpointError: the file is missing or damaged, or of a kind that can't be trimmed.
        """
        path = folder / _FILE
        if not path.is_file():
            raise CheckpointError(
                f"{folder} has no fast tokenizer ({_FILE}), and no other can be trimmed",
                hint="AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) writes one if transformers can make it",
            )
        if kind not in KINDS:
            raise CheckpointError(f"{path}: a tokenizer of type {kind} can't be trimmed, only {', '.join(KINDS)}")
        try:
            state = read_object(path, limit=MAX_TOKENIZER)
            vocab = state["model"]["vocab"]
            ids = {entry[0]: i for i, entry in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
        except (KeyError, TypeError, IndexError, ValueError) as e:
            raise CheckpointError(f"{path} is no tokenizer: {e!r}", hint="fetch the file again") from e
        return cls(state, kind, ids)

    def fixed(self) -> set[int]:
        """Ids that are kept for any corpus: those that the file itself refers to, bytes, ASCII, the smallest score."""
        model = self.state["model"]
        kept: set[int] = {token["id"] for token in self.state.get("added_tokens") or []}

        def keep(i: int) -> int:
            kept.add(i)
            return i

        _map_processor(self.state.get("post_processor"), keep)
        if (unknown := model.get("unk_token")) in self.ids:
            kept.add(self.ids[unknown])
        if self.kind == "Unigram":
            kept.update({model["unk_id"]} - {None})
            kept.add(min(range(len(model["vocab"])), key=lambda i: model["vocab"][i][1]))
        characters = _ASCII if self.kind in ("Unigram", "WordPiece") else []
        if self.kind == "BPE":
            from tokenizers.pre_tokenizers import ByteLevel

            characters = [*_ASCII, *ByteLevel.alphabet()]
        return kept | self._known([*_BYTES, *self._pieces(characters)])

    def closure(self, kept: Collection[int]) -> set[int]:
        """Adds to `kept` the characters of its tokens and, in BPE, the tokens on their merge paths."""
        tokens = [token for token, i in self.ids.items() if i in kept]
        found = self._known(self._pieces({character for token in tokens for character in token}))
        if self.kind == "BPE":
            ranks = {pair: rank for rank, pair in enumerate(self._merges())}
            for token in tokens:
                found |= self._known(self._merge_path(token, ranks))
        return set(kept) | found

    def stuck(self, word: str) -> set[int]:
        """Finds the pieces that a WordPiece model takes from a word before it gets stuck, or all if it does not."""
        model, kept, start = self.state["model"], set(), 0
        prefix = model.get("continuing_subword_prefix", "##")
        while start < len(word) <= model.get("max_input_chars_per_word", 100):
            for end in range(len(word), start, -1):
                if (i := self.ids.get((prefix if start else "") + word[start:end])) is not None:
                    kept.add(i)
                    start = end
                    break
            else:
                break
        return kept

    def write(self, folder: Path, new: Mapping[int, int]) -> tuple[str, ...]:
        """Rewrites the tokenizer's files in a folder that holds copies of them.

        Args:
            folder: the folder with the copies.
            new: a dict from each kept id to its new id.

        Returns:
            Names of the files that were removed because they can't be rewritten.
        """
        model = {**self.state["model"]}
        if isinstance(model["vocab"], list):
            model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in new]
        else:
            model["vocab"] = _renumbered(model["vocab"], new)
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
        if self.kind == "BPE":
            model["merges"] = [
                m for m, pair in zip(model["merges"], self._merges(), strict=True) if self._made(pair, new)
            ]
        state = {**self.state, "model": model}
        state["added_tokens"] = [{**token, "id": new[token["id"]]} for token in state.get("added_tokens") or []]
        state["post_processor"] = _map_processor(state.get("post_processor"), new.__getitem__)
        if padding := state.get("padding"):
            state["padding"] = {**padding, "pad_id": new.get(padding["pad_id"], padding["pad_id"])}
        _write_json(folder / _FILE, state, indent=None)
        return tuple(sorted(self._companions(folder, new)))

    def _companions(self, folder: Path, new: Mapping[int, int]) -> Iterator[str]:
        """Rewrites the files beside tokenizer.json; yields the names of files that were removed."""
        settings = folder / "tokenizer_config.json"
        if settings.is_file():
            values = read_object(settings, limit=MAX_TOKENIZER)
            if isinstance(decoder := values.get("added_tokens_decoder"), dict) and decoder:
                moved = {str(i): str(to) for i, to in new.items()}
                values["added_tokens_decoder"] = {moved[i]: token for i, token in decoder.items() if i in moved}
                _write_json(settings, values)
        if (added := folder / "added_tokens.json").is_file():
            _write_json(added, _renumbered(read_object(added, limit=MAX_TOKENIZER), new))
        if (words := folder / "vocab.txt").is_file():
            lines = _lines(words)
            if all(self.ids.get(line) == i for i, line in enumerate(lines)):
                words.write_text("".join(f"{line}\n" for i, line in enumerate(lines) if i in new), encoding="utf-8")
            else:
                words.unlink()
                yield words.name
        if (words := folder / "vocab.json").is_file():
            _write_json(words, _renumbered(read_object(words, limit=MAX_TOKENIZER), new), indent=None)
        if (merges := folder / "merges.txt").is_file():
            lines = _lines(merges)
            kept = [x for x in lines if x.startswith("#version") or self._made(tuple(x.split(" ")), new)]
            merges.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        for pattern in _FOREIGN:
            for path in folder.glob(pattern):
                path.unlink()
                yield path.name

    def _known(self, tokens: Iterable[str]) -> set[int]:
        return {self.ids[token] for token in tokens if token in self.ids}

    def _pieces(self, characters: Iterable[str]) -> Iterator[str]:
        """Yields single characters in every form in which a model of this kind stores them."""
        if self.kind == "WordLevel":
            return
        prefix, suffix = self._affixes()
        for character in characters:
            yield from {prefix + character, character, character + suffix, prefix + character + suffix}

    def _affixes(self) -> tuple[str, str]:
        model = self.state["model"]
        prefix = model.get("continuing_subword_prefix") or ("##" if self.kind == "WordPiece" else "")
        return prefix, model.get("end_of_word_suffix") or ""

    def _merges(self) -> list[tuple[str, ...]]:
        merges = self.state["model"]["merges"]
        return [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]

    def _made(self, pair: tuple[str, ...], new: Mapping[int, int]) -> bool:
        """Whether both parts of a merge and the token that it makes are kept."""
        joined = pair[0] + pair[-1].removeprefix(self._affixes()[0])
        return all(self.ids.get(token) in new for token in (*pair, joined))

    def _merge_path(self, token: str, ranks: Mapping[tuple[str, ...], int]) -> Iterator[str]:
        """Yields the tokens that the merges make on the way from characters to `token`, which are so in any word."""
        prefix, suffix = self._affixes()
        first, last = token[: len(prefix)] == prefix, suffix and token.endswith(suffix)
        body = token.removeprefix(prefix).removesuffix(suffix)
        parts = [prefix + c if i or first else c for i, c in enumerate(body)]
        if last and parts:
            parts[-1] += suffix
        yield from parts
        while len(parts) > 1:
            order = [ranks.get(pair, inf) for pair in pairwise(parts)]
            if (best := min(order)) == inf:
                return
            i = order.index(best)
            parts[i : i + 2] = [parts[i] + parts[i + 1].removeprefix(prefix)]
            yield parts[i]


def _lines(path: Path) -> list[str]:
    """Reads the lines of a text file.

    Raises:
        CheckpointError: the file is too large, or not UTF-8.
    """
    try:
        return read_bytes(path, limit=MAX_TOKENIZER).decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as e:
        raise CheckpointError(f"{path} is not UTF-8 text: {e.reason}", hint="fetch the file again") from e


def _renumbered(ids: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, int]:
    return {token: new[i] for token, i in ids.items() if isinstance(i, int) and i in new}


def _map_processor(processor: Any, change: Callable[[int], int]) -> Any:
    """Copies a post-processor, and applies `change` to every id in it."""
    if not processor:
        return processor
    if processor["type"] == "Sequence":
        return {**processor, "processors": [_map_processor(p, change) for p in processor["processors"]]}
    if processor["type"] in ("BertProcessing", "RobertaProcessing"):
        return {**processor, **{k: [processor[k][0], change(processor[k][1])] for k in ("sep", "cls")}}
    if processor["type"] == "TemplateProcessing":
        tokens = {k: {**t, "ids": [change(i) for i in t["ids"]]} for k, t in processor["special_tokens"].items()}
        return {**processor, "special_tokens": tokens}
    return processor


def _write_json(path: Path, values: Any, indent: int | None = 2) -> None:
    path.write_text(json.dumps(values, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
