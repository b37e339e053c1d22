"""Makes calls of the native library's functions that work on rows, for `native_fuzz`."""

import ctypes
import struct

from support.native_calls import ODD, Call, Calls, field

SHARED = (600, 700)
"""Rows and width of an array that is large enough to be shared among threads."""
MODES = 6


class RowCalls(Calls):
    """Makes calls of all functions that work on rows."""

    def rows(self, most: int) -> tuple[int, int]:
        """A number of rows, and a width."""
        if self.rng.random() < 0.1:
            return SHARED
        return self.rng.choice([0, 1, 2, 3, 5, 8, 16, 17, 31, 33, 70]), self.sized(most)

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
        self.usual(call)
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
        self.usual(call)
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

    def dense_call(self) -> Call:
        rows, inputs = self.rows(300)
        outputs = self.sized(140)
        panels = -(-outputs // 32)
        weights, bias = self.buffers.floats(panels * inputs * 32), self.buffers.floats(panels * 32)
        w = self.interface.NativeDense(weights, bias, inputs, outputs)
        x, y = self.buffers.floats(rows * inputs), self.buffers.of(bytes(4 * rows * outputs))
        call = Call("tz_dense", isa=self.rng.randrange(self.sets), w=ctypes.pointer(w), x=x, rows=rows, y=y)
        call.arguments["threads"] = self.rng.choice([1, 2, 3, 8])
        self.usual(call)
        call.set_to("w", None)
        call.numbers("rows", lambda n: 0 <= n <= 1 << 28)
        field(call, w, "inputs", *(n for n in ODD if not 0 < n <= 1 << 22))
        field(call, w, "outputs", *(n for n in ODD if not 0 < n <= 1 << 24))
        field(call, w, "weights", None, w.weights + 1, w.weights + 2)
        field(call, w, "bias", None, w.bias + 1, w.bias + 3)
        if rows:
            call.place("x")
            call.place("y")
        call.output = y, 4 * rows * outputs
        return call

    def norm_call(self) -> Call:
        rows, width = self.rows(300)
        norm, x = self.norm(width, self.rng.choice([0, 1, 1, 2])), self.buffers.floats(rows * width)
        call = Call("tz_norm", isa=self.rng.randrange(self.sets), norm=ctypes.pointer(norm), x=x, rows=rows)
        call.arguments |= {"width": width, "threads": self.rng.choice([1, 2, 3, 8])}
        self.usual(call)
        self.norm_parts(call, norm)
        if norm.kind == 2:
            field(call, norm, "kind", 1)  # which would have a bias
        call.set_to("norm", None)
        call.numbers("rows", lambda n: 0 <= n <= 1 << 28)
        call.numbers("width", lambda n: 0 < n <= 1 << 22)
        if rows and norm.kind:
            call.place("x")
        call.output = x, 4 * rows * width
        return call

    def pool_call(self) -> Call:
        rng = self.rng
        lengths = rng.choice([[], [0], [1], [5, 0, 1], [17, 33], [0, 64, 3], [3] * 40, [0] * 9, [rng.randint(0, 90)]])
        width = self.sized(300)
        if rng.random() < 0.1:
            lengths, width = [SHARED[0] - 7, 0, 3, 4], SHARED[1]
        starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
        tokens, sequences = starts[-1], len(lengths)
        stride = width + rng.choice([0, 0, 1, width, 5 * width])
        size = 4 * ((sequences - 1) * stride + width) if sequences else 0
        places = self.buffers.of(struct.pack(f"{len(starts)}i", *starts))
        x, out = self.buffers.floats(tokens * width), self.buffers.of(bytes(size))
        call = Call("tz_pool", mode=rng.randrange(MODES), x=x, tokens=tokens, width=width, starts=places)
        call.arguments |= {"sequences": sequences, "skipped": rng.choice([0, 0, 1, 3, 64, 1 << 24]), "out": out}
        call.arguments |= {"stride": stride, "threads": rng.choice([1, 2, 3, 8])}
        call.numbers("mode", lambda n: 0 <= n < MODES)
        call.numbers("threads", lambda n: 0 < n <= 1024)
        call.numbers("tokens", lambda n: n == tokens)
        call.set_to("tokens", tokens + 1, tokens - 1)
        call.numbers("width", lambda n: 0 < n <= stride)
        call.set_to("width", stride + 1)
        call.set_to("stride", width - 1, 0, -1, -width, -(1 << 63), (1 << 63) - 1, MODES * (1 << 22) + 1)
        call.numbers("skipped", lambda n: 0 <= n <= 1 << 24)
        call.numbers("sequences", lambda n: 0 <= n <= 1 << 28)
        call.place("starts")
        if tokens:
            call.place("x")
            call.set_to("sequences", 0)
        if sequences:
            call.place("out")
        self.starts_parts(call, places, starts)
        call.output = out, size
        return call

    def normalize_call(self) -> Call:
        rows, width = self.rows(300)
        x = self.buffers.floats(rows * width)
        call = Call("tz_normalize", x=x, rows=rows, width=width)
        call.numbers("rows", lambda n: 0 <= n <= 1 << 28)
        call.numbers("width", lambda n: 0 < n <= 1 << 22)
        if rows:
            call.place("x")
        call.output = x, 4 * rows * width
        return call
