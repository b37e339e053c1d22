"""Vectors of sequences: those of sentence-transformers' modules, and the same bits everywhere."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from support.instruction_sets import needs_library
from ternarize_cli.errors import FormatError
from ternarize_cli.runtime.native.interface import POOLINGS
from ternarize_cli.runtime.native.library import Library

pytestmark = needs_library
LENGTHS = [5, 1, 0, 17, 3, 64, 0]
JOINED = [("mean", "max"), ("cls", "lasttoken", "mean"), POOLINGS, POOLINGS[::-1], ("max", "max")]


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def starts_of(lengths: list[int]) -> np.ndarray:
    return np.cumsum([0, *lengths]).astype(np.int32)


def by_sentence_transformers(x: np.ndarray, lengths: list[int], modes: tuple[str, ...], skipped: int) -> np.ndarray:
    """The vectors that its module makes of a padded batch; what stands at padding must not matter."""
    starts = starts_of(lengths)
    padded = np.full((len(lengths), max(lengths), x.shape[1]), 1e3, np.float32)
    mask = np.zeros(padded.shape[:2], np.int64)
    for i, length in enumerate(lengths):
        padded[i, :length], mask[i, :length] = x[starts[i] : starts[i + 1]], 1
    features = {"token_embeddings": torch.from_numpy(padded), "attention_mask": torch.from_numpy(mask)}
    pooling = Pooling(x.shape[1], modes, include_prompt=not skipped)
    made: np.ndarray = pooling(features | {"prompt_length": skipped})["sentence_embedding"].numpy()
    return made


def exact(x: np.ndarray, lengths: list[int], mode: str, skipped: int) -> np.ndarray:
    """Pools in float64, sums in the order of the tokens."""
    starts, vectors = starts_of(lengths), []
    for begin, end in pairwise(starts):
        tokens, places = x[begin:end].astype(np.float64)[skipped:], np.arange(1.0, end - begin + 1)[skipped:, None]
        if mode == "max":
            vectors.append(tokens.max(axis=0, initial=-np.inf))
        elif not len(tokens):
            vectors.append(np.zeros(x.shape[1]))
        elif mode in ("cls", "lasttoken"):
            vectors.append(tokens[0 if mode == "cls" else -1])
        elif mode == "weightedmean":
            vectors.append(np.cumsum(tokens * places, axis=0)[-1] / places.sum())
        else:
            count = len(tokens)
            vectors.append(np.cumsum(tokens, axis=0)[-1] / (count if mode == "mean" else np.sqrt(count)))
    return np.array(vectors).astype(np.float32)


def test_there_are_the_modes_of_sentence_transformers() -> None:
    assert set(POOLINGS) == set(Pooling.POOLING_MODES)


@pytest.mark.parametrize("skipped", [0, 1, 4, 100])
@pytest.mark.parametrize("mode", POOLINGS)
def test_vectors_are_those_of_sentence_transformers(lib: Library, mode: str, skipped: int) -> None:
    x = random(sum(LENGTHS), 33)
    made, own = (
        lib.pool(x, starts_of(LENGTHS), (mode,), skipped),
        by_sentence_transformers(x, LENGTHS, (mode,), skipped),
    )
    assert (made.shape, made.dtype) == ((len(LENGTHS), 33), np.float32)
    has_tokens = np.array(LENGTHS) > skipped
    if mode == "cls":  # of a sequence without tokens, it takes what stands in the first place
        made, own = made[has_tokens], own[has_tokens]
    np.testing.assert_allclose(made, own, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("modes", JOINED)
def test_the_vectors_of_several_modes_are_joined_in_their_order(lib: Library, modes: tuple[str, ...]) -> None:
    lengths = [n for n in LENGTHS if n]
    x, starts = random(sum(lengths), 33), starts_of(lengths)
    made = lib.pool(x, starts, modes)
    assert (made == np.concatenate([lib.pool(x, starts, (mode,)) for mode in modes], axis=1)).all()
    np.testing.assert_allclose(made, by_sentence_transformers(x, lengths, modes, 0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", POOLINGS)
def test_a_sequence_without_tokens_gives_zeros_or_the_least(lib: Library, mode: str) -> None:
    x, least = random(4, 5), -np.inf if mode == "max" else 0.0
    assert (lib.pool(x, starts_of([0, 4, 0]), (mode,))[[0, 2]] == least).all()
    assert (lib.pool(x, starts_of([1, 3]), (mode,), skipped=3) == least).all()
    assert (lib.pool(x[:0], starts_of([0, 0]), (mode,)) == np.full((2, 5), least)).all()
    assert lib.pool(x[:0], starts_of([]), (mode,)).shape == (0, 5)


@pytest.mark.parametrize("skipped", [0, 2])
@pytest.mark.parametrize("mode", POOLINGS)
@pytest.mark.parametrize(
    ("lengths", "width"), [(LENGTHS, 1), (LENGTHS, 129), ([600, 1, 40, 7, 7], 700), ([3] * 300, 500)]
)
def test_bits_depend_neither_on_the_instruction_set_nor_on_threads(
    lib: Library, set_threads: Callable[[int], None], lengths: list[int], width: int, mode: str, skipped: int
) -> None:
    x = 100 * random(sum(lengths), width) + 3
    expected = exact(x, lengths, mode, skipped)
    for threads in (1, 2, 3, 8):
        set_threads(threads)
        assert (lib.pool(x, starts_of(lengths), (mode,), skipped) == expected).all(), threads


@pytest.mark.parametrize("mode", POOLINGS)
def test_what_is_not_finite_stays_in_its_sequence_and_column(lib: Library, mode: str) -> None:
    x = random(9, 6)
    x[3, 2] = np.nan  # of all tokens of the second sequence, which "cls" and "lasttoken" are too
    made = lib.pool(x, starts_of([3, 1, 5]), (mode,))
    assert np.isnan(made).tolist() == [[(i, j) == (1, 2) for j in range(6)] for i in range(3)]
    x[3, 2], x[6, 4] = 0, np.nan
    made = lib.pool(x, starts_of([3, 1, 5]), (mode,))
    assert np.isnan(made).sum() == (mode not in ("cls", "lasttoken"))


def test_sums_of_large_values_do_not_overflow(lib: Library) -> None:
    x = np.full((8, 3), 3e38, np.float32)
    assert (lib.pool(x, starts_of([8]), ("mean", "weightedmean")) == np.float32(3e38)).all()


def test_what_there_is_not_to_pool_is_refused_in_words(lib: Library) -> None:
    x, starts = random(4, 5), starts_of([1, 3])
    for wrong in (x.astype(np.float64), x[0], x[None]):
        with pytest.raises(ValueError, match=r"x should be float32 \[rows, width\]"):
            lib.pool(wrong, starts, ("mean",))
    for wrong_starts in (starts.astype(np.int64), starts[:0], starts[None]):
        with pytest.raises(ValueError, match="starts should be int32"):
            lib.pool(x, wrong_starts, ("mean",))
    with pytest.raises(ValueError, match="there is no pooling 'sum', only cls, lasttoken, mean"):
        lib.pool(x, starts, ("mean", "sum"))
    for array in (random(4, 10)[:, ::2], random(8, 5)[::2]):
        with pytest.raises(ValueError, match="contiguous"):
            lib.pool(array, starts, ("mean",))
    for given, why in (
        ([0, 2, 1, 4], "a sequence ends before it starts, or behind the last token"),
        ([0, 5], "a sequence ends before it starts, or behind the last token"),
        ([0, 3], "the last sequence ends at the last token"),
        ([1, 4], "the first sequence starts at 0"),
        ([0, -1], "a sequence ends before it starts"),
    ):
        with pytest.raises(FormatError, match=why):
            lib.pool(x, np.array(given, np.int32), ("mean",))
    for skipped in (-1, (1 << 24) + 1, 1 << 40, -(1 << 40)):
        with pytest.raises(FormatError, match="0 to 16,777,216 tokens are left out"):
            lib.pool(x, starts, ("mean",), skipped)
    with pytest.raises(FormatError, match="a row is 1 to 4,194,304 wide"):
        lib.pool(x[:, :0].copy(), starts, ("mean",))


@pytest.mark.parametrize("width", [1, 7, 384, 1000])
def test_rows_are_normalized_as_sentence_transformers_does(lib: Library, width: int) -> None:
    x = 10 * random(50, width)
    own = Normalize()({"sentence_embedding": torch.from_numpy(x.copy())})["sentence_embedding"].numpy()
    squares = np.cumsum(x.astype(np.float64) ** 2, axis=1)[:, -1:]
    expected = x / np.sqrt(squares).astype(np.float32)
    lib.normalize(x)
    assert (x == expected).all()
    np.testing.assert_allclose(x, own, rtol=1e-6, atol=1e-7)


def test_rows_of_any_length_are_normalized(lib: Library) -> None:
    x = np.float32([[3, 4], [0, 0], [3e-13, 4e-13], [3e-20, 0], [3e30, 4e30], [np.nan, 1], [np.inf, 1]])
    lib.normalize(x)
    np.testing.assert_allclose(x[:5], [[0.6, 0.8], [0, 0], [0.3, 0.4], [3e-8, 0], [0.6, 0.8]], rtol=1e-6)
    assert np.isnan(x[5]).all()
    assert np.isnan(x[6]).tolist() == [True, False]
    lib.normalize(x[:0])


def test_what_there_is_not_to_normalize_is_refused_in_words(lib: Library) -> None:
    for wrong in (random(2, 3).astype(np.float64), random(3), random(1, 2, 3)):
        with pytest.raises(ValueError, match=r"x should be float32 \[rows, width\]"):
            lib.normalize(wrong)
    with pytest.raises(ValueError, match="contiguous"):
        lib.normalize(random(4, 10)[:, ::2])
    with pytest.raises(FormatError, match="a row is 1 to 4,194,304 wide"):
        lib.normalize(np.zeros((3, 0), np.float32))
