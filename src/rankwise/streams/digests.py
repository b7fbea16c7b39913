"""Fingerprints of files and rows: what the record holds, and how a test row found again in train is noticed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from rankwise.errors import DataError
from rankwise.streams.base import Task, View
from rankwise.streams.images import EncodedImages, encode_png


def file_sha256(path: Path) -> str:
    """SHA-256 of one file's bytes, as hex. Raises DataError if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"{path}: cannot read the file ({error.strerror}); check the path and its permissions"
        ) from error


def folder_sha256(root: Path, files: Iterable[Path]) -> str:
    """SHA-256 over the relative names and the contents of `files`, in name order."""
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(f"{path.relative_to(root).as_posix()}\0{file_sha256(path)}\n".encode())
    return total.hexdigest()


def rows_sha256(inputs: Tensor | Sequence[Any], labels: Sequence[str | int]) -> str:
    """SHA-256 over inputs and labels of rows that have no file of their own."""
    total = hashlib.sha256()
    for row, label in zip(row_digests(inputs), labels, strict=True):
        total.update(row + f"{type(label).__name__}:{label}\n".encode())
    return total.hexdigest()


def ids_sha256(ids: Tensor) -> str:
    """SHA-256 over row numbers, in order: two streams took the same rows if these agree."""
    return hashlib.sha256(",".join(str(i) for i in ids.tolist()).encode()).hexdigest()


def row_digests(inputs: Tensor | Sequence[Any]) -> Iterator[bytes]:
    """One digest a row, over its text, its pixels, or its encoded bytes where it is not decoded yet."""
    return (hashlib.sha256(_row_bytes(inputs, i)).digest() for i in range(len(inputs)))


def overlap(task: Task) -> int:
    """How many of a task's test rows have an input that is byte for byte one of its training or validation inputs."""
    taught = {row for part, split in task.splits().items() if part != "test" for row in row_digests(split.inputs)}
    return sum(row in taught for row in row_digests(task.test.inputs))


def _row_bytes(inputs: Tensor | Sequence[Any], i: int) -> bytes:
    if isinstance(inputs, View):
        return _row_bytes(inputs.source, inputs.index_[i])
    if isinstance(inputs, EncodedImages):
        return inputs.raw(i)
    return _value_bytes(inputs[i])


def _value_bytes(value: Any) -> bytes:
    if isinstance(value, tuple):
        return b"\0".join(_value_bytes(part) for part in value)
    if isinstance(value, Tensor):
        return _value_bytes(value.numpy())
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}".encode() + value.tobytes()
    if isinstance(value, Image.Image):
        return encode_png(value)
    return str(value).encode()
