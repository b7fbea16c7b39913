"""Scenarios: pure functions from labelled rows to a Stream. They differ in how rows become tasks and what is ranked.

class_incremental   new classes each task, one numbering, a test row ranked among all classes seen so far
task_incremental    the same tasks, a test row ranked within its own task
domain_incremental  the same classes each task, other inputs (files, groups of rows, rotations)
cross_domain        a data set each task, class ids side by side: data set i holds [sum_{j<i} C_j, sum_{j<=i} C_j)
instruction         the same with rows of prompt and answer, see prompts.py; nothing is ranked
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from rankwise.config import Kind, Order
from rankwise.errors import ConflictError, DataError, nearest
from rankwise.streams.base import Candidates, Split, Stream, Task
from rankwise.streams.digests import ids_sha256, overlap
from rankwise.streams.images import rotate
from rankwise.streams.rows import Rows
from rankwise.streams.sampling import Sampling, limited_test, permutation, training_rows

T = TypeVar("T")


class Domain(NamedTuple):
    """A data set that is a task: its name, its rows, and how many of them are used (None: as the others).

    Domains with the same `pool` are made of the same rows: what is set aside in one is set aside in all.
    """

    name: str
    train: Rows
    test: Rows
    sampling: Sampling | None = None
    pool: str | None = None


EVERY_ROW = Sampling()


class Block(NamedTuple):
    """A task before its rows are drawn: name, stream-wide class ids in class order, rows to draw from."""

    name: str
    classes: tuple[int, ...]
    train: Split
    test: Split
    sampling: Sampling
    pool: str


class Heading(NamedTuple):
    """What a stream says of itself before its tasks are drawn; see Stream for the fields."""

    name: str
    kind: Kind
    class_names: tuple[str, ...]
    seed: int
    order: Order
    candidates: Candidates


def class_incremental(
    train: Rows,
    test: Rows,
    *,
    seed: int,
    name: str = "stream",
    classes_per_task: int | None = None,
    groups: Sequence[Sequence[str]] | None = None,
    group_by: str | None = None,
    order: Order | None = None,
    sampling: Sampling = EVERY_ROW,
    candidates: Candidates = "seen",
) -> Stream:
    """Disjoint groups of classes, one group a task.

    Exactly one of classes_per_task (the last task takes what is left), groups (class names) or group_by (a column of
    `train`) says which. Class ids are positions in the source's names whatever the order. order: `seed` permutes
    classes (or groups), `given` keeps the source's; by default seed, but given for groups.
    """
    names = train.names()
    taught, tested = train.split(names), test.split(names)
    _refuse_untaught(taught, tested, names, test.where)
    order = order or ("given" if groups is not None else "seed")
    ways = [way for way in (classes_per_task, groups, group_by) if way is not None]
    if len(ways) != 1:
        raise ConflictError(f"stream '{name}': give exactly one of classes_per_task, groups, group_by, not {len(ways)}")
    if classes_per_task is not None:
        parts = _chunks(_ordered(_present(taught), seed, order, "classes"), classes_per_task, name)
    elif group_by is not None:
        parts = _ordered(_by_column(train, taught, group_by), seed, order, "groups")
    else:
        parts = _ordered(_by_names(groups or (), names, _present(taught), name), seed, order, "groups")
    blocks = [
        Block(task, classes, _of(taught, classes), _of(tested, classes), sampling, task) for task, classes in parts
    ]
    kind: Kind = "task-incremental" if candidates == "task" else "class-incremental"
    return _stream(Heading(name, kind, names, seed, order, candidates), blocks, [train, test])


def task_incremental(train: Rows, test: Rows, *, seed: int, **choices: Any) -> Stream:
    """The tasks of `class_incremental` (same arguments), each test row ranked among the classes of its own task
    only."""
    return class_incremental(train, test, seed=seed, **{**choices, "candidates": "task"})


def domain_incremental(
    domains: Sequence[Domain],
    *,
    seed: int,
    name: str = "stream",
    order: Order = "given",
    sampling: Sampling = EVERY_ROW,
) -> Stream:
    """One numbering of classes over all domains, a domain a task; a domain may lack some of the classes."""
    domains = _ordered(list(domains), seed, order, "tasks")
    names = _shared_names(domains)
    blocks = []
    for domain in domains:
        taught = domain.train.split(names)
        classes = tuple(_present(taught))
        blocks.append(_block(domain, classes, taught, domain.test.split(names), sampling))
    heading = Heading(name, "domain-incremental", names, seed, order, "seen")
    return _stream(heading, blocks, _sources(domains))


def cross_domain(
    domains: Sequence[Domain],
    *,
    seed: int,
    name: str = "stream",
    order: Order = "given",
    sampling: Sampling = EVERY_ROW,
    candidates: Candidates = "all",
    kind: Kind = "cross-domain",
) -> Stream:
    """A data set a task; class ids are offset in task order. A class name that two data sets share becomes `task/name`.

    candidates: `all` ranks among every class that can be named (X-TAIL's setting; without class-name rows: all data
    sets seen so far), `seen` among the data sets seen so far in any case, `task` within the data set (MTIL's).
    """
    domains = _ordered(list(domains), seed, order, "tasks")
    own = [domain.train.names() for domain in domains]
    uses = Counter(label for names in own for label in names)
    all_names = [f"{d.name}/{n}" if uses[n] > 1 else n for d, names in zip(domains, own, strict=True) for n in names]
    offsets = np.cumsum([0, *(len(names) for names in own)]).tolist()
    blocks = []
    for domain, names, offset in zip(domains, own, offsets[:-1], strict=True):
        taught, tested = (_shifted(rows.split(names), offset) for rows in (domain.train, domain.test))
        classes = tuple(_present(taught))
        blocks.append(_block(domain, classes, taught, tested, sampling))
    kind = "task-incremental" if candidates == "task" else kind
    return _stream(Heading(name, kind, tuple(all_names), seed, order, candidates), blocks, _sources(domains))


def rotated(train: Rows, test: Rows, degrees: Sequence[float]) -> list[Domain]:
    """The same pictures turned by each angle (degrees, counter-clockwise), the same ones set aside at every angle."""
    turns = [(f"rotated-{angle:g}", _turned(train, angle), _turned(test, angle)) for angle in degrees]
    return [Domain(name, taught, tested, pool="rotated") for name, taught, tested in turns]


def domains_by_column(train: Rows, test: Rows, column: str) -> list[Domain]:
    """One domain for each value of a column (kept with `read(..., extra=[column])`), in order of first appearance."""
    domains = []
    for value in dict.fromkeys(str(v) for v in _column(train, column)):
        own, tests = ([i for i, v in enumerate(_column(rows, column)) if str(v) == value] for rows in (train, test))
        domains.append(Domain(value, train.take(own), test.take(tests)))
    return domains


def _turned(rows: Rows, degrees: float) -> Rows:
    if not isinstance(rows.inputs, torch.Tensor):
        raise DataError(
            f"{rows.where}: rotations need pictures of one size held as one tensor; resize them or drop rotations"
        )
    return dataclasses.replace(rows, inputs=rotate(rows.inputs, degrees))


def _column(rows: Rows, column: str) -> Sequence[Any]:
    if column not in rows.columns:
        raise DataError(
            f"{rows.where}: column '{column}' was not read; {nearest(column, rows.columns)}; ask for it with extra"
        )
    return rows.columns[column]


def _ordered(items: list[T], seed: int, order: Order, what: str) -> list[T]:
    return [items[i] for i in permutation(len(items), seed, "order", what)] if order == "seed" else items


def _chunks(classes: list[int], size: int, name: str) -> list[tuple[str, tuple[int, ...]]]:
    if size < 1:
        raise DataError(f"stream '{name}': classes_per_task = {size}; give at least 1")
    starts = range(0, len(classes), size)
    return [(f"{name}-{task}", tuple(classes[at : at + size])) for task, at in enumerate(starts, start=1)]


def _by_column(train: Rows, taught: Split, column: str) -> list[tuple[str, tuple[int, ...]]]:
    """Classes by their value in a column; each class must have one value throughout."""
    group_of: dict[int, str] = {}
    names = train.names()
    for row, label, value in zip(train.ids.tolist(), taught.labels.tolist(), _column(train, column), strict=True):
        if group_of.setdefault(label, str(value)) != str(value):
            raise DataError(
                f"{train.place(row)}: class '{names[label]}' is in groups '{group_of[label]}' and '{value}' "
                f"of column '{column}'; a class belongs to one group (or use kind = \"domain-incremental\")"
            )
    groups = dict.fromkeys(group_of[label] for label in sorted(group_of))
    return [(group, tuple(c for c in sorted(group_of) if group_of[c] == group)) for group in groups]


def _by_names(
    groups: Sequence[Sequence[str]], names: Sequence[str], present: Sequence[int], name: str
) -> list[tuple[str, tuple[int, ...]]]:
    said = Counter(label for group in groups for label in group)
    for label, times in said.items():
        if label not in names:
            raise DataError(f"stream '{name}': groups name the class '{label}'; {nearest(label, list(names)[:50])}")
        if times > 1:
            raise DataError(f"stream '{name}': class '{label}' is in {times} groups; a class belongs to one")
    if left := [names[c] for c in present if names[c] not in said]:
        raise DataError(
            f"stream '{name}': groups leave out {len(left)} classes ({', '.join(left[:5])}); put each in a group"
        )
    return [(f"{name}-{task}", tuple(names.index(n) for n in group)) for task, group in enumerate(groups, start=1)]


def _shared_names(domains: Sequence[Domain]) -> tuple[str, ...]:
    own = [domain.train.names() for domain in domains]
    if len(set(own)) == 1:
        return own[0]
    union = {name for names in own for name in names}
    numbers = all(name.removeprefix("-").isdecimal() for name in union)
    return tuple(sorted(union, key=int) if numbers else sorted(union))


def _block(domain: Domain, classes: tuple[int, ...], taught: Split, tested: Split, sampling: Sampling) -> Block:
    return Block(domain.name, classes, taught, tested, domain.sampling or sampling, domain.pool or domain.name)


def _present(split: Split) -> list[int]:
    return sorted(set(split.labels.tolist()))


def _refuse_untaught(taught: Split, tested: Split, names: Sequence[str], where: str) -> None:
    if untaught := sorted(set(_present(tested)) - set(_present(taught))):
        label = names[untaught[0]]
        raise DataError(f"{where}: test rows of '{label}' but no training row of it; drop them or add some")


def _of(split: Split, classes: Sequence[int]) -> Split:
    return split.take(torch.isin(split.labels, torch.tensor(classes)))


def _shifted(split: Split, offset: int) -> Split:
    return Split(split.inputs, split.labels + offset, split.ids)


def _sources(domains: Sequence[Domain]) -> list[Rows]:
    return [rows for domain in domains for rows in (domain.train, domain.test)]


def _task(index: int, block: Block, names: Sequence[str], seed: int) -> Task:
    for part, split in (("train", block.train), ("test", block.test)):
        if len(split) == 0:
            raise DataError(f"task '{block.name}': {part} has no rows; give it data or leave the task out")
    train, validation = training_rows(block.train.labels.numpy(), block.sampling, seed, block.pool, names)
    test = limited_test(block.test.labels.numpy(), block.sampling.test_limit, seed, block.pool)
    held_out = block.train.take(validation.tolist()) if len(validation) else None
    taught, tested = block.train.take(train.tolist()), block.test.take(test.tolist())
    return Task(block.name, index, block.classes, taught, held_out, tested)


def _stream(heading: Heading, blocks: Sequence[Block], sources: Sequence[Rows]) -> Stream:
    name, kind, names, seed, order, candidates = heading
    modalities = {rows.modality for rows in sources}
    if len(modalities) != 1:
        raise DataError(f"stream '{name}': tasks mix {' and '.join(sorted(modalities))}; a stream holds one modality")
    tasks = tuple(_task(index, block, names, seed) for index, block in enumerate(blocks))
    files = {tuple(sorted(entry.items())): entry for rows in sources for entry in rows.files}
    record = {
        "kind": kind,
        "seed": seed,
        "order": order,
        "class_order": list(dict.fromkeys(c for task in tasks for c in task.classes)),
        "tasks": [_task_record(task, block.sampling) for task, block in zip(tasks, blocks, strict=True)],
        "overlap": {task.name: overlap(task) for task in tasks},
        "sources": list(files.values()),
    }
    return Stream(name, kind, sources[0].modality, names, tasks, record, candidates)


def _task_record(task: Task, sampling: Sampling) -> dict[str, Any]:
    return {
        "name": task.name,
        "classes": list(task.classes),
        "sampling": dataclasses.asdict(sampling),
        "sizes": {part: len(split) for part, split in task.splits().items()},
        "validation_ids": [] if task.validation is None else task.validation.ids.tolist(),
        "ids_sha256": {part: ids_sha256(split.ids) for part, split in task.splits().items()},
    }
