"""Perturbed tasks: what each kind does to a text, and that everybody sees the same."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from support.images import make_labels, make_pixels, write_folder
from support.models import WORDS
from ternarize_cli.errors import InputError
from ternarize_cli.evaluation.labels import Clusters, Labels, halves
from ternarize_cli.evaluation.perturb import kinds, kinds_in, perturb_text, perturbed
from ternarize_cli.evaluation.reading import read_tasks
from ternarize_cli.evaluation.retrieval import Retrieval
from ternarize_cli.evaluation.scored_pairs import Bitext, LabelledPairs, Pairs

TEXT = "Don't panic: the quick brown fox, aged 7, jumped over the lazy dog (twice)!"
CHINESE = "我们今天去了北京的故宫,天气非常好。"


def edits(a: str, b: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


@pytest.mark.parametrize("kind", kinds())
def test_the_same_seed_and_text_give_the_same_change(kind: str) -> None:
    texts = [f"{TEXT} {word}" for word in WORDS]
    first = [perturb_text(text, kind, 3) for text in texts]
    assert first == [perturb_text(text, kind, 3) for text in reversed(texts)][::-1]
    assert all(a != b for a, b in zip(first, texts, strict=True))
    if kind != "truncation":  # nothing is drawn there
        assert first != [perturb_text(text, kind, 4) for text in texts]


@pytest.mark.parametrize("kind", [f"{kind}{strength}" for kind in kinds() for strength in ("", "=0.01", "=1")])
@pytest.mark.parametrize(
    "text", ["a", "ab", "!", "...", "我", "我们", "你 好", "é", "ß", "👍", "\u3000x", " a b ", "7", "ไทย"]
)
def test_no_text_becomes_empty(kind: str, text: str) -> None:
    for seed in range(12):
        assert perturb_text(text, kind, seed).strip()


def test_typos_are_few_edits_of_letters() -> None:
    for seed in range(40):
        changed = perturb_text(TEXT, "typos", seed)
        assert 1 <= edits(TEXT, changed) <= 2  # a swap is two edits
        assert [c for c in changed if not c.isalpha()] == [c for c in TEXT if not c.isalpha()]


def test_stronger_typos_change_more_words() -> None:
    text = " ".join(WORDS)
    changed = {
        kind: sum(a != b for a, b in zip(text.split(), perturb_text(text, kind, 1).split(), strict=True))
        for kind in ("typos", "typos=0.5", "typos=1")
    }
    spelled = sum(len(word) > 1 for word in WORDS)
    assert changed == {"typos": round(0.1 * spelled), "typos=0.5": round(0.5 * spelled), "typos=1": spelled}


def test_a_replaced_letter_is_a_neighbour_on_the_keyboard() -> None:
    found = {perturb_text("gg GG", "typos=1", seed) for seed in range(400)}
    replaced = {c for text in found if len(text) == 5 for c in text if c not in "gG "}
    assert {c for c in replaced if c.islower()} == set("fhtyvb")
    assert {c for c in replaced if c.isupper()} == set("FHTYVB")


def test_chinese_characters_are_dropped_or_doubled() -> None:
    lengths = set()
    for seed in range(40):
        changed = perturb_text(CHINESE, "typos=0.2", seed)
        assert set(changed) <= set(CHINESE)
        assert ("," in changed, "。" in changed) == (True, True)
        lengths.add(len(changed) - len(CHINESE))
    assert {-1, 1} <= lengths <= set(range(-3, 4))


def test_case_keeps_the_letters() -> None:
    found = {perturb_text(TEXT, "case", seed) for seed in range(40)}
    assert found == {TEXT.upper(), TEXT.lower(), TEXT.swapcase()}
    assert {perturb_text("all lower", "case", seed) for seed in range(20)} == {"ALL LOWER"}
    assert perturb_text("one two three four", "case=0.5", 0).lower() == "one two three four"
    assert sum(word.isupper() for word in perturb_text("one two three four", "case=0.5", 0).split()) == 2


def test_punctuation_is_removed_or_doubled() -> None:
    found = {perturb_text("Don't: (stop)!", "punctuation", seed) for seed in range(20)}
    assert found == {"Dont stop", "Don''t:: ((stop))!!"}
    assert {perturb_text("好。", "punctuation", seed) for seed in range(20)} == {"好", "好。。"}
    assert perturb_text("no marks", "punctuation") == "no marks"


def test_truncation_keeps_the_first_half() -> None:
    assert perturb_text("one two, three  four five", "truncation") == "one two, three"
    assert perturb_text("one two three four", "truncation=0.75") == "one"
    assert perturb_text(" ".join("abcdefghij"), "truncation=0.7") == "a b c"
    assert perturb_text("word", "truncation") == "word"
    assert perturb_text("我们去故宫", "truncation") == "我们去"
    assert perturb_text("한국어 문장 입니다 네", "truncation") == "한국어 문장"  # Korean has spaces


def test_lists_of_kinds_are_read_and_refused() -> None:
    assert kinds() == ("typos", "case", "punctuation", "truncation")
    assert kinds_in("typos, case=0.5,") == ("typos", "case=0.5")
    assert kinds_in("") == ()
    for text, message, hint in (
        ("typo", "no kind 'typo'", "did you mean typos?"),
        ("noise", "no kind 'noise'", "one of typos, case, punctuation, truncation"),
        ("typos=2", "'2' is not a number above 0 and at most 1", "typos=0.3"),
        ("typos=much", "'much' is not a number", "typos=0.3"),
        ("typos,typos=0.2", "'typos' twice", ""),
    ):
        with pytest.raises(InputError, match=message) as error:
            kinds_in(text)
        assert hint in (error.value.hint or "")


SENTENCES = [f"The {word} is here, {i}." for i, word in enumerate(WORDS[:12])]


def test_all_texts_of_pairs_and_clusters_change() -> None:
    pairs = Pairs("p", Path("p.csv"), "0", SENTENCES[:6], SENTENCES[6:], [1.0] * 6)
    found = perturbed(pairs, "case", 1)
    assert (found.name, found.scores) == ("p+case", pairs.scores)
    assert [*found.first, *found.second] == [perturb_text(text, "case", 1) for text in SENTENCES]
    labelled = LabelledPairs("p", Path("p.csv"), "0", SENTENCES[:6], SENTENCES[6:], [0, 1] * 3)
    assert perturbed(labelled, "case", 1).second == found.second
    clusters = Clusters("c", Path("c.tsv"), "0", SENTENCES, ["a", "b"] * 6)
    assert perturbed(clusters, "case", 1).texts == [*found.first, *found.second]
    bitext = perturbed(Bitext("b", Path("b.csv"), "0", SENTENCES[:6], SENTENCES[6:]), "case", 1)
    assert (bitext.first, bitext.second) == (found.first, SENTENCES[6:])


def test_only_queries_of_a_retrieval_change(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": str(i), "text": text}) + "\n" for i, text in enumerate(SENTENCES))
    )
    (tmp_path / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{i}", "text": SENTENCES[i], "relevant": [str(i)]}) + "\n" for i in range(5))
    )
    (task,) = read_tasks(retrieval=[tmp_path])
    found = perturbed(task, "truncation")
    assert isinstance(found, Retrieval)
    assert (found.corpus, found.relevant, list(found.queries)) == (task.corpus, task.relevant, list(task.queries))
    assert list(found.queries.values()) == [text.rsplit(" ", 2)[0] for text in SENTENCES[:5]]


def test_only_the_tested_half_of_a_classification_changes() -> None:
    from ternarize_cli.evaluation.tasks import make_task

    task = Labels("l", Path("l.tsv"), "0", SENTENCES, ["a", "b", "b"] * 4)
    for seed in (0, 5):
        plain, noisy = (make_task(data, seed=seed).dataset for data in (task, perturbed(task, "typos", seed)))
        assert noisy["train"].to_dict() == plain["train"].to_dict()
        assert noisy["test"]["label"] == plain["test"]["label"]
        assert list(noisy["test"]["text"]) == [perturb_text(text, "typos", seed) for text in plain["test"]["text"]]
        learned, tested = halves(task.labels, seed)
        assert sorted([*learned, *tested]) == list(range(12))
    given = perturbed(replace(task, learned=4), "typos")
    assert (given.texts[:4], given.learned, given.labels) == (SENTENCES[:4], 4, task.labels)
    assert given.texts[4:] == [perturb_text(text, "typos") for text in SENTENCES[4:]]


def test_every_perturbed_task_has_a_hash_of_its_own() -> None:
    task = Pairs("p", Path("p.csv"), "0", SENTENCES[:6], SENTENCES[6:], [1.0] * 6)
    other = replace(task, sha256="1")
    made = [perturbed(t, kind, seed) for t in (task, other) for kind in (*kinds(), "typos=0.2") for seed in (0, 1)]
    assert len({m.sha256 for m in [task, *made]}) == len(made) + 1
    assert perturbed(task, "typos").sha256 == perturbed(task, "typos").sha256


def test_what_can_not_be_perturbed_is_refused(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_folder(tmp_path / part, make_pixels(12), make_labels(12))
    image_task = read_tasks(images=[tmp_path])[0]
    with pytest.raises(InputError, match=r"changes texts, and .* has images"):
        perturbed(image_task, "typos")
    chinese = Clusters("zh", Path("zh.tsv"), "0", ["我们", "你们", "他们"], ["a", "a", "b"])
    with pytest.raises(InputError, match="--perturb case changes no text of zh"):
        perturbed(chinese, "case")
    with pytest.raises(InputError, match="no kind 'blur'"):
        perturbed(chinese, "blur")
