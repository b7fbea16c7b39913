"""Files of tensors: cut short, with headers that lie, with odd values in them."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .case import ODD, WORDS, Case, Escape
from .writing import Alter, altered, holding, sealed, unsealed

Files = Iterator[tuple[str, bytes, bool | None]]
"""(name, bytes, whether they must be refused)."""


def tensor_cases(sound: Path) -> Iterator[Case]:
    """The same files in an adapter of ours, in a checkpoint of PEFT and in a base."""
    files = list(safetensors((sound / "ours" / "adapter.safetensors").read_bytes()))
    places: tuple[tuple[str, str, str, str, tuple[Alter, ...]], ...] = (
        ("adapter", "adapter", "ours", "adapter.safetensors", (sealed,)),
        ("peft", "adapter", "peft", "adapter_model.safetensors", (unsealed,)),
        ("base", "base", "base", "model.safetensors", ()),
    )
    for prefix, kind, source, file, after in places:
        for name, data, refused in files:
            write = altered(sound / source, holding(file, data), *after)
            yield Case(f"{prefix}/tensors/{name}", kind, write, refused)


def safetensors(whole: bytes) -> Files:
    """What a file of tensors may hold, from one that is sound."""
    yield from of_the_sound(whole)
    yield from lying()
    yield from unreadable(whole)
    yield from odd_entries()


def packed(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header (text, bytes or JSON), and a length that may lie."""
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(shape: Any = (1,), begin: Any = 0, end: Any = 4, dtype: Any = "F32") -> dict[str, Any]:
    """What a header says of a tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def one(header: Any) -> bytes:
    """A file with this header and one number."""
    return packed(header, b"\0" * 4)


def parts(whole: bytes) -> tuple[str, bytes]:
    """The header of a file as text, and what follows it."""
    size = int.from_bytes(whole[:8], "little")
    return json.dumps(json.loads(whole[8 : 8 + size])), whole[8 + size :]


def of_the_sound(whole: bytes) -> Files:
    header, body = parts(whole)
    first, what = next(iter(json.loads(header).items()))
    lengths = {f"length 2^{power}": packed(header, body, 2**power - 1) for power in (22, 31, 32, 63, 64)}
    damaged = {
        "empty file": b"",
        "seven bytes": b"1234567",
        "half": whole[: len(whole) // 2],
        "one byte short": whole[:-1],
        "trailing bytes": whole + b"x" * 9,
        **lengths,
        "pickle": pickle.dumps({"a": Escape()}),
        "torch archive": torch_archive(),
        "gzip": gzip.compress(whole),
        "duplicate key": packed(header[:-1] + f', "{first}": {json.dumps(what)}}}', body),
    }
    return ((name, data, True) for name, data in damaged.items())


def torch_archive() -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(Escape()))
        archive.writestr("a/version", "3\n")
    return buffer.getvalue()


def lying() -> Files:
    """What the header says is not what follows, or is more than anyone has room for."""
    lies = {
        "NaN payload": packed({"a": entry()}, struct.pack("<f", float("nan"))),
        "infinite payload": packed({"a": entry()}, struct.pack("<f", float("inf"))),
        "overlap": one({"a": entry(), "b": entry()}),
        "gap": packed({"a": entry(), "b": entry(begin=8, end=12)}, b"\0" * 12),
        "stride-0 giant": one({"a": entry([2**40], 0, 4)}),
        "zero size with 10^12": packed({"a": entry([0, 10**12], 0, 0)}),
        "zero size with 2^63": packed({"a": entry([0, 2**63], 0, 0)}),
        "product wraps to 4": one({"a": entry([2**32, 2**32, 1], 0, 4)}),
        "many sizes": one({"a": entry([1] * 5000)}),
        "a million empty tensors": empties(1_000_000),
        "40,000 empty tensors": empties(40_000),
    }
    return ((name, data, True) for name, data in lies.items())


def empties(count: int) -> bytes:
    """So many tensors that hold nothing."""
    value = json.dumps(entry([0], 0, 0), separators=(",", ":"))
    return packed("{" + ",".join(f'"{i}":{value}' for i in range(count)) + "}")


def unreadable(whole: bytes) -> Files:
    """Headers that are no header."""
    header, body = parts(whole)
    shape = '{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,4]}}'
    headers = {
        "header of 5 MB": packed(" " * (5 << 20) + header, body),
        "deep header": packed("[" * 100_000 + "]" * 100_000),
        "deep entry": packed('{"a":' + '{"a":' * 50_000 + "1" + "}" * 50_001),
        "no header": packed(b""),
        "header of text": packed(b'"a"'),
        "not UTF-8": packed(b'{"\xff\xfe":1}'),
        "huge number": one(shape % ("9" * 5000)),
        "constant NaN": one(shape % "NaN"),
        "metadata of numbers": one({"__metadata__": {"a": 1}, "a": entry()}),
    }
    return ((name, data, True) for name, data in headers.items())


def odd_entries() -> Files:
    """What is said of a tensor is of another kind than it should be."""
    for value in ODD[:11]:
        yield f"shape {value!r}"[:40], one({"a": entry([value])}), True
    for value in (None, "x", -4, 2**63, 1.0, True):
        yield f"offset {value!r}", one({"a": entry([1], 0, value)}), True
    for dtype in ("F31", "O", "object", "", None, 7, ["F32"]):
        yield f"dtype {dtype!r}", one({"a": entry(dtype=dtype)}), True
    for name in WORDS:
        yield f"tensor called {name[:12]!r}", one({name: entry()}), None
