"""The C functions for training and for what encoders have beside blocks refuse wrong arguments, and write nothing."""

import ctypes
from typing import Any

import numpy as np
import pytest

from support.instruction_sets import needs_library
from ternarize_cli.runtime.native.arrays import aligned
from ternarize_cli.runtime.native.interface import MAX_INPUTS, MAX_OUTPUTS, NativeDense, NativeNorm
from ternarize_cli.runtime.native.library import Library

pytestmark = needs_library
REFUSED = -2
INT_MIN, INT_MAX = -(1 << 31), (1 << 31) - 1
ISA, THREADS = "there is no such instruction set", "threads are 1 to 1024"
INPUT, OUTPUT = "there is no input, or it is not aligned", "there is no output, or it is not aligned"
ROWS, WIDTH = "there are 0 to 268,435,456 rows", "a row is 1 to 4,194,304 wide"
STARTS = "there are no starts of sequences, or they are not aligned"
SKIPPED, OVERLAP = "0 to 16,777,216 tokens are left out", "vectors overlap"


def filled(*shape: int) -> np.ndarray:
    made = aligned(*shape)
    made[:] = np.arange(1, made.size + 1).reshape(shape)
    return made


class Calls:
    """A valid call of each function: arguments by name, in their order, and the array that it writes."""

    def __init__(self) -> None:
        self.x, self.y, self.gain, self.bias = filled(3, 5), filled(3, 7), filled(5), filled(5)
        self.weights, self.panel, self.starts = filled(1, 5, 32), filled(32), np.array([0, 1, 3], np.int32)
        self.dense = NativeDense(self.weights.ctypes.data, self.panel.ctypes.data, 5, 7)
        self.norm = NativeNorm(self.gain.ctypes.data, self.bias.ctypes.data, 1e-5, 1)
        x, y, starts = (array.ctypes.data for array in (self.x, self.y, self.starts))
        w, norm = ctypes.pointer(self.dense), ctypes.pointer(self.norm)
        sequences = {"starts": starts, "sequences": 2}
        linear = {"weights": x, "scales": norm.contents.gain, "low": -1, "high": 1, "outputs": 3, "inputs": 5}
        self.arguments: dict[str, dict[str, Any]] = {
            "tz_dense": {"isa": 0, "w": w, "x": x, "rows": 3, "y": y, "threads": 2},
            "tz_norm": {"isa": 0, "norm": norm, "x": x, "rows": 3, "width": 5, "threads": 2},
            "tz_pool": {"mode": 2, "x": x, "tokens": 3, "width": 5}
            | sequences
            | {"skipped": 0, "out": y, "stride": 7, "threads": 2},
            "tz_normalize": {"x": x, "rows": 3, "width": 5},
            "tz_round_weights": {"isa": 0} | linear | {"out": y, "bf16": None, "threads": 2},
            "tz_scale_gradients": {"isa": 0, "gradients": x, "bf16": None}
            | linear
            | {"out": y, "wide": None, "threads": 2},
            "tz_round_activations": {"isa": 0, "x": x, "rows": 3, "width": 5, "out": y, "bf16": None, "threads": 2},
        }


TRAINING = ("tz_round_weights", "tz_scale_gradients", "tz_round_activations")
ROUNDING = ("tz_round_weights", "tz_round_activations")
LINEAR: list[tuple[str, Any, str]] = [
    *(("low", n, "codes lie between -8 and 7") for n in (-9, 1, INT_MIN)),
    *(("high", n, "codes lie between -8 and 7") for n in (0, 8, INT_MAX)),
    *(("outputs", n, "a linear has 1 to 16,777,216 outputs") for n in (0, -1, MAX_OUTPUTS + 1)),
    *(("inputs", n, "a linear has 1 to 4,194,304 inputs") for n in (0, -1, MAX_INPUTS + 1)),
    *(("weights", place, "there are no weights, or they are not aligned") for place in (None, 1, 2)),
    *(("scales", place, "there are no scales, or they are not aligned") for place in (None, 1, 2)),
]
CASES: list[tuple[str, str, Any, str]] = [
    *(("tz_dense", "isa", n, ISA) for n in (-1, 99)),
    *(("tz_dense", "threads", n, THREADS) for n in (0, -1, 1025)),
    ("tz_dense", "w", None, "there is no linear, or it is not aligned"),
    *(("tz_dense", "rows", n, ROWS) for n in (-1, INT_MIN, (1 << 28) + 1, INT_MAX)),
    *(("tz_dense", "x", place, INPUT) for place in (None, 1, 2)),
    *(("tz_dense", "y", place, OUTPUT) for place in (None, 1, 3)),
    *(("tz_norm", "isa", n, ISA) for n in (-1, 99)),
    *(("tz_norm", "threads", n, THREADS) for n in (0, -1, 1025)),
    ("tz_norm", "norm", None, "there is no norm, or it is not aligned"),
    *(("tz_norm", "rows", n, ROWS) for n in (-1, (1 << 28) + 1)),
    *(("tz_norm", "width", n, WIDTH) for n in (0, -1, MAX_INPUTS + 1)),
    *(("tz_norm", "x", place, INPUT) for place in (None, 1, 2)),
    *(("tz_pool", "mode", n, "there is no such pooling") for n in (-1, 6, INT_MAX)),
    *(("tz_pool", "threads", n, THREADS) for n in (0, -1, 1025)),
    *(("tz_pool", "width", n, WIDTH) for n in (0, -5, MAX_INPUTS + 1)),
    *(("tz_pool", "stride", n, OVERLAP) for n in (4, 0, -7, -(1 << 63), (1 << 63) - 1)),
    *(("tz_pool", "skipped", n, SKIPPED) for n in (-1, (1 << 24) + 1)),
    *(("tz_pool", "starts", place, STARTS) for place in (None, 1, 2)),
    *(("tz_pool", "sequences", n, "there are 0 to 268,435,456 sequences") for n in (-1, (1 << 28) + 1)),
    *(("tz_pool", "sequences", n, "the last sequence ends at the last token") for n in (0, 1)),
    *(("tz_pool", "tokens", n, "there are 0 to 268,435,456 tokens") for n in (-1, (1 << 28) + 1)),
    ("tz_pool", "tokens", 2, "a sequence ends before it starts, or behind the last token"),
    ("tz_pool", "tokens", 4, "the last sequence ends at the last token"),
    *(("tz_pool", "x", place, INPUT) for place in (None, 1, 2)),
    *(("tz_pool", "out", place, OUTPUT) for place in (None, 1, 2)),
    *(("tz_normalize", "rows", n, ROWS) for n in (-1, (1 << 28) + 1)),
    *(("tz_normalize", "width", n, WIDTH) for n in (0, -1, MAX_INPUTS + 1)),
    *(("tz_normalize", "x", place, INPUT) for place in (None, 1, 2)),
    *((name, "isa", n, ISA) for name in TRAINING for n in (-1, 99)),
    *((name, "threads", n, THREADS) for name in TRAINING for n in (0, -1, 1025)),
    *((name, "out", None, "the output is either float or bfloat16") for name in ROUNDING),
    *((name, "bf16", 64, "the output is either float or bfloat16") for name in ROUNDING),
    *((name, "out", place, "the output is not aligned") for name in ROUNDING for place in (1, 2)),
    *(("tz_scale_gradients", "out", place, OUTPUT) for place in (None, 1, 2)),
    *((name, *case) for name in TRAINING[:2] for case in LINEAR),
    *(("tz_scale_gradients", "gradients", place, "the gradients are not aligned") for place in (1, 2)),
    ("tz_scale_gradients", "gradients", None, "gradients are either float or bfloat16"),
    ("tz_scale_gradients", "bf16", 64, "gradients are either float or bfloat16"),
    *(("tz_round_activations", "rows", n, ROWS) for n in (-1, (1 << 28) + 1)),
    *(("tz_round_activations", "width", n, WIDTH) for n in (0, -1, MAX_INPUTS + 1)),
    *(("tz_round_activations", "x", place, INPUT) for place in (None, 1, 2)),
]
"""Function, argument, a wrong value (of a place: None, or the bytes by which it is moved), and what is said."""
PLACES = ("x", "y", "out", "starts", "weights", "scales", "gradients")

FIELDS: list[tuple[str, str, str, Any, str]] = [
    *(("tz_dense", "dense", "inputs", n, "a linear has 1 to 4,194,304 inputs") for n in (0, -1, MAX_INPUTS + 1)),
    *(("tz_dense", "dense", "outputs", n, "a linear has 1 to 16,777,216 outputs") for n in (0, -1, MAX_OUTPUTS + 1)),
    *(("tz_dense", "dense", "weights", n, "a linear has no weights, or they are not aligned") for n in (None, 1, 2)),
    *(("tz_dense", "dense", "bias", n, "a linear has no bias, or it is not aligned") for n in (None, 1, 2)),
    *(("tz_norm", "norm", "kind", n, "there is no norm of this kind") for n in (-1, 3, INT_MAX)),
    *(("tz_norm", "norm", "eps", n, "the epsilon of a layer norm") for n in (0.0, -1e-5, 1.0, float("nan"))),
    *(("tz_norm", "norm", "gain", n, "a norm has no gain, or it is not aligned") for n in (None, 1, 2)),
    *(("tz_norm", "norm", "bias", n, "a layer norm has no bias, or it is not aligned") for n in (None, 1, 2)),
]
"""Function, structure, field, a wrong value, and what is said."""


def refused(lib: Library, calls: Calls, name: str, why: str) -> None:
    arrays = [calls.x.copy(), calls.y.copy()]
    assert getattr(lib._c, name)(*calls.arguments[name].values()) == REFUSED
    assert lib._c.tz_why().decode().startswith(why)
    assert (calls.x == arrays[0]).all()
    assert (calls.y == arrays[1]).all()


@pytest.mark.parametrize("name", ["tz_dense", "tz_norm", "tz_pool", "tz_normalize"])
def test_a_valid_call_is_carried_out(lib: Library, name: str) -> None:
    calls = Calls()
    before = calls.x.copy(), calls.y.copy()
    assert getattr(lib._c, name)(*calls.arguments[name].values()) == 0
    assert (calls.x == before[0]).all() == (name in ("tz_dense", "tz_pool"))
    assert (calls.y == before[1]).all() == (name in ("tz_norm", "tz_normalize"))


@pytest.mark.parametrize(("name", "argument", "value", "why"), CASES)
def test_a_wrong_argument_is_refused_in_words(lib: Library, name: str, argument: str, value: Any, why: str) -> None:
    calls = Calls()
    given = calls.arguments[name]
    given[argument] = given[argument] + value if argument in PLACES and value is not None else value
    refused(lib, calls, name, why)


@pytest.mark.parametrize(("name", "structure", "field", "value", "why"), FIELDS)
def test_a_wrong_field_is_refused_in_words(
    lib: Library, name: str, structure: str, field: str, value: Any, why: str
) -> None:
    calls = Calls()
    of = getattr(calls, structure)
    is_moved = field in ("weights", "bias", "gain") and value is not None
    setattr(of, field, getattr(of, field) + value if is_moved else value)
    refused(lib, calls, name, why)


@pytest.mark.parametrize(
    ("starts", "why"),
    [
        ([1, 2, 3], "the first sequence starts at 0"),
        ([-1, 2, 3], "the first sequence starts at 0"),
        ([0, 4, 3], "a sequence ends before it starts, or behind the last token"),
        ([0, -1, 3], "a sequence ends before it starts, or behind the last token"),
        ([0, INT_MIN, 3], "a sequence ends before it starts, or behind the last token"),
        ([0, INT_MAX, 3], "a sequence ends before it starts, or behind the last token"),
        ([0, 1, 2], "the last sequence ends at the last token"),
    ],
)
def test_sequences_that_do_not_lie_end_to_end_are_refused_in_words(lib: Library, starts: list[int], why: str) -> None:
    calls = Calls()
    calls.starts[:] = starts
    refused(lib, calls, "tz_pool", why)


def test_structures_that_are_not_aligned_are_refused_in_words(lib: Library) -> None:
    for name, argument, of in (("tz_dense", "w", NativeDense), ("tz_norm", "norm", NativeNorm)):
        calls = Calls()
        room = ctypes.create_string_buffer(64)
        odd = ctypes.cast(ctypes.addressof(room) + 1, ctypes.POINTER(of))
        ctypes.memmove(odd, calls.arguments[name][argument], ctypes.sizeof(of))
        calls.arguments[name][argument] = odd
        refused(lib, calls, name, "there is no")


@pytest.mark.parametrize("place", ["bf16", "wide"])
def test_gradients_in_bfloat16_need_their_places(lib: Library, place: str) -> None:
    calls = Calls()
    given = calls.arguments["tz_scale_gradients"]
    given |= {"gradients": None, "bf16": given["gradients"], "wide": calls.y.ctypes.data}
    given[place] += 1
    why = "the gradients are not aligned" if place == "bf16" else "there is no room for the gradients as float"
    refused(lib, calls, "tz_scale_gradients", why)
    given[place] = None
    why = "gradients are either float or bfloat16" if place == "bf16" else why
    refused(lib, calls, "tz_scale_gradients", why)


def test_places_of_empty_arrays_may_be_null(lib: Library) -> None:
    calls = Calls()
    before = calls.x.copy(), calls.y.copy()
    for name, empty in (
        ("tz_dense", {"x": None, "rows": 0, "y": None}),
        ("tz_norm", {"x": None, "rows": 0}),
        ("tz_normalize", {"x": None, "rows": 0}),
        ("tz_pool", {"x": None, "tokens": 0, "sequences": 0, "out": None}),
    ):
        assert getattr(lib._c, name)(*(calls.arguments[name] | empty).values()) == 0
    assert (calls.x == before[0]).all()
    assert (calls.y == before[1]).all()
    calls.starts[:] = 0
    assert lib._c.tz_pool(*(calls.arguments["tz_pool"] | {"x": None, "tokens": 0}).values()) == 0
    assert not calls.y.flat[:5].any()
    assert not calls.y.flat[7:12].any()
