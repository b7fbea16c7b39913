"""From the `[stream]` settings to a Stream: read what is named, cut a test where there is none, choose the scenario."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.config import Kind, StreamSettings, TaskSettings, parse
from rankwise.errors import ConflictError, DataError
from rankwise.streams.base import Stream
from rankwise.streams.digits import digits
from rankwise.streams.notes import notes
from rankwise.streams.prompts import are_labels, instruction
from rankwise.streams.rows import INPUTS, Rows
from rankwise.streams.sampling import Sampling, generator, stratified
from rankwise.streams.scenarios import (
    Domain,
    class_incremental,
    cross_domain,
    domain_incremental,
    domains_by_column,
    rotated,
)
from rankwise.streams.sources import choose_part, parts
from rankwise.streams.tables import WHOLE, Parts

CUT_FRACTION = 0.2
"""Share of the rows that become the test where a data set brings none."""
CUT_SEED = 2026
"""Seed of that cut: fixed, so that runs with other seeds are scored on the same rows."""
CLASSES_PER_TASK = 2
VALIDATED = "validation rows are cut from train (stream.validation)"

Cuts = list[dict[str, Any]]


def build_stream(
    settings: StreamSettings | Mapping[str, Any],
    seed: int,
    root: str | Path = ".",
    *,
    data: Mapping[str, Any] | None = None,
    source: str = "config",
) -> Stream:
    """Build the stream that `settings` (the [stream] table, checked or plain) describe.

    Args:
        settings: which tasks, in which order, from which rows.
        seed: of class order, validation and limits.
        root: folder that file names are relative to.
        data: in-memory data sets that the settings name as "memory:<name>".
        source: the config's name, for messages.

    Raises:
        UsageError: the settings are wrong.
        DataError: a file or its rows cannot be used; the message names file and place.

    >>> settings = {"name": "digits", "classes_per_task": 5, "order": "given"}
    >>> [task.classes for task in build_stream(settings, seed=0).tasks]
    [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]

    """
    checked = (
        settings if isinstance(settings, StreamSettings) else parse(StreamSettings, settings, f"{source}, [stream]")
    )
    reader = _Reader(checked, Path(root), data or {}, [], [])
    stream = _from_tasks(checked, seed, reader) if checked.tasks else _from_one(checked, seed, reader)
    record = {**stream.record, "test_cuts": reader.cuts, "settings": checked.model_dump(exclude_none=True)}
    stream = dataclasses.replace(stream, tasks=stream.tasks[: checked.first_tasks], record=record)
    return dataclasses.replace(stream, notes=(*dict.fromkeys(reader.left_out), *notes(stream)))


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Where rows come from, the note of each test cut from train, and of parts of the sources that nothing uses."""

    settings: StreamSettings
    root: Path
    memory: Mapping[str, Any]
    cuts: Cuts
    left_out: list[str]

    def pair(self, task: StreamSettings | TaskSettings) -> tuple[Rows, Rows]:
        """Train and test rows of one data set."""
        if task.train is None:
            return self._noted(digits())
        column = task.split or self.settings.split
        held = parts(task.train, split_column=column, root=self.root, data=self.memory)
        train = self._rows(held, None if WHOLE in held else "train", task.train, task)
        unused = [part for part in held if part not in (WHOLE, "train", "test")]
        self.left_out.extend(f"{task.train}: the rows of '{part}' are not used; {VALIDATED}" for part in unused)
        if task.test is not None:
            # A test file of its own need not have the column that divides the training file.
            divided_by = column if task.test == task.train else None
            held = parts(task.test, split_column=divided_by, root=self.root, data=self.memory)
            split = "test" if "test" in held or len(held) > 1 else None
            return train, self._rows(held, split, task.test, task)
        if "test" in held:
            return train, self._rows(held, "test", task.train, task)
        return self._noted(cut_test(train, by_class=self.settings.kind != "instruction" or are_labels(train)))

    def _rows(self, held: Parts, split: str | None, where: str, task: StreamSettings | TaskSettings) -> Rows:
        own = self.settings
        extra = [own.group_by] if own.group_by else []
        return choose_part(held, split, where, task.input or own.input, task.target or own.target, extra)

    def _noted(self, cut: tuple[Rows, Rows, dict[str, Any]]) -> tuple[Rows, Rows]:
        self.cuts.append(cut[2])
        return cut[0], cut[1]


def cut_test(rows: Rows, *, by_class: bool = True) -> tuple[Rows, Rows, dict[str, Any]]:
    """Cut a test of CUT_FRACTION from rows, stratified by class, by a fixed seed: (train, test, its note)."""
    labels = np.unique(np.array(rows.named() if by_class else [""] * len(rows)), return_inverse=True)[1]
    test = stratified(labels, round(CUT_FRACTION * len(rows)), generator(CUT_SEED, "test"))
    if len(test) == 0:
        once = len(rows) > 2  # so many give a test row, if a label has a second row to be learnt from
        why = (
            "rows, each with a label of its own, leave none to be a test"
            if once
            else "rows are too few to cut a test from"
        )
        raise DataError(f"{rows.where}: {len(rows)} {why}; choose another target column, or give a test file")
    train = np.setdiff1d(np.arange(len(rows)), test)
    note = {"source": rows.where, "rows": len(test), "fraction": CUT_FRACTION, "seed": CUT_SEED}
    return rows.take(train.tolist()), rows.take(test.tolist()), note


def _sampling(settings: StreamSettings, task: TaskSettings | None = None) -> Sampling:
    train = task.train_limit if task and task.train_limit else settings.train_limit
    test = task.test_limit if task and task.test_limit else settings.test_limit
    return Sampling(settings.validation, train, test, settings.shots)


def _from_one(settings: StreamSettings, seed: int, reader: _Reader) -> Stream:
    kind: Kind = settings.kind or ("domain-incremental" if settings.rotations else "class-incremental")
    if kind == "instruction":
        return _instructed(_one_or_groups(settings, reader), settings, seed)
    if kind == "cross-domain":
        raise ConflictError("[stream]: kind = 'cross-domain' needs several data sets; list them in tasks = [...]")
    if settings.rotations and kind != "domain-incremental":
        raise ConflictError(f"[stream]: rotations make domains, not kind = '{kind}'; drop one of the two")
    if kind == "domain-incremental" and not (settings.rotations or settings.group_by):
        raise ConflictError(
            "[stream]: kind = 'domain-incremental' needs rotations, group_by or tasks to tell domains apart"
        )
    train, test = reader.pair(settings)
    if kind == "domain-incremental":
        domains = rotated(train, test, settings.rotations) if settings.rotations else _grouped(train, test, settings)
        order = settings.order or "given"
        return domain_incremental(domains, seed=seed, name=settings.name, order=order, sampling=_sampling(settings))
    divided = settings.groups or settings.group_by
    return class_incremental(
        train,
        test,
        seed=seed,
        name=settings.name,
        classes_per_task=settings.classes_per_task or (None if divided else CLASSES_PER_TASK),
        groups=settings.groups,
        group_by=settings.group_by,
        order=settings.order,
        sampling=_sampling(settings),
        candidates="task" if kind == "task-incremental" else "seen",
    )


def _one_or_groups(settings: StreamSettings, reader: _Reader) -> list[Domain]:
    """One data set as a task, or one task for each value of a column."""
    train, test = reader.pair(settings)
    domains = _grouped(train, test, settings) if settings.group_by else [Domain(settings.name, train, test)]
    return [_prompted(domain, settings, settings) for domain in domains]


def _prompted(domain: Domain, settings: StreamSettings, task: StreamSettings | TaskSettings) -> Domain:
    given = task.input or settings.input or INPUTS[0]
    return instruction(domain, task.prompt or settings.prompt, [given] if isinstance(given, str) else given)


def _instructed(domains: list[Domain], settings: StreamSettings, seed: int) -> Stream:
    order, sampling = settings.order or "given", _sampling(settings)
    return cross_domain(domains, seed=seed, name=settings.name, order=order, sampling=sampling, kind="instruction")


def _grouped(train: Rows, test: Rows, settings: StreamSettings) -> list[Domain]:
    return domains_by_column(train, test, settings.group_by or "")


def _from_tasks(settings: StreamSettings, seed: int, reader: _Reader) -> Stream:
    if settings.kind == "class-incremental":
        raise ConflictError(
            "[stream]: kind = 'class-incremental' divides one data set; for tasks = [...] use 'cross-domain'"
        )
    tasks = settings.tasks or ()
    domains = [Domain(task.name, *reader.pair(task), _sampling(settings, task)) for task in tasks]
    if settings.kind == "instruction":
        asked = [_prompted(domain, settings, task) for domain, task in zip(domains, tasks, strict=True)]
        return _instructed(asked, settings, seed)
    same = len({frozenset(domain.train.names()) for domain in domains}) == 1 and len(domains) > 1
    kind = settings.kind or ("domain-incremental" if same else "cross-domain")
    order = settings.order or "given"
    if kind == "domain-incremental":
        return domain_incremental(domains, seed=seed, name=settings.name, order=order)
    candidates = "task" if kind == "task-incremental" else "all"
    return cross_domain(domains, seed=seed, name=settings.name, order=order, candidates=candidates)
