"""Folders of pictures."""

from __future__ import annotations

import os
import pickle
import struct
import zlib
from collections.abc import Iterator

from .case import CANARY, MARK, Case, Escape
from .writing import instead, laid, link


def chunk(kind: bytes, body: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int = 4, height: int = 4, data: bytes | None = None, extra: bytes = b"", colour: int = 0) -> bytes:
    """A grey picture, or one that says so of `data`."""
    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    lines = zlib.compress(b"".join(b"\0" + b"\x7f" * width for _ in range(height))) if data is None else data
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


NOTHING = zlib.compress(b"\0")
"""The data of a picture that has none."""
GIF = b"GIF89a" + b"\xff" * 4 + b"\x80" + b"\0" * 5 + b"\xff" * 3 + b",\0\0\0\0" + b"\xff" * 4 + b"\0\x02\x02D\x01\0;"
BMP = struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0)
SCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(" + CANARY.encode() + b") (w) file closefile\n%%EOF\n"
BROKEN = {
    "empty": b"",
    "text": b"no picture",
    "pickle": pickle.dumps(Escape()),
    "PostScript": SCRIPT,
    "PDF": b"%PDF-1.4\n1 0 obj\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "half": png(64, 64)[:60],
    "no data": png(data=b""),
    "rows missing": png(64, 64, NOTHING),
    "100,000 x 100,000": png(100_000, 100_000, NOTHING),
    "2^31 wide": png(2**31 - 1, 1, NOTHING),
    "no size": png(0, 0, zlib.compress(b"")),
    "palette missing": png(colour=3),
    "GIF of no size": b"GIF89a\0\0\0\0\0\0\0",
    "GIF 65,535 x 65,535": GIF,
    "BMP of 2^31": b"BM" + BMP,
    "TIFF that loops": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "WebP of nothing": b"RIFF\xff\xff\xff\xffWEBPVP8 ",
    "JPEG cut": b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0",
    "ICO": b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x18\0\xff\xff\0\0\x16\0\0\0",
    "PPM of 10^9": b"P6 1000000000 1000000000 255\n",
    "PPM with a long number": b"P6 " + b"9" * 100_000 + b" 1 255\n",
}
HARMLESS = ("palette missing", "49 megapixels")
SOUND = {"cat/a.png": png()}


def pictures() -> Iterator[Case]:
    """All of them: one sound picture, and another beside it."""
    note = chunk(b"zTXt", b"note\0\0" + zlib.compress(b"x" * (64 << 20)))
    large = {
        "64 MB of a note": png(extra=note),
        "49 megapixels": png(7000, 7000),
        "64 megapixels declared, none there": png(8000, 8000, NOTHING),
    }
    for name, data in (BROKEN | large).items():
        declared = 7000 * 7000 + 16 if name == "49 megapixels" else 0
        write = laid({**SOUND, "dog/b.png": data})
        yield Case(f"pictures/{name}", "rows", write, None if name in HARMLESS else True, declared)
    for target in ("/etc/hostname", "../../../outside/it/cat/a.png", "/dev/zero"):
        yield Case(f"pictures/leads to {target}", "rows", laid(SOUND, link("dog/b.png", target)), True)
    yield Case("pictures/a class leads outside", "rows", laid(SOUND, link(MARK, "../../outside/it/cat")), True)
    yield Case("pictures/a pipe", "rows", laid({}, instead("cat/a.png", os.mkfifo)), True)
    strange = laid({f"{label}/a.png": png() for label in ("a\nb", "...")})
    yield Case("pictures/a class called a\\nb", "rows", strange, None)
