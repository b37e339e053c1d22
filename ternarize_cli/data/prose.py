"""Makes prose of documentation: the paragraphs of what is written in docstrings, reStructuredText and Markdown, and
their sentences and passages, on which a model can train.
"""

import re
from collections.abc import Iterable, Iterator
from inspect import cleandoc

__all__ = ["NO_TEXT", "paragraphs_of", "passage", "pieces", "sentences"]

NO_TEXT = re.compile("[\0\ud800-\udfff]")
"""What a string may have written as escapes, and no file of texts may hold."""
_FEWEST_WORDS = 4
_LONGEST = 1000  # of a sentence or passage: most models read no more of a document
_LETTERS = 0.75
_INLINE = [
    (
        re.compile(r"(?<![\w:+-]):[\w:+-]+:`(?:~|!)?(?:[^`<]*<)?([^`<>]+)>?`"),
        r"\1",
    ),  # :func:`~os.path.join`, :ref:`title <label>`
    (re.compile(r"\[`~?([^`\]]+)`\](?:\([^)]*\))?"), r"\1"),  # [`~Trainer.train`]
    (re.compile(r"`{1,2}([^`\n]*[^`\s])`{1,2}_{0,2}"), r"\1"),
    (re.compile(r"\*\*([^*\n]+)\*\*"), r"\1"),
    (re.compile(r"^:(?:param|type|arg|keyword|raises?)\s+([^:\n]+):", re.MULTILINE), r"\1:"),
    (re.compile(r"^:(?:returns?|rtype):", re.MULTILINE), "Returns:"),
    (re.compile(r"</?[A-Za-z][^>\n]{0,60}>"), ""),
]
_DROPPED_LINE = re.compile(r"\s*(?:[-=~^*#+]{3,}|\.\. (?!note|warning|seealso|tip|important).*|:[\w-]+:|```.*)\s*")
_EMPTIED = re.compile(r"(Examples?|References|Usage):{0,2}")  # a heading whose section is gone
_ADMONITION = re.compile(r"^[ \t]*\.\. (\w+)::\s*", re.MULTILINE)


def paragraphs_of(docstring: str) -> list[str]:
    """Lists the paragraphs of a docstring, without examples, underlines, directives and markup."""
    kept, skipping, fenced = [], False, False
    for line in cleandoc(docstring).splitlines():
        stripped = line.strip()
        if stripped.startswith("```"):
            fenced = not fenced
            continue
        if fenced:
            continue
        if stripped.startswith(">>>"):
            skipping = True  # an example and its output extend to the next blank line
        elif not stripped:
            skipping = False
        if not skipping and not _DROPPED_LINE.fullmatch(line):
            kept.append(stripped)
    text = _ADMONITION.sub(lambda m: f"{m[1].capitalize()}: ", "\n".join(kept))
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    paragraphs = (paragraph.strip() for paragraph in re.split(r"\n\s*\n", text))
    return [paragraph for paragraph in paragraphs if re.search(r"\w", paragraph) and not _EMPTIED.fullmatch(paragraph)]


def sentences(paragraph: str) -> Iterator[str]:
    """Yields the sentences of a paragraph that have at least 4 words, each on one line."""
    for sentence in re.split(r"(?<=[.!?:]) +(?=[A-Z`\"'(])", " ".join(paragraph.split())):
        if len(sentence.split()) >= _FEWEST_WORDS:
            yield sentence


def passage(text: str, longest: int) -> str:
    """Returns the first characters of a text, at most `longest`, cut between words, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= longest else line[:longest].rsplit(" ", 1)[0]


def pieces(paragraphs: Iterable[str]) -> Iterator[str]:
    """Yields what is prose in paragraphs: their sentences, and after them passages of two or more paragraphs.

    Tables, code and lists of names are left out: a sentence has at most 1,000 characters, of which three quarters are
    letters. A passage has at most 1,000 characters, too.
    """
    kept: list[str] = []
    for paragraph in paragraphs:
        if NO_TEXT.search(paragraph):
            continue
        found = [sentence for sentence in sentences(paragraph) if _is_prose(sentence)]
        yield from found
        if found:
            kept.append(" ".join(found))
    start = 0
    while start < len(kept) - 1:
        end, length = start, 0
        while end < len(kept) and length < _LONGEST:
            length += len(kept[end])
            end += 1
        if end - start > 1:
            yield passage(" ".join(kept[start:end]), _LONGEST)
        start = end


def _is_prose(sentence: str) -> bool:
    return len(sentence) <= _LONGEST and sum(map(str.isalpha, sentence)) >= _LETTERS * len(sentence)
