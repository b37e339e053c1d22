"""Declares the C interface of the compiled library (src/api.cpp): its structures, and the types of its functions.

Python and C++ have to agree on every field and every argument. `declare` passes the types on to ctypes, so that a call
with another number of arguments, or with arguments of another type, raises an error in Python. INTERFACE is a number
that is raised on both sides with every change, so that a library of another version is refused.
"""

import ctypes

from ternarize_cli.errors import UnavailableError

__all__ = [
    "BITS",
    "FUNCTIONS",
    "INTERFACE",
    "MAX_HEAD",
    "MAX_INPUTS",
    "MAX_INPUTS_INT4",
    "MAX_OUTPUTS",
    "MAX_THREADS",
    "POOLINGS",
    "Encoder",
    "NativeDense",
    "NativeLayer",
    "NativeLinear",
    "NativeNorm",
    "NativeNorms",
    "declare",
]

BITS = {"ternary": 2, "int4": 4}
"""The bits that a code takes in the library, by the levels that it runs."""
INTERFACE = 7
"""The version of the interface that this module describes."""
MAX_THREADS = 1024
"""The most threads that the library runs with."""
MAX_INPUTS = 1 << 22
"""The most inputs of a ternary linear: a sum of so many products fits 32 bits."""
MAX_INPUTS_INT4 = 1 << 20
"""The most inputs of an int4 linear."""
MAX_OUTPUTS = 1 << 24
"""The most outputs of a linear."""
MAX_HEAD = 4096
"""The greatest width of an attention head."""

POOLINGS = ("cls", "lasttoken", "mean", "mean_sqrt_len_tokens", "max", "weightedmean")
"""The ways to pool, by sentence-transformers' names, in the order of `tz::Pooling` (src/pooling.h)."""

_INT = ctypes.c_int
_LONG = ctypes.c_int64
_FLOAT = ctypes.c_float
_POINTER = ctypes.c_void_p
_POINTERS = ctypes.POINTER(ctypes.c_void_p)


class NativeLinear(ctypes.Structure):
    """`tz::Linear` (src/native.h): a linear in the library's layout. The caller keeps the tensors it points into."""

    _fields_ = [
        ("codes", _POINTER),
        ("scale", _POINTER),
        ("bias", _POINTER),
        *((name, ctypes.c_int32) for name in ("inputs", "outputs", "blocks", "panels", "bits")),
    ]


class NativeDense(ctypes.Structure):
    """`tz::Dense` (src/native.h): a linear of floats in the library's layout."""

    _fields_ = [("weights", _POINTER), ("bias", _POINTER), ("inputs", ctypes.c_int32), ("outputs", ctypes.c_int32)]


class NativeNorm(ctypes.Structure):
    """`tz::Norm` (src/native.h): a norm; `kind` is 0 for none, 1 for a layer norm and 2 for an RMS norm."""

    _fields_ = [("gain", _POINTER), ("bias", _POINTER), ("eps", _FLOAT), ("kind", ctypes.c_int32)]


class NativeNorms(ctypes.Structure):
    """`tz::Norms` (src/encoder.h): the norms before and after attention or a feed-forward, and of the sum."""

    _fields_ = [(name, NativeNorm) for name in ("before", "after", "sum")]


class NativeLayer(ctypes.Structure):
    """`tz::Layer` (src/encoder.h): the linears and norms of an encoder's block, and its positions."""

    _fields_ = [
        *((name, NativeLinear) for name in ("qkv", "output", "up", "down")),
        *((name, NativeNorms) for name in ("attention", "feed_forward")),
        *((name, NativeNorm) for name in ("query", "key")),
        *((name, _POINTER) for name in ("cos", "sin", "bias")),
        *((name, ctypes.c_int32) for name in ("before", "after")),
    ]


class Encoder(ctypes.Structure):
    """`tz::Encoder` (src/encoder.h): the blocks of an encoder, with their number and widths."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("layers", "width", "heads", "key_value_heads", "head", "inner")),
        *((name, ctypes.c_int32) for name in ("gated", "activation", "positions", "rotated", "reach")),
        *((name, ctypes.c_int32) for name in ("patch_rows", "patch_columns")),
        ("scale", _FLOAT),
        ("last", NativeNorm),
        ("layer", ctypes.POINTER(NativeLayer)),
    ]


FUNCTIONS: dict[str, tuple[type | None, list[type]]] = {
    "tz_why": (ctypes.c_char_p, []),
    "tz_instruction_set": (ctypes.c_char_p, [_INT]),
    "tz_packed_bytes": (_LONG, [_INT, _INT, _INT]),
    "tz_pack": (_INT, [_POINTER, _INT, _INT, _INT, _INT, _INT, _POINTER, _LONG, _INT]),
    "tz_rest": (_INT, [_POINTER, _LONG]),
    "tz_trim": (None, []),
    "tz_linear": (_INT, [_INT, ctypes.POINTER(NativeLinear), _POINTER, _INT, _POINTER, _POINTER, _INT]),
    "tz_embed": (
        _INT,
        [
            *(_INT, _POINTERS, _POINTERS, ctypes.POINTER(_LONG), _POINTERS),
            *(_INT, _INT, _INT, ctypes.POINTER(NativeNorm), _POINTER, _INT),
        ],
    ),
    "tz_dense": (_INT, [_INT, ctypes.POINTER(NativeDense), _POINTER, _INT, _POINTER, _INT]),
    "tz_norm": (_INT, [_INT, ctypes.POINTER(NativeNorm), _POINTER, _INT, _INT, _INT]),
    "tz_pool": (_INT, [_INT, _POINTER, _INT, _INT, _POINTER, _INT, _INT, _POINTER, _LONG, _INT]),
    "tz_normalize": (_INT, [_POINTER, _INT, _INT]),
    "tz_round_weights": (_INT, [_INT, _POINTER, _POINTER, *[_INT] * 4, _POINTER, _POINTER, _INT]),
    "tz_scale_gradients": (_INT, [_INT, *[_POINTER] * 4, *[_INT] * 4, _POINTER, _POINTER, _INT]),
    "tz_round_activations": (_INT, [_INT, _POINTER, _INT, _INT, _POINTER, _POINTER, _INT]),
    "tz_encode": (_INT, [_INT, ctypes.POINTER(Encoder), _POINTER, _INT, _POINTER, _INT, _INT]),
}
"""For each function but `tz_interface`: the type of its result, and the types of its arguments."""


def declare(c: ctypes.CDLL) -> None:
    """Sets the types of arguments and results for the functions of a loaded library.

    Raises:
        UnavailableError: the library has another version of the interface than INTERFACE.
    """
    number = getattr(c, "tz_interface", None)
    if number is not None:
        number.restype, number.argtypes = _INT, []
    if number is None or number() != INTERFACE:
        raise UnavailableError(
            "its library was built from another version of ternarize", hint="install ternarize again: pip install ."
        )
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(c, name)
        function.restype, function.argtypes = result, arguments
