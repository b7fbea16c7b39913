"""Archives of arrays, as numpy writes them."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator

import numpy as np

from .case import CANARY, Case, Escape
from .writing import written


def npz(entries: dict[str, bytes], level: int | None = None) -> bytes:
    """An archive of these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def npy(header: str, data: bytes = b"", version: int = 1, length: int | None = None) -> bytes:
    """An array with this header, whose length may lie."""
    text = header.encode() + b"\n"
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", size) + text + data


def array(shape: str, descr: str = "|u1", data: bytes = b"") -> bytes:
    """An array of this shape and kind, or so it says."""
    return npy(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}", data)


LABELS = array("(4,)", data=b"\0\1\0\1")
IMAGES = array("(4, 1, 1)", data=b"abcd")
INPUTS = {
    "shape 2^40": array("(1099511627776,)"),
    "shape 2^62": array("(4611686018427387904,)"),
    "shape wraps": array("(4294967296,) * 2"),
    "shape of a huge number": array("(" + "9" * 3000 + ",)"),
}
"""Arrays beside sound labels."""
MORE_INPUTS = {
    "negative shape": array("(-4,)"),
    "objects": array("(4,)", "|O", pickle.dumps(Escape())),
    "code for a header": npy(f"__import__('{CANARY}')"),
    "deep header": npy("(" * 5000 + ")" * 5000),
    "header of 4 GB": npy("{}", b"", 2, 2**32 - 1),
}
STRUCTURED = npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4,)}", b"\0" * 16)
TARGETS = {"dates": "<M8[s]", "void": "|V8", "text of 2^30": "<U1073741824", "complex": "<c16"}
"""Kinds of labels beside sound images."""
NAMES = array("(1,)", "<U1", b"a\0\0\0")
HARMLESS = ("a flipped byte", "names that leave", "names of names")


def archives() -> Iterator[Case]:
    """All of them."""
    buffer = io.BytesIO()
    np.savez(buffer, input=np.zeros((4, 2, 2), np.uint8), target=np.array([0, 1, 0, 1]))
    for name, data in (*of_the_sound(buffer.getvalue()), *lying(), *swollen(buffer.getvalue()), *odd()):
        write = written("rows.npz", data)
        yield Case(f"rows/npz/{name}", "rows", write, None if name in HARMLESS else True)


def of_the_sound(whole: bytes) -> Iterator[tuple[str, bytes]]:
    yield "empty", b""
    yield "half", whole[: len(whole) // 2]
    yield "a flipped byte", whole[:60] + bytes([whole[60] ^ 255]) + whole[61:]
    yield "an array alone", array("(4,)", data=b"abcd")


def lying() -> Iterator[tuple[str, bytes]]:
    """Arrays whose headers lie."""
    yield from ((name, npz({"input.npy": data, "target.npy": LABELS})) for name, data in INPUTS.items())
    yield "shape of zero and 10^12", npz({"input.npy": array("(0, 1000000000000)"), "target.npy": array("(0,)")})
    yield from ((name, npz({"input.npy": data, "target.npy": LABELS})) for name, data in MORE_INPUTS.items())


def swollen(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """Archives that are more than they look, or no plain archives."""
    zeros = array(f"({64 << 20},)", data=b"\0" * (64 << 20))
    yield "512 MB of zeros", npz({f"{i}.npy": zeros for i in range(8)}, level=9)
    yield "20,000 arrays", npz({f"a{i}.npy": LABELS for i in range(20_000)})
    yield "encrypted", marked(whole, 6, lambda flags: flags | 1)
    yield "unknown compression", marked(whole, 8, lambda _: 99)
    yield "names that leave", npz({"../../input.npy": LABELS, "/etc/target.npy": LABELS})


def marked(data: bytes, place: int, mark: Callable[[int], int]) -> bytes:
    """Say something else of every entry: at this byte of its header, and two bytes later in the directory."""
    changed = bytearray(data)
    for sign, at_byte in ((b"PK\x03\x04", place), (b"PK\x01\x02", place + 2)):
        at = data.find(sign)
        while at >= 0:
            changed[at + at_byte] = mark(changed[at + at_byte])
            at = data.find(sign, at + 4)
    return bytes(changed)


def odd() -> Iterator[tuple[str, bytes]]:
    """Arrays that are sound and no rows."""
    yield "structured", npz({"input.npy": STRUCTURED, "target.npy": LABELS})
    for name, descr in TARGETS.items():
        yield f"labels of {name}", npz({"input.npy": IMAGES, "target.npy": array("(4,)", descr, b"\0" * 64)})
    yield "no labels", npz({"x_train.npy": IMAGES})
    yield "a label alone", npz({"input.npy": array("()", data=b"a"), "target.npy": array("()", data=b"a")})
    for name, file in (("names beyond the labels", "class_names"), ("names of names", "target_names")):
        yield name, npz({"input.npy": IMAGES, "target.npy": LABELS, f"{file}.npy": NAMES})
