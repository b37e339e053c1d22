"""Perturbs the texts of tasks as users do: with typos, in other case, with other punctuation, cut short.

A student that keeps the teacher's quality on clean text may lose it on perturbed text; the retention on `NAME+typos`
and on NAME shows this. Each kind changes a share of a text, its strength:

    typos          0.1   of the words, at least one, get a typo: two letters swapped, a letter dropped, doubled, or
                         replaced by its neighbour on a QWERTY keyboard (after Belinkov & Bisk 2018, arXiv 1711.02173);
                         in scripts without spaces, this share of the characters is dropped or doubled
    case           1     of the words are put in upper case, lower case, or swapped case
    punctuation    1     of the punctuation marks are removed, or doubled
    truncation     0.5   of the words are cut off at the end; in scripts without spaces, of the characters

If there are several ways, one is drawn for each text, or for each typo. The draw depends on the seed and the text
alone, so all models get the same texts in every run. Only texts that users send are perturbed: the queries of a
retrieval, not the corpus; both texts of a pair; the sentences of a bitext, not their translations; the test texts of a
classification, not the training texts.
"""

import difflib
import hashlib
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ternarize_cli.errors import InputError
from ternarize_cli.evaluation.labels import Labels, halves
from ternarize_cli.evaluation.neighbours import LabelledImages
from ternarize_cli.evaluation.ranked_pairs import RankedPairs
from ternarize_cli.evaluation.reading import TaskData
from ternarize_cli.evaluation.retrieval import Retrieval
from ternarize_cli.evaluation.scored_pairs import Bitext, LabelledPairs, Pairs
from ternarize_cli.evaluation.zero_shot import ZeroShot

if TYPE_CHECKING:
    from numpy.random import Generator

__all__ = ["kinds", "kinds_in", "perturb_text", "perturbed"]

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, Japanese, Chinese: scripts without spaces between words."""
_CHARACTER = re.compile(f"[{_UNSPACED}]")
_SPELLED = re.compile(rf"[{_UNSPACED}]|[^\W\d_{_UNSPACED}]{{2,}}")
_WORD = re.compile(r"\S+")
_KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")

_Change = Callable[[str, float, "Generator"], str]


@dataclass(frozen=True)
class _Kind:
    change: _Change
    strength: float


_KINDS: dict[str, _Kind] = {}


def _kind(strength: float) -> Callable[[_Change], _Change]:
    """Registers a kind of perturbation, with its default strength."""

    def register(change: _Change) -> _Change:
        _KINDS[change.__name__.removeprefix("_")] = _Kind(change, strength)
        return change

    return register


def kinds() -> tuple[str, ...]:
    """The names of all kinds."""
    return tuple(_KINDS)


def kinds_in(text: str) -> tuple[str, ...]:
    """Reads `KIND[=STRENGTH],…`.

    Raises:
        InputError: a kind is unknown or named twice, or its strength is not a number above 0 and at most 1.
    """
    found = [entry.strip() for entry in text.split(",") if entry.strip()]
    names = [_parsed(entry)[0] for entry in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"--perturb has {name!r} twice")
    return tuple(found)


def perturbed(task: TaskData, kind: str, seed: int = 0) -> TaskData:
    """Makes a copy of a task with perturbed texts, called `NAME+KIND`, with a hash of its own.

    Args:
        task: a task of texts.
        kind: one of `kinds`, or `KIND=STRENGTH`.
        seed: seed of the perturbations. It must be the evaluation's, because it also splits a classification.

    Raises:
        InputError: the kind is unknown, the task has images, or none of its texts changes.
    """
    _parsed(kind)
    if isinstance(task, LabelledImages | ZeroShot):
        raise InputError(
            f"--perturb {kind} changes texts, and {task.name} has images",
            hint="evaluate the images in a separate run",
        )

    moved = 0

    def change(texts: Sequence[str]) -> list[str]:
        nonlocal moved
        changed = [perturb_text(text, kind, seed) for text in texts]
        moved += sum(a != b for a, b in zip(texts, changed, strict=True))
        return changed

    digest = hashlib.sha256(f"{task.sha256} {kind} {seed}".encode()).hexdigest()
    named = replace(task, name=f"{task.name}+{kind}", sha256=digest)
    found: TaskData
    if isinstance(named, Retrieval):
        found = replace(named, queries=dict(zip(named.queries, change(list(named.queries.values())), strict=True)))
    elif isinstance(named, Bitext):
        found = replace(named, first=change(named.first))
    elif isinstance(named, Pairs | LabelledPairs | RankedPairs):
        found = replace(named, first=change(named.first), second=change(named.second))
    elif isinstance(named, Labels):
        found = _test_changed(named, change, seed)
    else:
        found = replace(named, texts=change(named.texts))
    if not moved:
        raise InputError(f"--perturb {kind} changes no text of {task.name}", hint="leave it out")
    return found


def _test_changed(task: Labels, change: Callable[[Sequence[str]], list[str]], seed: int) -> Labels:
    count, size = task.learned, len(task.texts)
    learned, tested = halves(task.labels, seed) if count is None else (range(count), range(count, size))
    texts = list(task.texts)
    for row, text in zip(tested, change([texts[row] for row in tested]), strict=True):
        texts[row] = text
    order = [*learned, *tested]
    return replace(
        task, texts=[texts[row] for row in order], labels=[task.labels[row] for row in order], learned=len(learned)
    )


def perturb_text(text: str, kind: str, seed: int = 0) -> str:
    """Perturbs a text; the result is never empty.

    Raises:
        InputError: the kind is unknown.
    """
    import numpy as np

    name, strength = _parsed(kind)
    digest = hashlib.sha256(f"{name}\0{text}".encode()).digest()
    rng = np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])
    return _KINDS[name].change(text, strength, rng)


def _parsed(kind: str) -> tuple[str, float]:
    name, separator, value = kind.partition("=")
    if name not in _KINDS:
        near = difflib.get_close_matches(name, _KINDS, n=1, cutoff=0.5)
        known = f"one of {', '.join(_KINDS)}"
        raise InputError(
            f"--perturb: there is no kind {name!r}", hint=f"did you mean {near[0]}? ({known})" if near else known
        )
    if not separator:
        return name, _KINDS[name].strength
    try:
        strength = float(value)
    except ValueError:
        strength = math.nan
    if not 0 < strength <= 1:
        raise InputError(f"--perturb {kind}: {value!r} is not a number above 0 and at most 1", hint=f"{name}=0.3")
    return name, strength


def _chosen(count: int, strength: float, rng: "Generator") -> list[int]:
    """Draws a share of positions, at least one, in order."""
    if not count:
        return []
    return sorted(rng.choice(count, size=max(1, round(strength * count)), replace=False).tolist())


@_kind(0.1)
def _typos(text: str, strength: float, rng: "Generator") -> str:
    spots = list(_SPELLED.finditer(text))
    for spot in reversed([spots[i] for i in _chosen(len(spots), strength, rng)]):
        changed = text[: spot.start()] + _misspelled(spot[0], rng) + text[spot.end() :]
        text = changed if changed.strip() else text[: spot.start()] + 2 * spot[0] + text[spot.end() :]
    return text


def _misspelled(word: str, rng: "Generator") -> str:
    if len(word) == 1:
        return 2 * word if rng.integers(2) else ""
    place = int(rng.integers(len(word)))
    before, letter, after = word[:place], word[place], word[place + 1 :]
    ways = [before + after, before + 2 * letter + after]
    pairs = [i for i in range(len(word) - 1) if word[i] != word[i + 1]]
    if pairs:
        i = pairs[int(rng.integers(len(pairs)))]
        ways.append(word[:i] + word[i + 1] + word[i] + word[i + 2 :])
    if near := _neighbours(letter):
        ways.append(before + near[int(rng.integers(len(near)))] + after)
    return ways[int(rng.integers(len(ways)))]


def _neighbours(letter: str) -> str:
    """Lists the letters around a letter on the keyboard, in its case; empty for characters other than a to z."""
    for row, keys in enumerate(_KEYBOARD):
        place = keys.find(letter.lower())
        if place >= 0:
            around = [keys[max(place - 1, 0) : place], keys[place + 1 : place + 2]]
            if row > 0:
                around.append(_KEYBOARD[row - 1][place : place + 2])
            if row + 1 < len(_KEYBOARD):
                around.append(_KEYBOARD[row + 1][max(place - 1, 0) : place + 1])
            return "".join(around).upper() if letter.isupper() else "".join(around)
    return ""


@_kind(1)
def _case(text: str, strength: float, rng: "Generator") -> str:
    forms = [form for form in (str.upper, str.lower, str.swapcase) if form(text) != text]
    if not forms:
        return text
    form = forms[int(rng.integers(len(forms)))]
    words = [word for word in _WORD.finditer(text) if form(word[0]) != word[0]]
    for word in reversed([words[i] for i in _chosen(len(words), strength, rng)]):
        text = text[: word.start()] + form(word[0]) + text[word.end() :]
    return text


@_kind(1)
def _punctuation(text: str, strength: float, rng: "Generator") -> str:
    marks = [i for i, character in enumerate(text) if unicodedata.category(character).startswith("P")]
    chosen = {marks[i] for i in _chosen(len(marks), strength, rng)}
    doubled, removed = (
        "".join(count * character if i in chosen else character for i, character in enumerate(text)) for count in (2, 0)
    )
    return removed if rng.integers(2) and removed.strip() else doubled


@_kind(0.5)
def _truncation(text: str, strength: float, rng: "Generator") -> str:
    unspaced = 2 * len(_CHARACTER.findall(text)) > sum(character.isalpha() for character in text)
    ends = [m.end() for m in re.finditer(r"\S" if unspaced else r"\S+", text)]
    kept = max(1, math.ceil(round((1 - strength) * len(ends), 9)))
    return text[: ends[kept - 1]] if ends else text
