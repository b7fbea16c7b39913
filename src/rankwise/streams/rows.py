"""Rows as a source gives them: inputs, raw labels, the columns asked for, and which file they came from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rankwise.errors import DataError, nearest
from rankwise.streams.base import Modality, Split, choose, positions
from rankwise.streams.images import encode_png, pictures

Label = str | int
INPUTS = ("input", "text", "sentence", "image")
TARGETS = ("target", "class_name", "label")


@dataclass(frozen=True, eq=False)
class Rows:
    """Labelled rows of one source split.

    inputs: list[str], list[tuple[str, str]], uint8 Tensor [N, H, W] / [N, H, W, 3], or a lazy sequence of such arrays.
    labels: raw labels, text or whole numbers.    ids: int64 Tensor [N], row numbers in the source.
    class_names: names given by the source, which whole-number labels count into; None if the labels are the names.
    columns: extra columns by name.    files: `{name, sha256, rows}` of each file read.
    lines: where a row of the source begins in its file, for messages; () if it has no lines.
    """

    inputs: Tensor | Sequence[Any]
    labels: Sequence[Label]
    ids: Tensor
    modality: Modality
    where: str
    class_names: tuple[str, ...] | None = None
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    files: tuple[dict[str, Any], ...] = ()
    lines: Sequence[int] = ()

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.labels)

    def take(self, index: Sequence[int] | Tensor) -> Rows:
        """The rows at `index` (positions or a boolean mask), in that order."""
        at = positions(index)
        columns = {name: [values[i] for i in at.tolist()] for name, values in self.columns.items()}
        labels = [self.labels[i] for i in at.tolist()]
        inputs, ids = choose(self.inputs, at), self.ids[at]
        return replace(self, inputs=inputs, labels=labels, ids=ids, columns=columns)

    def names(self) -> tuple[str, ...]:
        """The source's class names, or the distinct labels in order (numbers by value, text by letter)."""
        return (
            self.class_names
            if self.class_names is not None
            else tuple(str(label) for label in sorted(set(self.labels)))
        )

    def named(self) -> list[str]:
        """Each row's label as a class name."""
        if self.class_names is None:
            return [str(label) for label in self.labels]
        return [self.class_names[int(label)] for label in self.labels]

    def place(self, row: int) -> str:
        """What messages call a row of the source."""
        return _place(self.where, row, self.lines)

    def split(self, names: Sequence[str]) -> Split:
        """The rows as a Split, a label becoming its position in `names`. Raises DataError for a label not there."""
        known = {name: position for position, name in enumerate(names)}
        named = self.named()
        for row, name in zip(self.ids.tolist(), named, strict=True):
            if name not in known:
                raise DataError(
                    f"{self.place(row)}: label '{name}' has no training row; {nearest(name, list(known)[:50])}"
                )
        return Split(self.inputs, torch.tensor([known[name] for name in named], dtype=torch.int64), self.ids)


@dataclass(frozen=True, eq=False)
class Table:
    """A source before its columns are chosen: `column(name)` gives the values of all its rows.

    index: row numbers of this part in the source.    class_names: names that a column of whole numbers counts into.
    untyped: the format knows only text, so labels that are all whole numbers count as numbers.
    lines: where each row of the source begins in its file; () if it has no lines.
    """

    where: str
    names: tuple[str, ...]
    column: Callable[[str], Any]
    index: Sequence[int]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: tuple[dict[str, Any], ...] = ()
    untyped: bool = False
    lines: Sequence[int] = ()

    def values(self, name: str) -> Any:
        """Values of one column for the rows of this part; an array stays an array."""
        values = self.column(name)
        if isinstance(values, np.ndarray | Tensor):
            return values[list(self.index)]
        return [values[i] for i in self.index]

    def place(self, row: int) -> str:
        """What messages call a row of the source: the line of its file where it has lines."""
        return _place(self.where, row, self.lines)


def _place(where: str, row: int, lines: Sequence[int]) -> str:
    return f"{where}, line {lines[row]}" if lines else f"{where}, row {row}"


def rows_of(table: Table, input: str | Sequence[str] | None, target: str | None, extra: Sequence[str] = ()) -> Rows:
    """Choose the columns of a table and check every value. Raises DataError naming file, row or column, and the
    remedy."""
    if not len(table.index):
        raise DataError(f"{table.where}: no rows; give a source with at least one")
    columns = [input] if isinstance(input, str) else list(input or [_first(table, INPUTS, "input")])
    label_column = target or _first(table, TARGETS, "target")
    for name in [*columns, label_column, *extra]:
        require(table, name)
    inputs = _pairs(table, columns) if len(columns) == 2 else _inputs(table, columns[0])
    labels, names = _labels(table, label_column)
    held = {name: list(table.values(name)) for name in extra}
    ids = torch.tensor(list(table.index), dtype=torch.int64)
    return Rows(inputs, labels, ids, _modality(inputs), table.where, names, held, table.files, table.lines)


def require(table: Table, name: str) -> None:
    """Refuse a column the table lacks, naming the nearest it has."""
    if name not in table.names:
        raise DataError(f"{table.where}: no column '{name}'; {nearest(name, table.names)}")


def _first(table: Table, choices: Sequence[str], key: str) -> str:
    for name in choices:
        if name in table.names:
            return name
    has = ", ".join(table.names)
    raise DataError(
        f"{table.where}: no column named {' or '.join(choices)} (columns: {has}); say which one with {key} = ..."
    )


def _modality(inputs: Tensor | Sequence[Any]) -> Modality:
    return "text" if isinstance(inputs, list) else "image"


def _pairs(table: Table, columns: Sequence[str]) -> list[tuple[str, str]]:
    first, second = (_texts(table, name, table.values(name)) for name in columns)
    return list(zip(first, second, strict=True))


def _inputs(table: Table, name: str) -> Tensor | Sequence[Any]:
    values: Any = table.values(name)
    if isinstance(values, np.ndarray | Tensor) and values.ndim > 1:
        return _pixels(table, name, torch.as_tensor(values))
    first = next((value for value in values if value is not None), None)
    if isinstance(first, np.ndarray | Tensor):
        return _pixels(table, name, _stacked(table, name, values))
    if isinstance(first, bytes | Path | Mapping | Image.Image):
        return _encoded(table, name, values)
    return _texts(table, name, values)


def _pixels(table: Table, name: str, images: Tensor) -> Tensor:
    images = images.squeeze(-1) if images.ndim == 4 and images.shape[-1] == 1 else images
    if images.dtype != torch.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3)):
        raise DataError(
            f"{table.where}, column '{name}': images must be uint8 [N, H, W] or [N, H, W, 3], got {images.dtype} "
            f"{list(images.shape)}; scale to 0..255, convert to uint8 and put channels last"
        )
    return images.contiguous()


def _stacked(table: Table, name: str, values: Any) -> Tensor:
    try:
        return torch.stack([torch.as_tensor(value) for value in values])
    except (RuntimeError, TypeError) as error:
        raise DataError(
            f"{table.where}, column '{name}': arrays differ in shape ({error}); give images of one size"
        ) from error


def _encoded(table: Table, name: str, values: Any) -> Tensor | Sequence[Any]:
    items, labels = [], [table.place(row) for row in table.index]
    for value, label in zip(values, labels, strict=True):
        held = value.get("bytes") if isinstance(value, Mapping) else value
        if isinstance(held, Image.Image):
            held = encode_png(held)
        if not isinstance(held, bytes | Path) or held == b"":
            raise DataError(f"{label}, column '{name}': no picture (got {_short(value)}); fill or remove the row")
        items.append(held)
    return pictures(items, labels)


def _texts(table: Table, name: str, values: Any) -> list[str]:
    texts = [value.item() if isinstance(value, np.generic) else value for value in values]
    for row, text in zip(table.index, texts, strict=True):
        if text is None or (isinstance(text, str) and not text.strip()):
            raise DataError(f"{table.place(row)}, column '{name}': the text is empty; fill or remove the row")
        if not isinstance(text, str):
            raise DataError(
                f"{table.place(row)}, column '{name}': {_short(text)} is not text; choose another input column"
            )
    return texts


def _labels(table: Table, name: str) -> tuple[list[Label], tuple[str, ...] | None]:
    values = table.values(name)
    labels: list[Label] = [_label(table, name, row, value) for row, value in zip(table.index, values, strict=True)]
    if table.untyped and all(_whole(label) for label in labels):
        labels = [int(label) for label in labels]
    if len({type(label) for label in labels}) > 1:
        raise DataError(f"{table.where}, column '{name}': labels mix text and numbers; use one of the two throughout")
    names = table.class_names.get(name)
    if names is None:
        return labels, None
    if len(set(names)) != len(names):
        raise DataError(f"{table.where}: class names repeat; give every class its own name")
    return [_numbered(table, name, row, label, names) for row, label in zip(table.index, labels, strict=True)], names


def _whole(label: Label) -> bool:
    text = str(label)
    return (
        text == "0"
        or (len(text) < 20)
        and (
            text.lstrip("-").isascii()
            and text.removeprefix("-").isdigit()
            and not text.removeprefix("-").startswith("0")
        )
    )


def _label(table: Table, name: str, row: int, value: Any) -> Label:
    raw = value.item() if isinstance(value, np.generic | Tensor) else value
    place = f"{table.place(row)}, column '{name}'"
    if raw is None or (isinstance(raw, float) and math.isnan(raw)) or (isinstance(raw, str) and not raw.strip()):
        raise DataError(f"{place}: the label is missing ({_short(raw)}); fill or remove the row")
    if isinstance(raw, bool | str):
        return str(raw)
    if isinstance(raw, int) or (isinstance(raw, float) and raw.is_integer()):
        return int(raw)
    raise DataError(f"{place}: label {_short(raw)} is neither text nor a whole number; choose another target column")


def _numbered(table: Table, column: str, row: int, label: Label, names: Sequence[str]) -> int:
    if isinstance(label, str) and label in names:
        return names.index(label)
    if isinstance(label, int) and 0 <= label < len(names):
        return label
    raise DataError(
        f"{table.place(row)}, column '{column}': label {label!r} is out of range 0..{len(names) - 1} "
        f"({len(names)} class names); correct the label or the names"
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
