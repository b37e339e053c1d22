"""Hands the native library valid and invalid structures; a program of its own, which `test_native_sanitized` runs.

    python -m support.native_fuzz LIBRARY INTERFACE FIRST COUNT

LIBRARY is built with AddressSanitizer and UndefinedBehaviorSanitizer, which end this process at the first byte that is
touched outside of a buffer, or with ThreadSanitizer. INTERFACE is ternarize_cli/runtime/native/interface.py, loaded on
its own: NumPy and torch stay out. Every buffer is as large as it must be and no larger. COUNT cases follow, numbered
from FIRST; each is a valid call, which must succeed, and then the same call with one argument made invalid, or with
twelve, which must be refused and leave the output as it was.
"""

import ctypes
import importlib.util
import random
import struct
import sys

from support.native_calls import INT_MAX, INT_MIN, ODD, Call, field
from support.native_row_calls import RowCalls

CODECS = [(4, 4), (3, 5), (16, 2)]  # radix, and digits in a byte
PLACES = ("before", "after", "sum")


class Cases(RowCalls):
    """Makes calls of all functions."""

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
        self.usual(call)
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
        self.starts_parts(call, places, starts)
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
        makers = [self.linear_call, self.embed_call, self.encode_call, self.pack_call, self.size_call, self.rest_call]
        makers += [self.dense_call, self.norm_call, self.pool_call, self.normalize_call]
        return self.rng.choices(makers, [3, 3, 6, 3, 1, 1, 3, 2, 3, 1])[0]()

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
