"""Damage to a folder of files, drawn from a seed: flipped bits, cut ends, edited JSON, files that come and go.

A folder is a dict from relative path to content, so that thousands of damaged copies are made quickly. `mutate` changes
one such dict; `write` lays it out. What can't be said by contents (a pipe, a link, a folder in the place of a file) is
a `Special`.
"""

import json
import os
import random
import shutil
import struct
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any

__all__ = ["Files", "Special", "mutate", "read", "write"]


class Special(Enum):
    """What stands in the place of a file."""

    PIPE = "a pipe"
    FOLDER = "a folder"
    LOOP = "a link to itself"
    ENDLESS = "a link to /dev/zero"
    DANGLING = "a link to nothing"


Files = dict[str, bytes | Special]
_INTS = (0, 1, 2, 3, 7, 255, 256, 600, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 1 << 31, 1 << 63, 10**30, 0.5, -0.5, 1e308, float("nan"), float("inf")),
    *(
        "",
        "x",
        "../../etc/passwd",
        "/etc/passwd",
        "os.system",
        "\udc80",
        "\ud800",
        "a\0b",
        "é",
        "\x1b[2J\x07\nhint: x",
        "a" * 10_000,
        [],
        {},
        [[]],
        {"a": {}},
        [1, "a"],
    ),
)
_ADDED = ("added_tokens.json", "adapter_config.json", "pytorch_model.bin", "vocab.txt", "sentence_bert_config.json")


def read(folder: Path) -> Files:
    """The files of a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def write(files: Files, folder: Path) -> None:
    """Lays out the files in a folder, in place of what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is Special.PIPE:
            os.mkfifo(path)
        elif content is Special.FOLDER:
            path.mkdir()
        else:
            target = {Special.LOOP: path.name, Special.ENDLESS: "/dev/zero", Special.DANGLING: "nothing"}[content]
            path.symlink_to(target)


def mutate(files: Files, draw: random.Random) -> str:
    """Damages one or two files; returns what was done, in words."""
    done = []
    for _ in range(draw.choice((1, 1, 1, 2))):
        name = draw.choice(sorted(files))
        content = files[name]
        if not isinstance(content, bytes):
            continue
        ways = [_flip, _flip, _cut, _overwrite, _overwrite, _replace]
        ways += 6 * [_edit_json] if name.endswith(".json") else []
        ways += 8 * [_edit_header] if name.endswith(".safetensors") else []
        done.append(f"{name}: {draw.choice(ways)(files, name, draw)}")
    return "; ".join(done)


def _flip(files: Files, name: str, draw: random.Random) -> str:
    content = bytearray(files[name])  # type: ignore[arg-type]
    if not content:
        return "empty"
    places = [
        draw.randrange(min(len(content), draw.choice((64, 400, len(content))))) for _ in range(draw.randint(1, 8))
    ]
    for place in places:
        content[place] ^= 1 << draw.randrange(8)
    files[name] = bytes(content)
    return f"bits flipped at {places}"


def _cut(files: Files, name: str, draw: random.Random) -> str:
    content: bytes = files[name]  # type: ignore[assignment]
    end = draw.choice((0, 8, 80, draw.randrange(len(content) + 1), max(len(content) - 1, 0)))
    files[name] = content[:end] if draw.random() < 0.7 else content + draw.randbytes(draw.randint(1, 64))
    return f"{len(content)} bytes became {len(files[name])}"  # type: ignore[arg-type]


def _overwrite(files: Files, name: str, draw: random.Random) -> str:
    content = bytearray(files[name])  # type: ignore[arg-type]
    size = draw.choice((1, 2, 4, 8))
    if len(content) < size:
        return "too short"
    place = draw.randrange(min(len(content), draw.choice((64, 400, len(content)))))
    value = draw.choice((*_INTS, draw.getrandbits(64))) & ((1 << 8 * size) - 1)
    content[place : place + size] = value.to_bytes(size, "little")
    files[name] = bytes(content)
    return f"{value} in {size} bytes at {place}"


def _replace(files: Files, name: str, draw: random.Random) -> str:
    way = draw.randrange(5)
    if way == 0:
        del files[name]
        return "removed"
    if way == 1:
        files[name] = draw.choice(list(Special))
        return f"became {files[name].value}"  # type: ignore[union-attr]
    if way == 2:
        other = draw.choice(sorted(files))
        files[name], files[other] = files[other], files[name]
        return f"exchanged with {other}"
    if way == 3:
        added = draw.choice(_ADDED)
        files[added] = draw.choice((b"{}", b"[]", b"", draw.randbytes(32)))
        return f"{added} added"
    files[name] = draw.choice((b"", b"\0" * 100, b"[" * 100_000, draw.randbytes(200), b"{}", b"[]", b"null"))
    return "replaced"


def _edit_json(files: Files, name: str, draw: random.Random) -> str:
    try:
        values = json.loads(files[name])  # type: ignore[arg-type]
    except (ValueError, RecursionError):
        return "no JSON"
    places = list(_places(values)) if isinstance(values, dict | list) else []
    if not places:
        return "nothing to edit"
    holder, key = draw.choice(places)
    way = draw.randrange(4)
    if way == 0 and isinstance(holder, dict):
        holder[draw.choice((f"{key}x", "auto_map", "trust_remote_code"))] = holder.pop(key)
        what = f"{key} renamed"
    elif way == 1:
        del holder[key]
        what = f"{key} removed"
    elif way == 2:
        other, place = draw.choice(places)
        with suppress(KeyError, IndexError):
            holder[key], other[place] = other[place], holder[key]
        what = f"{key} exchanged with {place}"
    else:
        holder[key] = draw.choice(_VALUES)
        what = f"{key} set to {str(holder[key])[:40]!r}"
    try:
        files[name] = json.dumps(values).encode()
    except (ValueError, RecursionError):  # a value that holds itself after an exchange
        return "nothing"
    return what


def _places(value: Any) -> Any:
    """Every place in a JSON value, as the object or list and the key in it."""
    for key, inner in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
        yield value, key
        if isinstance(inner, dict | list) and len(inner) < 1000:
            yield from _places(inner)


def _edit_header(files: Files, name: str, draw: random.Random) -> str:
    """Edits the header of a safetensors file, or values of one of its tensors, so that the file stays well-formed."""
    content: bytes = files[name]  # type: ignore[assignment]
    try:
        (size,) = struct.unpack("<Q", content[:8])
        header, data = json.loads(content[8 : 8 + size]), bytearray(content[8 + size :])
    except (struct.error, ValueError, RecursionError, AttributeError):
        return "damaged already"
    keys = sorted(key for key in header if key != "__metadata__")
    key, other = draw.choice(keys), draw.choice(keys)
    entry = header[key]
    way = draw.randrange(8)
    if way == 0:
        header[draw.choice((f"{key}x", f"{key}_scale", "encoder.layer.7.x.weight"))] = header.pop(key)
    elif way == 1:
        header[key], header[other] = header[other], header[key]
    elif way == 2:
        entry["data_offsets"], header[other]["data_offsets"] = header[other]["data_offsets"], entry["data_offsets"]
    elif way == 3:
        entry["shape"] = draw.choice((entry["shape"][::-1], [*entry["shape"], 1], [-1], [1 << 62], []))
    elif way == 4:
        entry["dtype"] = draw.choice(("F32", "F16", "I8", "U8", "BF16", "I64", "F64", "BOOL", "X"))
    elif way == 5:
        del header[key]
    else:
        begin, end = entry["data_offsets"]
        bad = draw.choice((b"\xff\xff", b"\x00\x7c", b"\x00\xfc", b"\x00\x00", draw.randbytes(2)))
        width = max(end - begin - 4, 1)
        place = begin + draw.randrange(width) // 4 * 4
        data[place + 2 * (way == 7) : place + 2 * (way == 7) + 2] = bad
    text = json.dumps(header).encode()
    files[name] = struct.pack("<Q", len(text)) + text + bytes(data)
    return f"header or tensor {key} edited ({way})"
