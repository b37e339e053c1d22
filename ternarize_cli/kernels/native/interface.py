"""The C interface of the compiled library (src/api.cpp): its structures, and what its functions take and give.

Python and C++ have to agree on every field and every argument. `declare` tells ctypes of them, so that a call with
another number of arguments, or of another type, is an error in Python; INTERFACE is the number that both sides count up
when something changes, so that a library of another version is refused.
"""

import ctypes

from ternarize_cli.errors import UnavailableError

__all__ = [
    "FUNCTIONS",
    "INTERFACE",
    "MAX_HEAD",
    "MAX_INPUTS",
    "MAX_OUTPUTS",
    "MAX_THREADS",
    "Encoder",
    "NativeLayer",
    "NativeLinear",
    "declare",
]

INTERFACE = 2
"""The number of the interface that is described here."""
MAX_THREADS = 1024
"""Threads that the library takes."""
MAX_INPUTS = 1 << 22
"""Inputs of a linear at most: the sum of so many products fits 32 bits."""
MAX_OUTPUTS = 1 << 24
"""Outputs of a linear at most."""
MAX_HEAD = 4096
"""Width of an attention head at most."""

_INT = ctypes.c_int
_LONG = ctypes.c_int64
_FLOAT = ctypes.c_float
_POINTER = ctypes.c_void_p
_POINTERS = ctypes.POINTER(ctypes.c_void_p)


class NativeLinear(ctypes.Structure):
    """`tz::Linear`: pointers into tensors that the caller keeps."""

    _fields_ = [
        ("codes", _POINTER),
        ("scale", _POINTER),
        ("bias", _POINTER),
        *((name, ctypes.c_int32) for name in ("inputs", "outputs", "blocks", "panels")),
    ]


class NativeLayer(ctypes.Structure):
    """`tz::Layer`."""

    _fields_ = [
        *((name, NativeLinear) for name in ("qkv", "output", "up", "down")),
        *((name, _POINTER) for name in ("first_gain", "first_bias", "second_gain", "second_bias")),
    ]


class Encoder(ctypes.Structure):
    """`tz::Encoder`."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("layers", "width", "heads", "inner", "norm_first")),
        ("eps", ctypes.c_float),
        ("layer", ctypes.POINTER(NativeLayer)),
    ]


FUNCTIONS: dict[str, tuple[type | None, list[type]]] = {
    "tz_why": (ctypes.c_char_p, []),
    "tz_instruction_set": (ctypes.c_char_p, [_INT]),
    "tz_packed_bytes": (_LONG, [_INT, _INT]),
    "tz_pack": (_INT, [_POINTER, _INT, _INT, _INT, _INT, _INT, _POINTER, _LONG, _INT]),
    "tz_rest": (_INT, [_POINTER, _LONG]),
    "tz_trim": (None, []),
    "tz_linear": (_INT, [_INT, ctypes.POINTER(NativeLinear), _POINTER, _INT, _POINTER, _POINTER, _INT]),
    "tz_embed": (
        _INT,
        [
            *(_INT, _POINTERS, _POINTERS, ctypes.POINTER(_LONG), _POINTERS),
            *(_INT, _INT, _INT, _POINTER, _POINTER, _FLOAT, _POINTER, _INT),
        ],
    ),
    "tz_encode": (_INT, [_INT, ctypes.POINTER(Encoder), _POINTER, _INT, _POINTER, _INT, _INT]),
}
"""For each function but `tz_interface` the type that it returns and those of its arguments."""


def declare(c: ctypes.CDLL) -> None:
    """Tells ctypes what the functions of a loaded library take and give.

    Raises:
        UnavailableError: the library has another interface than this module describes.
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
