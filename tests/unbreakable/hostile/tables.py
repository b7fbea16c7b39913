"""Rows as text and as Parquet, and files under their names that are none."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .case import Bytes, Case, Escape, Write
from .writing import alone, written

ROW, HEAD = '{"input": "a text", "target": "b"}\n', "input,target\n"
NO_FILES: dict[str, Callable[[Path], object]] = {
    "a folder": os.mkdir,
    "a pipe": os.mkfifo,
    "/dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "/dev/stdin": lambda path: path.symlink_to("/dev/stdin"),
}
STRANGE = (
    *("rows.pkl", "rows.pt", "rows.bin", "rows.npy", "rows.h5", "rows.yaml", "rows", "rows.jsonl.gz"),
    "rows.py",
)


def tables() -> Iterator[Case]:
    """All of them."""
    for suffix, texts in {"jsonl": lines(), "csv": csvs(), "parquet": parquets()}.items():
        for name, (data, refused) in texts.items():
            yield Case(f"rows/{suffix}/{name}", "rows", written(f"rows.{suffix}", data), refused)
    for name, make in PARQUETS.items():
        yield Case(f"rows/parquet/{name}", "rows", make, True)
    for suffix in ("jsonl", "csv", "parquet", "npz"):
        for name, put in NO_FILES.items():
            yield Case(f"rows/{suffix}/{name}", "rows", alone(f"rows.{suffix}", put), True)
    for name in STRANGE:
        yield Case(f"rows/{name}", "rows", written(name, pickle.dumps(Escape())), True)


def lines() -> Bytes:
    """Files of JSON lines."""
    return {
        "empty": ("", True),
        "blank lines": ("\n" * 100_000, True),
        "not UTF-8": (ROW.encode() + b"\xff\xfe\n", True),
        "half a line": (ROW * 3 + ROW[:10], True),
        "a list": (ROW + "[]\n", True),
        "deep": (ROW + "[" * 200_000 + "\n", True),
        "deep value": ('{"input": ' + "[" * 50_000 + "]" * 50_000 + ', "target": "b"}', True),
        "huge number": ('{"input": "a", "target": ' + "9" * 100_000 + "}", True),
        "big whole label": ('{"input": "a", "target": 99999999999999999999999999}\n' * 3, None),
        "NaN label": ('{"input": "a", "target": NaN}', True),
        "infinite label": ('{"input": "a", "target": Infinity}', True),
        "object label": ('{"input": "a", "target": {"a": 1}}', True),
        "lone surrogate": ('{"input": "\\ud800", "target": "\\ud800"}\n' * 4, True),
        "NUL in text": ('{"input": "a\\u0000b", "target": "b"}\n' * 4, None),
        "10,000 columns": (json.dumps({**{f"c{i}": 1 for i in range(10_000)}, "input": "a", "target": "b"}), None),
        "new columns in each row": ("".join(json.dumps({f"c{i}": 1}) + "\n" for i in range(3000)), True),
        "picture by path": ('{"input": {"path": "/etc/passwd"}, "target": "b"}', True),
        "picture of bytes": ('{"input": {"bytes": "abc"}, "target": "b"}', True),
        "split called ..": ('{"input": "a", "target": "b", "split": "../.."}\n' * 3, None),
        "a text of 10 MB": (json.dumps({"input": "x" * (10 << 20), "target": "b"}), None),
    }


def csvs() -> Bytes:
    """Files of values between commas."""
    return {
        "empty": ("", True),
        "header alone": (HEAD, True),
        "NUL": (HEAD + "a\0b,c\n", None),
        "open quote": (HEAD + '"a,b\n' * 10, True),
        "long field": (HEAD + "x" * 200_000 + ",b\n", True),
        "too many fields": (HEAD + ",".join("a" * 10_000) + "\n", True),
        "header twice": ("input,input\na,b\n", True),
        "100,000 columns": (",".join(f"c{i}" for i in range(100_000)) + "\n", True),
        "huge label": (HEAD + "a," + "9" * 5000 + "\n", None),
        "digits of another script": (HEAD + "a,\u0661\u0662\n" * 4, None),
        "not UTF-8": (HEAD.encode() + b"\xff,b\n", True),
        "one million empty lines": (HEAD + "\n" * 1_000_000 + "a,b\n", None),
        "carriage returns": (HEAD.replace("\n", "\r") + "a,b\rc,d\r", None),
    }


def parquets() -> Bytes:
    """Files that claim to be Parquet."""
    whole = sound_parquet()
    broken = {
        "empty": b"",
        "magic alone": b"PAR1PAR1",
        "half": whole[: len(whole) // 2],
        "no footer": whole[:-8],
        "footer of 2 GB": whole[:-8] + struct.pack("<I", 2**31 - 1) + b"PAR1",
        "footer of 4 GB": whole[:-8] + struct.pack("<I", 2**32 - 1) + b"PAR1",
        "pickle": pickle.dumps(Escape()),
    }
    return {name: (data, True) for name, data in broken.items()}


def sound_parquet(rows: int = 8) -> bytes:
    """A file of rows."""
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    table = pyarrow.table({"input": [f"text {i}" for i in range(rows)], "target": ["a", "b"] * (rows // 2)})
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


def parquet(columns: Callable[[], dict[str, Any]]) -> Write:
    """A file of these columns."""

    def write(path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(columns()), path, compression="zstd")

    return alone("rows.parquet", write)


def equal(rows: int, size: int) -> dict[str, Any]:
    """Columns of one text again and again."""
    import pyarrow

    index = pyarrow.array(np.zeros(rows, dtype=np.int32))
    text = pyarrow.DictionaryArray.from_arrays(index, pyarrow.array(["x" * size]))
    return {"input": text, "target": text}


PARQUETS: dict[str, Write] = {
    "20 million equal rows": parquet(lambda: equal(20_000_000, 3)),
    "2,000 rows of a megabyte": parquet(lambda: equal(2000, 1 << 20)),
    "pictures by path": parquet(
        lambda: {"input": [{"bytes": None, "path": "/etc/passwd"}] * 4, "target": ["a", "b"] * 2}
    ),
    "no columns": parquet(dict),
    "lists for texts": parquet(lambda: {"input": [["a"], ["b"]], "target": ["a", "b"]}),
}
"""Sound files whose rows are more than they look, or no texts."""
