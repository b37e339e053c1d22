"""Hands damaged files of weights to the library; a program of its own, which tests of the format c run.

    python model_fuzz.py LIBRARY WEIGHTS FIRST COUNT

COUNT cases follow, numbered from FIRST. In each, bytes of WEIGHTS are changed, or it is cut or made longer. A third of
the files keeps its head, whose checksum and size are then wrong, so the file must be refused. The others get a right
head, so that what reads the structures is tested: such a file is refused, or encodes something.
"""

import ctypes
import random
import struct
import sys
import tempfile
import zlib
from pathlib import Path

HEAD = 24
ODD = [-(1 << 31), -65, -1, 0, 1, 2, 3, 4, 31, 33, 63, 65, 127, 1025, 4097, 1 << 20, (1 << 22) + 1, 1 << 24, 1 << 30]
ODD += [(1 << 31) - 64, (1 << 31) - 1]


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A file with other values behind its head, which is not changed."""
    made = bytearray(content)
    numbers = range(HEAD, len(made) - 3, 4)
    small = [at for at in numbers if 0 < abs(struct.unpack_from("<i", made, at)[0]) <= 4096]
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.choice(small if rng.random() < 0.7 else numbers)
        kind = rng.random()
        if kind < 0.4:
            struct.pack_into("<i", made, at, rng.choice(ODD))
        elif kind < 0.6:
            value = struct.unpack_from("<i", made, at)[0] + rng.choice([-64, -32, -1, 1, 32, 64])
            struct.pack_into("<i", made, at, max(-(1 << 31), min(value, (1 << 31) - 1)))
        elif kind < 0.8:
            made[rng.randrange(HEAD, len(made))] ^= 1 << rng.randrange(8)
        elif kind < 0.9:
            del made[rng.randrange(HEAD, len(made)) :]
            break
        else:
            place = rng.randrange(HEAD, len(made))
            made[place:place] = rng.randbytes(rng.choice([1, 4, 64]))
    return bytes(made)


def with_head(content: bytes) -> bytes:
    """The file with the checksum and size that belong to the rest."""
    rest = content[HEAD:]
    return content[:12] + struct.pack("<Iq", zlib.crc32(rest), len(content)) + rest


def use(c: ctypes.CDLL, model: ctypes.c_void_p) -> bool:
    """Encodes two texts; returns whether the model did not refuse them."""
    count = min(c.tz_model_limit(model), 9)
    ids, starts = (ctypes.c_int32 * (count + 1))(*range(1, count + 2)), (ctypes.c_int32 * 3)(0, count, count + 1)
    out = (ctypes.c_float * (2 * c.tz_model_dim(model)))()
    code = c.tz_model_encode(model, ids, starts, 2, out, 2)
    assert code in (0, -1, -2), code
    return bool(code == 0)


def main(library: str, weights: str, first: int, count: int) -> None:
    c = ctypes.CDLL(library)
    c.tz_model_open.restype, c.tz_why.restype = ctypes.c_void_p, ctypes.c_char_p
    whole = Path(weights).read_bytes()
    opened = encoded = 0
    with tempfile.NamedTemporaryFile() as file:
        for number in range(first, first + count):
            print(f"\rcase {number}: ", end="", file=sys.stderr, flush=True)
            rng = random.Random(number)
            content, keeps_head = damaged(whole, rng), rng.random() < 0.33
            Path(file.name).write_bytes(content if keeps_head else with_head(content))
            place = c.tz_model_open(file.name.encode())
            assert place or c.tz_why(), f"case {number}: no word about why"
            if place:
                assert not keeps_head or content == whole, f"case {number}: a damaged file was opened"
                opened += 1
                encoded += use(c, ctypes.c_void_p(place))
                c.tz_model_close(ctypes.c_void_p(place))
    print(f"{count} files: {opened} opened, {encoded} encoded")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
