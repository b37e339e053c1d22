"""Hands the native library valid and invalid structures; a program of its own, which `test_native_sanitized` runs.

    python native_fuzz.py LIBRARY INTERFACE FIRST COUNT

LIBRARY is built with AddressSanitizer and UndefinedBehaviorSanitizer, which end this process at the first byte that is
touched outside of a buffer, or with ThreadSanitizer. INTERFACE is ternarize_cli/runtime/native/interface.py, loaded on
its own: torch stays out. Every buffer is as large as it must be and no larger. COUNT cases follow, numbered from FIRST;
each is a valid call, which must succeed, and then the same call with one argument made invalid, or with twelve, which
must be refused and leave the output as it was.
"""

import ctypes
import importlib.util
import random
import struct
import sys
from collections.abc import Callable
from typing import Any

INT_MIN, INT_MAX = -(1 << 31), (1 << 31) - 1
ODD = [INT_MIN, INT_MIN + 1, -65, -1, 0, 1, 2, 31, 33, 63, 65, 1025, 4097, (1 << 22) + 1, (1 << 24) + 1, (1 << 28) + 1]
ODD += [1 << 30, INT_MAX - 64, INT_MAX - 31, INT_MAX - 1, INT_MAX]
EPSILONS = [0.0, -0.0, -1e-5, 1.0, 1e30, float("inf"), float("-inf"), float("nan"), 1e-50]
FLOATS = [0.0, -0.0, 1e-42, -1e-38, 1e38, 3.4e38, float("inf"), float("-inf"), float("nan"), 0.5, 127.0]
NAN_PATTERNS = [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x01\x00\x80\x7f"]
CODECS = [(4, 4), (3, 5), (16, 2)]  # radix, and digits in a byte
PLACES = ("before", "after", "sum")

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


class Cases:
    """Makes calls.

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

    def _usual(self, call: Call) -> None:
        call.numbers("isa", lambda n: 0 <= n < self.sets)
        call.numbers("threads", lambda n: 0 < n <= 1024)

    def sized(self, most: int) -> int:
        """A size that hurts: around powers of two, or any."""
        edge = self.rng.choice([1, 4, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129])
        return min(most, edge if self.rng.random() < 0.6 else self.rng.randint(1, most))

    def linear_call(self) -> Call:
        inputs, outputs, rows = (
            self.sized(300),
            self.sized(140),
            self.rng.choice([0, 1, 2, 3, 5, 8, 16, 17, 31, 33, 70]),
        )
        call = Call("tz_linear", isa=self.rng.randrange(self.sets))
        w = self.linear(inputs, outputs)
        self.parts(call, w)
        # what has as many blocks or panels can't be told from it
        field(call, w, "inputs", *(n for n in {*ODD, inputs + 64} if n < 1 or -(-n // 64) != w.blocks))
        field(call, w, "outputs", *(n for n in {*ODD, outputs + 32} if n < 1 or -(-n // 32) != w.panels))
        sums = self.rng.random() < 0.5
        out = self.buffers.of(bytes(4 * rows * outputs))
        x = self.buffers.floats(rows * inputs)
        call.arguments |= {"w": ctypes.pointer(w), "x": x, "rows": rows, "y": None if sums else out}
        call.arguments |= {"sums": out if sums else None, "threads": self.rng.choice([1, 2, 3, 8])}
        self._usual(call)
        call.set_to("w", None)
        call.numbers("rows", lambda n: 0 <= n <= 1 << 28)
        if rows:
            call.place("x")
            call.set_to("sums" if sums else "y", None, out + 1)
            call.set_to("y" if sums else "sums", out)
        call.output = out, 4 * rows * outputs
        return call

    def embed_call(self) -> Call:
        rng, buffers = self.rng, self.buffers
        count, rows, width = rng.randint(1, 4), rng.choice([0, 1, 7, 130]), self.sized(200)
        lengths = [rng.choice([1, 2, 50]) for _ in range(count)]
        ids = [[rng.randrange(n) for _ in range(rows)] for n in lengths]
        parts = {
            "tables": [buffers.of(rng.randbytes(n * width)) for n in lengths],
            "scales": [buffers.floats(n) for n in lengths],
            "ids": [buffers.of(struct.pack(f"{rows}q", *row)) for row in ids],
        }
        arrays = {name: (ctypes.c_void_p * count)(*places) for name, places in parts.items()}
        counts = (ctypes.c_int64 * count)(*lengths)
        out = buffers.of(bytes(4 * rows * width))
        norm = self.norm(width, rng.choice([1, 1, 2]))
        call = Call(
            "tz_embed",
            isa=rng.randrange(self.sets),
            tables=arrays["tables"],
            scales=arrays["scales"],
            table_rows=counts,
            all_ids=arrays["ids"],
            count=count,
            rows=rows,
            width=width,
            norm=ctypes.pointer(norm),
            x=out,
            threads=2,
        )
        if rng.random() < 0.2:
            call.arguments["norm"] = None
        self._usual(call)
        call.numbers("count", lambda n: 0 < n <= 16)
        call.numbers("rows", lambda n: 0 <= n <= 1 << 28)
        call.numbers("width", lambda n: 0 < n <= 1 << 22)
        if rows:
            call.set_to("tables", None)
            call.set_to("scales", None)
            call.set_to("table_rows", None)
            call.set_to("all_ids", None)
            call.place("x")
            if call.arguments["norm"] is not None:
                self.norm_parts(call, norm)
            for i in range(count):
                for name, array in arrays.items():
                    call.changes.append(lambda a=array, i=i: a.__setitem__(i, None))
                    if name != "tables":
                        call.changes.append(lambda a=array, i=i, p=parts[name][i]: a.__setitem__(i, p + 2))
                for n in (0, -1, -(1 << 63), max(ids[i])):
                    call.changes.append(lambda n=n, i=i: counts.__setitem__(i, n))
                for n in (-1, lengths[i], 1 << 31, 1 << 40, -(1 << 63), (1 << 63) - 1):
                    at = parts["ids"][i] + 8 * rng.randrange(rows)
                    call.changes.append(lambda at=at, n=n: ctypes.memmove(at, struct.pack("q", n), 8))
        call.output = out, 4 * rows * width
        return call

    def patches(self, longest: int) -> tuple[int, int]:
        """Rows and columns of patches for so many tokens, and perhaps some more; none in two of three cases."""
        if self.rng.random() < 0.67:
            return 0, 0
        columns = self.rng.choice([1, 2, 7, 16, 40])
        return max(1, -(-(longest - 1) // columns)) + self.rng.choice([0, 0, 1]), columns

    def encode_call(self) -> Call:
        rng, buffers = self.rng, self.buffers
        head, shared = rng.choice([1, 2, 8, 15, 16, 17, 31, 32, 33, 48, 64, 65]), rng.randint(1, 3)
        layers, heads, gated = rng.randint(0, 2), shared * rng.randint(1, 2), rng.randint(0, 1)
        width = head * heads if rng.random() < 0.5 else self.sized(200)
        inner = self.sized(300)
        lengths = rng.choice(
            [[], [0], [1], [5, 0, 1], [17, 33], [40, 64, 3], [3] * 40, [130, 2], [300], [rng.randint(0, 90)]]
        )
        starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
        tokens, longest = starts[-1], max(lengths, default=0)
        rotated = rng.randint(0, head // 2) if rng.random() < 0.6 else 0
        reach = rng.choice([0, 1, 7, 128])
        rows, columns = self.patches(longest)
        biases = (2 * rows - 1) * (2 * columns - 1) + 3 if rows else 2 * reach + 1
        call = Call("tz_encode", isa=rng.randrange(self.sets))
        array = (self.interface.NativeLayer * max(1, layers))()
        outer, narrow = heads * head, (heads + 2 * shared) * head
        shapes = {
            "qkv": (width, narrow),
            "output": (outer, width),
            "up": (width, -(-inner // 16) * 32 if gated else inner),
            "down": (inner, width),
        }
        for layer in array[:layers]:
            for name, shape in shapes.items():
                setattr(layer, name, self.linear(*shape))
            for part in (layer.attention, layer.feed_forward):
                for place in PLACES:
                    setattr(part, place, self.norm(width, rng.choice([0, 0, 1, 2])))
            for place in ("query", "key"):
                setattr(layer, place, self.norm(head, rng.choice([0, 0, 1, 2])))
            if rotated and rng.random() < 0.7:
                layer.cos, layer.sin = (buffers.floats(longest * rotated) for _ in range(2))
            if rng.random() < 0.3:
                layer.bias = buffers.floats(heads * biases)
            layer.before, layer.after = (rng.choice([-1, -1, 0, 1, 9, 64, 1 << 24, INT_MAX]) for _ in range(2))
        for layer in array[:layers]:
            for name in shapes:
                w = getattr(layer, name)
                self.parts(call, w)
                for side in ("inputs", "outputs"):
                    size = getattr(w, side)
                    field(call, w, side, *({*ODD, size + 1, size - 1} - {size}))
            for norms in (layer.attention, layer.feed_forward):
                for place in PLACES:
                    self.norm_parts(call, getattr(norms, place))
            field(call, layer, "before", -2, INT_MIN)
            field(call, layer, "after", -2, INT_MIN)
            if layer.cos:
                field(call, layer, "cos", None, layer.cos + 1)
                field(call, layer, "sin", None, layer.sin + 2)
            if layer.bias:
                field(call, layer, "bias", layer.bias + 1)
        sizes = [layers, width, heads, shared, head, inner, gated, rng.randint(0, 4), longest, rotated, reach]
        sizes += [rows, columns]
        e = self.interface.Encoder(*sizes, 0.2, self.norm(width, rng.choice([0, 1, 2])), array)
        places = buffers.of(struct.pack(f"{len(starts)}i", *starts))
        x = buffers.floats(tokens * width)
        call.arguments |= {"encoder": ctypes.pointer(e), "starts": places, "sequences": len(lengths), "x": x}
        call.arguments |= {"tokens": tokens, "threads": rng.choice([1, 2, 3, 8])}
        self._usual(call)
        self.norm_parts(call, e.last)
        field(call, e, "layers", *(n for n in ODD if not 0 <= n <= 4096))
        field(call, e, "key_value_heads", *(n for n in {*ODD, heads + 1} if n < 1 or heads % n))
        field(call, e, "head", *(n for n in ODD if not 0 < n <= 4096))
        field(call, e, "gated", -1, 2, INT_MAX)
        field(call, e, "activation", -1, 5, INT_MAX)
        field(
            call,
            e,
            "positions",
            -1,
            (1 << 24) + 1,
            INT_MAX,
            *([longest - 1] if longest and any(one.cos for one in array[:layers]) else []),
        )
        field(call, e, "rotated", -1, head // 2 + 1, INT_MAX)
        field(call, e, "reach", -1, (1 << 24) + 1, INT_MAX)
        few = rows * (columns - 1) + 1 < longest and any(one.bias for one in array[:layers])
        field(call, e, "patch_rows", -1, 4096, INT_MAX, 0 if rows else 1)
        field(call, e, "patch_columns", -1, 4096, INT_MAX, 0 if rows else 1, *([columns - 1] if rows and few else []))
        field(call, e, "scale", float("nan"), float("inf"))
        for name in ("width", "inner"):
            field(call, e, name, *(n for n in ODD if not 0 < n <= 1 << 22))
        if layers:
            field(call, e, "heads", *({*ODD, heads + shared} - {heads}))
            field(call, e, "width", *({*ODD, width + 1, width - 1} - {width}))
            field(call, e, "inner", *({*ODD, inner + 1, inner - 1} - {inner}))
            field(call, e, "layer", ctypes.POINTER(self.interface.NativeLayer)())
        else:
            call.changes.append(lambda: setattr(e, "head", 8192))
        call.set_to("encoder", None)
        call.place("starts")
        call.numbers("sequences", lambda n: 0 <= n <= 1 << 28)
        call.numbers("tokens", lambda n: n == tokens)
        call.set_to("tokens", tokens + 1, tokens - 1)
        if tokens:
            call.place("x")
            call.set_to("sequences", 0)
        for at, was in enumerate(starts):
            low, high = starts[max(0, at - 1)], starts[min(len(starts) - 1, at + 1)]
            for n in {*ODD, was + 1, was - 1}:
                if not low <= n <= high or (n != was and at in (0, len(starts) - 1)):
                    call.changes.append(
                        lambda at=at, n=n: ctypes.memmove(places + 4 * at, struct.pack("i", n), 4)  # type: ignore[misc]
                    )
        if len(lengths) == 1:
            call.changes.append(lambda: self._endless(call, places))
        call.output = x, 4 * tokens * width
        return call

    @staticmethod
    def _endless(call: Call, places: int) -> None:
        call.arguments["tokens"] = (1 << 24) + 1
        ctypes.memmove(places, struct.pack("2i", 0, (1 << 24) + 1), 8)

    def pack_call(self) -> Call:
        rng, buffers = self.rng, self.buffers
        (radix, count), inputs, outputs = rng.choice(CODECS), self.sized(300), self.sized(140)
        width = -(-inputs // count)
        room = self.c.tz_packed_bytes(outputs, inputs, 4 if radix == 16 else 2)
        rows, packed = buffers.of(rng.randbytes(outputs * width)), buffers.of(bytes(room))
        call = Call(
            "tz_pack",
            rows=rows,
            width=width,
            radix=radix,
            count=count,
            outputs=outputs,
            inputs=inputs,
            packed=packed,
            room=room,
            threads=rng.choice([1, 2, 3, 8]),
        )
        call.set_to("rows", None)
        call.set_to("packed", None)
        call.set_to("width", *({*ODD, width + 1, width - 1} - {width}))
        call.set_to("radix", *({*ODD, 3, 4, 5, 16} - {radix}))
        call.set_to("count", *({*ODD, 3, 4, 5, 8, 9} - {count}))
        call.numbers("inputs", lambda n: -(-n // count) == width)
        call.numbers("outputs", lambda n: 0 < n <= 1 << 24 and -(-n // 32) == -(-outputs // 32))
        call.set_to("room", room - 1, room + 1, 0, -1, -(1 << 63), (1 << 63) - 1)
        call.numbers("threads", lambda n: 0 < n <= 1024)
        call.output = packed, room
        return call

    def size_call(self) -> Call:
        bits = self.rng.choice([2, 4])
        call = Call("tz_packed_bytes", outputs=self.sized(5000), inputs=self.sized(5000), bits=bits)
        call.numbers("outputs", lambda n: 0 < n <= 1 << 24)
        call.numbers("inputs", lambda n: 0 < n <= 1 << (22 if bits == 2 else 20))
        call.set_to("bits", *({*ODD, 3, 5, 8} - {2}))
        return call

    def rest_call(self) -> Call:
        count = self.rng.choice([1, 4096, 20000])
        call = Call("tz_rest", start=self.buffers.of(bytes(count)), bytes=count)
        call.set_to("start", None)
        call.set_to("bytes", -1, -(1 << 63), (1 << 63) - 1)
        call.changes[-1] = lambda: call.arguments.update(start=(1 << 64) - 10, bytes=4096)
        return call

    def any_call(self) -> Call:
        """A call of a random function."""
        makers = [self.linear_call, self.embed_call, self.encode_call, self.pack_call]
        return self.rng.choices([*makers, self.size_call, self.rest_call], [3, 3, 6, 3, 1, 1])[0]()

    def run(self, call: Call) -> int:
        """Calls; what came back."""
        return getattr(self.c, call.name)(*call.arguments.values())


def one(cases: Cases, number: int) -> None:
    """A case.

    Raises:
        AssertionError: a valid call failed, an invalid one was not refused, or it wrote something.
    """
    call = cases.any_call()
    code = cases.run(call)
    assert code == 0 or (call.name == "tz_packed_bytes" and code > 0), f"case {number}: {call.name} gave {code}"
    if call.name == "tz_encode":
        same_sums(cases)
    if not call.changes:
        return
    before = ctypes.string_at(*call.output) if call.output else b""
    for change in cases.rng.sample(call.changes, min(len(call.changes), cases.rng.choice([1, 1, 1, 12]))):
        change()
    code = cases.run(call)
    assert code == -2, f"case {number}: an invalid {call.name} gave {code}: {call.arguments}"
    assert cases.c.tz_why(), f"case {number}: no word about why"
    assert not call.output or ctypes.string_at(*call.output) == before, f"case {number}: {call.name} wrote"


def same_sums(cases: Cases) -> None:
    """Checks that integers are those of plain C++ on every instruction set."""
    call = cases.linear_call()
    place, size = call.output or (0, 0)
    made = set()
    for isa in range(cases.sets):
        call.arguments |= {"isa": isa, "y": None, "sums": place}
        assert cases.run(call) == 0
        made.add(ctypes.string_at(place, size))
    assert len(made) == 1, f"{call.arguments} has other sums on some instruction set"


def main(library: str, interface: str, first: int, count: int) -> None:
    spec = importlib.util.spec_from_file_location("interface", interface)
    assert spec is not None
    assert spec.loader is not None
    described = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(described)
    c = ctypes.CDLL(library)
    described.declare(c)
    for number in range(first, first + count):
        cases = Cases(c, described, random.Random(number))
        print(f"\rcase {number}: ", end="", file=sys.stderr, flush=True)
        one(cases, number)
        cases.buffers.free()
    names = ", ".join(c.tz_instruction_set(i).decode() for i in range(cases.sets))
    print(f"{count} cases on {names}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
