"""What calls of the native library consist of, for `native_fuzz`: buffers, linears, norms; what makes them invalid."""

import ctypes
import random
import struct
from collections.abc import Callable
from typing import Any

INT_MIN, INT_MAX = -(1 << 31), (1 << 31) - 1
ODD = [INT_MIN, INT_MIN + 1, -65, -1, 0, 1, 2, 31, 33, 63, 65, 1025, 4097, (1 << 22) + 1, (1 << 24) + 1, (1 << 28) + 1]
ODD += [1 << 30, INT_MAX - 64, INT_MAX - 31, INT_MAX - 1, INT_MAX]
EPSILONS = [0.0, -0.0, -1e-5, 1.0, 1e30, float("inf"), float("-inf"), float("nan"), 1e-50]
FLOATS = [0.0, -0.0, 1e-42, -1e-38, 1e38, 3.4e38, float("inf"), float("-inf"), float("nan"), 0.5, 127.0]
NAN_PATTERNS = [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x01\x00\x80\x7f"]

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
Change = Callable[[], None]


class Buffers:
    """Memory from malloc, so that the sanitizer knows where each buffer ends."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._held: list[int] = []

    def of(self, content: bytes) -> int:
        """The place of a copy."""
        place = libc.malloc(len(content))
        ctypes.memmove(place, content, len(content))
        self._held.append(place)
        return place

    def floats(self, count: int) -> int:
        """Random floats; in one of four buffers some are odd."""
        values = [self._rng.gauss(0, 1) for _ in range(min(count, 97))]
        content = bytearray(struct.pack(f"{len(values)}f", *values) * (count // max(1, len(values)) + 1))[: 4 * count]
        if count and self._rng.random() < 0.25:
            for _ in range(self._rng.randint(1, 4)):
                at = 4 * self._rng.randrange(count)
                odd = struct.pack("f", self._rng.choice(FLOATS))
                content[at : at + 4] = self._rng.choice([odd, odd, *NAN_PATTERNS])
        return self.of(bytes(content))

    def free(self) -> None:
        """Gives all of it back."""
        for place in self._held:
            libc.free(place)
        self._held.clear()


class Call:
    """A call of one function, valid as it is made; `changes` makes it invalid, each alone."""

    def __init__(self, name: str, **arguments: Any) -> None:
        self.name, self.arguments = name, arguments
        self.output: tuple[int, int] | None = None
        self.changes: list[Change] = []

    def set_to(self, name: str, *values: Any) -> None:
        """Values that this argument must not have."""
        self.changes += [lambda v=value: self.arguments.__setitem__(name, v) for value in values]

    def numbers(self, name: str, valid: Callable[[int], bool]) -> None:
        """Odd numbers that are not valid."""
        self.set_to(name, *(n for n in ODD if not valid(n)))

    def place(self, name: str, *, aligned: bool = True) -> None:
        """A pointer that must be one."""
        place = self.arguments[name]
        self.set_to(name, None, *((place + 1, place + 2, place + 3) if aligned else ()))


def field(call: Call, of: Any, name: str, *values: Any) -> None:
    """Values that this field of a structure must not have."""
    call.changes += [lambda v=value: setattr(of, name, v) for value in values]


class Calls:
    """Makes what calls consist of.

    Args:
        c: the library.
        interface: its description.
        rng: where randomness comes from.
    """

    def __init__(self, c: Any, interface: Any, rng: random.Random) -> None:
        self.c, self.interface, self.rng = c, interface, rng
        self.buffers = Buffers(rng)
        self.sets = 0
        while c.tz_instruction_set(self.sets) is not None:
            self.sets += 1

    def linear(self, inputs: int, outputs: int) -> Any:
        """A linear of random codes."""
        panels, blocks, bits = -(-outputs // 32), -(-inputs // 64), self.rng.choice([2, 4])
        codes = self.buffers.of(self.rng.randbytes(panels * blocks * 256 * bits))
        scale, bias = self.buffers.floats(panels * 32), self.buffers.floats(panels * 32)
        return self.interface.NativeLinear(codes, scale, bias, inputs, outputs, blocks, panels, bits)

    @staticmethod
    def parts(call: Call, w: Any) -> None:
        """What must not be in a linear, whatever it belongs to."""
        for name in ("blocks", "panels"):
            size = getattr(w, name)
            field(call, w, name, *({*ODD, size - 1, size + 1} - {size}))
        field(call, w, "bits", *({*ODD, 3, 5, 8} - {2}))
        for inputs in (0, -64, (1 << (22 if w.bits == 2 else 20)) + 1, INT_MAX - 63):
            call.changes.append(lambda n=inputs: (setattr(w, "inputs", n), setattr(w, "blocks", -(-n // 64)))[0])
        for outputs in (0, -32, (1 << 24) + 1, INT_MAX - 31):
            call.changes.append(lambda n=outputs: (setattr(w, "outputs", n), setattr(w, "panels", -(-n // 32)))[0])
        field(call, w, "codes", None)
        field(call, w, "scale", None, w.scale + 1, w.scale + 2)
        field(call, w, "bias", None, w.bias + 1, w.bias + 2)

    def norm(self, width: int, kind: int) -> Any:
        """A norm of a kind: 0 none, 1 a layer norm, 2 an RMS norm, which has no bias."""
        if kind == 0:
            return self.interface.NativeNorm()
        bias = self.buffers.floats(width) if kind == 1 else None
        return self.interface.NativeNorm(self.buffers.floats(width), bias, 1e-5, kind)

    @staticmethod
    def norm_parts(call: Call, norm: Any) -> None:
        """What must not be in a norm."""
        field(call, norm, "kind", *(n for n in ODD if n not in (0, 1, 2)))
        if norm.kind:
            field(call, norm, "eps", *EPSILONS)
            field(call, norm, "gain", None, norm.gain + 1, norm.gain + 2)
        if norm.kind == 1:
            field(call, norm, "bias", None, norm.bias + 1, norm.bias + 2)

    @staticmethod
    def starts_parts(call: Call, places: int, starts: list[int]) -> None:
        """What must not be among the starts of sequences, which lie at `places`."""
        for at, was in enumerate(starts):
            low, high = starts[max(0, at - 1)], starts[min(len(starts) - 1, at + 1)]
            for n in {*ODD, was + 1, was - 1}:
                if not low <= n <= high or (n != was and at in (0, len(starts) - 1)):
                    call.changes.append(
                        lambda at=at, n=n: ctypes.memmove(places + 4 * at, struct.pack("i", n), 4)  # type: ignore[misc]
                    )

    def usual(self, call: Call) -> None:
        """What must not be an instruction set, or a number of threads."""
        call.numbers("isa", lambda n: 0 <= n < self.sets)
        call.numbers("threads", lambda n: 0 < n <= 1024)

    def sized(self, most: int) -> int:
        """A size that hurts: around powers of two, or any."""
        edge = self.rng.choice([1, 4, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129])
        return min(most, edge if self.rng.random() < 0.6 else self.rng.randint(1, most))
