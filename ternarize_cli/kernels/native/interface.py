"""Declares the C interface of the compiled library (src/api.cpp): its structures, and the types of its functions.

Python and C++ have to agree on every field and every argument. `declare` passes the types on to ctypes, so that a call
with another number of arguments, or with arguments of another type, raises an error in Python. INTERFACE is a number
that is raised on both sides with every change, so that a library of another version is refused.
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
"""The version of the interface that this module describes."""
MAX_THREADS = 1024
"""The most threads that the library runs with."""
MAX_INPUTS = 1 << 22
"""The most inputs of a linear: a sum of so many products fits 32 bits."""
MAX_OUTPUTS = 1 << 24
"""The most outputs of a linear."""
MAX_HEAD = 4096
"""The greatest width of an attention head."""

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
        *((name, ctypes.c_int32) for name in ("inputs", "outputs", "blocks", "panels")),
    ]


class NativeLayer(ctypes.Structure):
    """`tz::Layer` (src/encoder.h): the linears and layer norms of an encoder's block."""

    _fields_ = [
        *((name, NativeLinear) for name in ("qkv", "output", "up", "down")),
        *((name, _POINTER) for name in ("first_gain", "first_bias", "second_gain", "second_bias")),
    ]


class Encoder(ctypes.Structure):
    """`tz::Encoder` (src/encoder.h): the blocks of an encoder, with their number, widths and epsilon."""

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
