"""What a stream is made of: labelled rows (Split), one thing to learn (Task), tasks in order (Stream).

All three are frozen and check themselves when they are made, so nothing downstream has to ask again whether lengths
agree, labels are in range or a test holds a class that was never taught.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor

from rankwise.errors import DataError

Modality = Literal["image", "text"]
Candidates = Literal["seen", "task", "all"]


class View(Sequence[Any]):
    """Some rows of a lazy sequence, by position; nothing is read until a row is asked for."""

    def __init__(self, source: Sequence[Any], index: Sequence[int]) -> None:
        """`index` holds positions in `source`; a view of a view looks through to the first source."""
        inner = source.index_ if isinstance(source, View) else None
        self.source: Sequence[Any] = source.source if isinstance(source, View) else source
        self.index_: list[int] = [int(i) if inner is None else inner[int(i)] for i in index]

    @overload
    def __getitem__(self, i: int) -> Any: ...
    @overload
    def __getitem__(self, i: slice) -> View: ...
    def __getitem__(self, i: int | slice) -> Any:
        """The row at position `i`, or a view for a slice."""
        return View(self.source, self.index_[i]) if isinstance(i, slice) else self.source[self.index_[i]]

    def __len__(self) -> int:
        """Number of rows in the view."""
        return len(self.index_)

    def __iter__(self) -> Iterator[Any]:
        """Rows one by one, each read when it is reached."""
        return (self.source[i] for i in self.index_)


def positions(index: Sequence[int] | Tensor) -> Tensor:
    """Row positions as an int64 tensor; a boolean mask becomes the positions where it is true."""
    found = torch.as_tensor(index)
    return found.nonzero().flatten() if found.dtype == torch.bool else found.to(torch.int64)


def choose(inputs: Tensor | Sequence[Any], index: Sequence[int] | Tensor) -> Tensor | Sequence[Any]:
    """Rows of `inputs` at `index`: a tensor stays a tensor, a list a list, a lazy sequence becomes a View of itself."""
    where = positions(index)
    if isinstance(inputs, Tensor):
        return inputs[where]
    if isinstance(inputs, list | tuple):
        return [inputs[i] for i in where.tolist()]
    return View(inputs, where.tolist())


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled rows: inputs, stream-wide class ids, and where each row stands in its source.

    inputs: uint8 Tensor [N, H, W] or [N, H, W, 3], a lazy sequence of such arrays, list[str] or list[tuple[str, str]].
    labels: int64 Tensor [N].    ids: int64 Tensor [N], unique within the source split.
    """

    inputs: Tensor | Sequence[Any]
    labels: Tensor
    ids: Tensor

    def __post_init__(self) -> None:
        """Refuse wrong types and lengths (DataError)."""
        for key, value in (("labels", self.labels), ("ids", self.ids)):
            if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.ndim != 1:
                raise DataError(
                    f"split: {key} must be a one-dimensional int64 tensor, got {_kind(value)}; convert it first"
                )
        lengths = {"inputs": len(self.inputs), "labels": len(self.labels), "ids": len(self.ids)}
        if len(set(lengths.values())) != 1:
            said = ", ".join(f"{n} {key}" for key, n in lengths.items())
            raise DataError(f"split: lengths disagree ({said}); give one label and one id for each input")
        if len(torch.unique(self.ids)) != len(self.ids):
            raise DataError("split: ids repeat; every row of a split needs its own id (its row number in the source)")
        if isinstance(self.inputs, Tensor):
            _check_images(self.inputs)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.labels)

    def take(self, index: Sequence[int] | Tensor) -> Split:
        """The rows at `index` (positions, or a boolean mask), in that order."""
        where = positions(index)
        return Split(choose(self.inputs, where), self.labels[where], self.ids[where])


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {list(value.shape)}"
    return type(value).__name__


def _check_images(images: Tensor) -> None:
    grey, colour = images.ndim == 3, images.ndim == 4 and images.shape[-1] == 3
    if images.dtype != torch.uint8 or not (grey or colour):
        raise DataError(
            f"split: images must be uint8 [N, H, W] or [N, H, W, 3], got {_kind(images)}; scale to 0..255 first"
        )


@dataclass(frozen=True, eq=False)
class Task:
    """One thing to learn: its classes (stream-wide ids, in class order) and its rows.

    `classes` are exactly the classes with a training row; validation and test may hold no other.
    """

    name: str
    index: int
    classes: tuple[int, ...]
    train: Split
    validation: Split | None
    test: Split

    def __post_init__(self) -> None:
        """Refuse an empty task and labels that training never shows (DataError)."""
        if not self.name:
            raise DataError(f"task {self.index}: the name is empty; name every task")
        for part, split in self.splits().items():
            if len(split) == 0:
                raise DataError(f"task '{self.name}': {part} has no rows; give it data or leave the task out")
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise DataError(f"task '{self.name}': classes must be distinct and at least one, got {list(self.classes)}")
        self._check_labels()

    def splits(self) -> dict[str, Split]:
        """The task's splits by name; `validation` only where there is one."""
        held = {"train": self.train, "validation": self.validation, "test": self.test}
        return {part: split for part, split in held.items() if split is not None}

    def _check_labels(self) -> None:
        taught = set(self.train.labels.tolist())
        if absent := sorted(set(self.classes) - taught):
            raise DataError(f"task '{self.name}': classes {absent} have no training row; drop them or add rows")
        for part, split in self.splits().items():
            if extra := sorted(set(split.labels.tolist()) - set(self.classes)):
                why = "are not among the task's classes" if part == "train" else "never occur in train of this task"
                raise DataError(
                    f"task '{self.name}': classes {extra} in {part} {why}; drop the rows or add training rows"
                )


@dataclass(frozen=True, eq=False)
class Stream:
    """Tasks in order over one numbering of classes.

    `candidates` says which classes a test row is ranked among: all seen so far, those of its own task, or all that can
    be named (class-name rows can name classes of tasks still to come: X-TAIL).
    `record` is plain JSON and enough to build the same stream again: class order, seed, sizes, validation ids, file
    hashes.
    `notes` are lines for an onlooker: what is odd about the data, though nothing to refuse.
    """

    name: str
    kind: str
    modality: Modality
    class_names: tuple[str, ...]
    tasks: tuple[Task, ...]
    record: dict[str, Any]
    candidates: Candidates = "seen"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse duplicate names, labels out of range, and tasks that cannot be asked (DataError)."""
        if not self.tasks:
            raise DataError(f"stream '{self.name}': no tasks; give at least one")
        if self.candidates not in ("seen", "task", "all"):
            raise DataError(
                f"stream '{self.name}': candidates must be 'seen', 'task' or 'all', got '{self.candidates}'"
            )
        _refuse_repeats(f"stream '{self.name}': task name", [task.name for task in self.tasks])
        _refuse_repeats(f"stream '{self.name}': class name", list(self.class_names))
        for position, task in enumerate(self.tasks):
            self._check_task(position, task)
        try:
            json.dumps(self.record)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"stream '{self.name}': the record is not plain JSON ({error}); use lists, numbers, text"
            ) from error

    def _check_task(self, position: int, task: Task) -> None:
        if task.index != position:
            raise DataError(f"stream '{self.name}': task '{task.name}' has index {task.index} but stands at {position}")
        if wrong := [c for c in task.classes if not 0 <= c < len(self.class_names)]:
            known = len(self.class_names)
            raise DataError(f"task '{task.name}': labels {wrong} are out of range 0..{known - 1} ({known} class names)")
        if len(task.classes) == 1 and self.candidates == "task":
            name = self.class_names[task.classes[0]]
            raise DataError(
                f"task '{task.name}' has one class ('{name}') and would be ranked among itself alone; "
                "a one-class task is allowed only if candidates are 'seen' (kind class-incremental): use "
                "that, or put more classes in a task"
            )


def _refuse_repeats(what: str, names: Sequence[str]) -> None:
    for name, times in Counter(names).items():
        if times > 1:
            raise DataError(f"{what} '{name}' is used {times} times; names must differ")
