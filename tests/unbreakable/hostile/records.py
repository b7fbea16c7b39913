"""Records that are no JSON, and odd values in those that are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from .writing import Edit, put


def broken_json(valid: bytes) -> dict[str, bytes]:
    """What a JSON file may hold, by what is wrong with it."""
    return {
        "empty": b"",
        "half": valid[: len(valid) // 2],
        "not UTF-8": b"\xff\xfe" + valid,
        "a list": b"[]",
        "a number": b"1",
        "a text": b'"x"',
        "nothing": b"null",
        "deep lists": b"[" * 200_000 + b"]" * 200_000,
        "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "huge number": b'{"format": ' + b"9" * 100_000 + b"}",
        "NaN": b'{"format": NaN}',
        "duplicate key": b'{"format": 1, "format": 2}',
        "5 MB": b'{"a": "' + b"x" * (5 << 20) + b'"}',
        "many empty lists": b"[" + b"[]," * 1_000_000 + b"[]]",
        "NUL": valid + b"\0",
    }


def plain(*values: Any) -> dict[str, Any]:
    """Values by how they are printed."""
    return {str(value): value for value in values}


def quoted(*values: Any) -> dict[str, Any]:
    """Values by how they are written in Python."""
    return {repr(value): value for value in values}


class Odd(NamedTuple):
    """Odd values for each of some keys of a record."""

    keys: Iterable[str]
    values: Mapping[str, Any]
    """Word for a value -> the value."""
    label: str = "{key} {word}"
    within: tuple[str | int, ...] = ()
    """Where in the record the keys are."""
    refused: bool | None = None

    def edits(self) -> Iterator[tuple[str, Edit, bool | None]]:
        """(name, change of the record, whether it must be refused)."""
        for key in self.keys:
            for word, value in self.values.items():
                yield self.label.format(key=key, word=word), put(*self.within, key, value=value), self.refused
