"""Compares the tokens that llama.cpp makes of a GGUF file's vocabulary with those of the tokenizer; prints JSON.

    python docs/results/check_gguf_tokens.py TOKENIZER… > docs/results/bench/gguf-tokens.json

Compared are the texts of gguf_texts.json, and every character of Unicode's first plane and of the emoji, in the text
"wordXs X". Each TOKENIZER is a folder that transformers opens. `texts` lists the texts whose ids differ; `characters`
counts them by general category and first word of their names.
"""

import ctypes
import json
import sys
import unicodedata
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import llama_cpp
from transformers import AutoTokenizer

from ternarize_cli.export.gguf import write_file
from ternarize_cli.export.gguf_vocabulary import add_vocabulary

TEXTS = Path(__file__).parent / "gguf_texts.json"
PLACES = (1, 0xD800), (0xE000, 0x10000), (0x1F300, 0x1FB00)
SHOWN = 5
"""How many kinds of characters are listed."""


class Vocabulary:
    """A tokenizer's vocabulary that is open in llama.cpp."""

    def __init__(self, tokenizer: Any, place: Path) -> None:
        """Writes the vocabulary to a file in a folder, and opens it."""
        writer = gguf.GGUFWriter(None, "bert")
        add_vocabulary(writer, tokenizer, max(tokenizer.get_vocab().values()) + 1)
        write_file(writer, place / "vocabulary.gguf")
        settings = llama_cpp.llama_model_default_params()
        settings.vocab_only = True
        self._model: Any = llama_cpp.llama_model_load_from_file(bytes(place / "vocabulary.gguf"), settings)
        self._vocabulary: Any = llama_cpp.llama_model_get_vocab(self._model)

    def tokenize(self, text: str) -> list[int]:
        """Returns the ids of a text's tokens, with those that llama.cpp adds at the ends."""
        content = text.encode()
        ids = (ctypes.c_int32 * (len(content) + 8))()
        found = llama_cpp.llama_tokenize(self._vocabulary, content, len(content), ids, len(ids), True, True)
        return list(ids[:found])


def kind(character: str) -> str:
    """Names the kind of a character, such as `Lo HANGUL`."""
    return f"{unicodedata.category(character)} {unicodedata.name(character, '?').split()[0]}"


def main() -> None:
    """Compares and prints."""
    texts = json.loads(TEXTS.read_text("utf-8"))
    points = [chr(point) for first, last in PLACES for point in range(first, last)]
    characters = [character for character in points if unicodedata.category(character) != "Cn"]
    llama_cpp.llama_log_set(silent, None)
    report: dict[str, Any] = {
        "versions": {name: version(name) for name in ("llama-cpp-python", "tokenizers", "gguf", "transformers")},
        "texts": len(texts),
        "characters": len(characters),
        "tokenizers": {},
    }
    for folder in map(Path, sys.argv[1:]):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        with TemporaryDirectory() as place:
            vocabulary = Vocabulary(tokenizer, Path(place))
            differ = [text for text in texts if tokenizer(text)["input_ids"] != vocabulary.tokenize(text)]
            inside = [f"word{character}s {character}" for character in characters]
            pairs = zip(characters, inside, tokenizer(inside)["input_ids"], strict=True)
            kinds = Counter(kind(c) for c, text, ids in pairs if ids != vocabulary.tokenize(text))
        found = {"rows": len(tokenizer), "texts": differ}
        found |= {"characters": kinds.total(), "kinds": dict(kinds.most_common(SHOWN))}
        report["tokenizers"][folder.name] = found
    print(json.dumps(report, indent=1))


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def silent(level: int, text: bytes, _: object) -> None:
    """Lets llama.cpp say nothing."""


if __name__ == "__main__":
    main()
