"""Draws of rows and of orders, each from its own generator: a function of the seed and of what the draw is for.

No global generator is read or moved, so nothing drawn elsewhere changes a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankwise.errors import ConflictError, DataError

IntArray = np.ndarray


@dataclass(frozen=True)
class Sampling:
    """How many rows of a task are used. Train and validation never share a row.

    validation: a fraction in (0, 1) of the rows that training would otherwise have, or a count per task; 0 for none.
    train_limit, test_limit: at most so many rows, spread evenly over classes (validation is not counted).
    shots: exactly so many training rows a class.
    """

    validation: float | int = 0
    train_limit: int | None = None
    test_limit: int | None = None
    shots: int | None = None

    def __post_init__(self) -> None:
        """Refuse shots together with train_limit: both say how many training rows there are."""
        if self.shots is not None and self.train_limit is not None:
            raise ConflictError("'shots' and 'train_limit' cannot be given together; remove one of them")


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A generator of its own for one purpose, such as `generator(1, "validation", "task-3")`; seed at least 0."""
    return np.random.default_rng([seed, *"/".join(str(part) for part in purpose).encode()])


def permutation(length: int, seed: int, *purpose: str | int) -> list[int]:
    """An order of 0..length-1 drawn for one purpose."""
    return generator(seed, *purpose).permutation(length).tolist()


def draw(labels: IntArray, quotas: IntArray, rng: np.random.Generator) -> IntArray:
    """Positions of `quotas[k]` rows of the k-th distinct label, without replacement, in row order."""
    inverse = np.unique(labels, return_inverse=True)[1]
    shuffled = rng.permutation(len(labels))
    grouped = shuffled[np.argsort(inverse[shuffled], kind="stable")]
    group = inverse[grouped]
    starts = np.concatenate([[0], np.cumsum(np.bincount(group))[:-1]])
    rank_in_group = np.arange(len(labels)) - starts[group]
    return np.sort(grouped[rank_in_group < quotas[group]])


def stratified(labels: IntArray, total: int, rng: np.random.Generator, keep: int = 1) -> IntArray:
    """Positions of about `total` rows, each class by its share (largest remainder), leaving at least `keep` rows of
    each."""
    counts = np.unique(labels, return_counts=True)[1]
    share = total * counts / len(labels)
    cap = np.maximum(counts - keep, 0)
    quotas = np.minimum(np.floor(share).astype(np.int64), cap)
    by_remainder = np.argsort(-(share - np.floor(share)), kind="stable")
    while (missing := total - quotas.sum()) > 0 and (quotas < cap).any():
        room = [k for k in by_remainder if quotas[k] < cap[k]][:missing]
        quotas[room] += 1
    return draw(labels, quotas, rng)


def balanced(labels: IntArray, total: int, rng: np.random.Generator) -> IntArray:
    """Positions of at most `total` rows, as evenly over classes as their sizes allow."""
    counts = np.unique(labels, return_counts=True)[1]
    quotas = np.zeros_like(counts)
    while (missing := min(total, counts.sum()) - quotas.sum()) > 0:
        room = np.flatnonzero(quotas < counts)
        if missing < len(room):
            quotas[rng.permutation(room)[:missing]] += 1
        else:
            quotas[room] += min(missing // len(room), (counts - quotas)[room].min())
    return draw(labels, quotas, rng)


def training_rows(
    labels: IntArray, sampling: Sampling, seed: int, task: str, names: Sequence[str]
) -> tuple[IntArray, IntArray]:
    """Positions (train, validation) of a task's rows; validation is set aside first. Raises DataError naming the
    task."""
    classes, counts = np.unique(labels, return_counts=True)
    if sampling.shots is not None and counts.min() < sampling.shots:
        short = names[int(classes[counts.argmin()])]
        raise DataError(
            f"task '{task}': class '{short}' has {counts.min()} training rows, fewer than "
            f"shots = {sampling.shots}; lower it"
        )
    if sampling.train_limit is not None and sampling.train_limit < len(classes):
        raise DataError(
            f"task '{task}': train_limit = {sampling.train_limit} is below its {len(classes)} classes; raise it"
        )
    validation = _validation_rows(labels, sampling, seed, task, len(classes))
    rest = np.setdiff1d(np.arange(len(labels)), validation)
    chosen = _limited(labels[rest], sampling, generator(seed, "train", task))
    return rest[chosen], validation


def _limited(labels: IntArray, sampling: Sampling, rng: np.random.Generator) -> IntArray:
    if sampling.shots is not None:
        return draw(labels, np.full(len(np.unique(labels)), sampling.shots), rng)
    return np.arange(len(labels)) if sampling.train_limit is None else balanced(labels, sampling.train_limit, rng)


def _validation_rows(labels: IntArray, sampling: Sampling, seed: int, task: str, classes: int) -> IntArray:
    if sampling.validation == 0:
        return np.array([], dtype=np.int64)
    budget = sampling.train_limit or (sampling.shots or len(labels)) * (classes if sampling.shots else 1)
    used = min(len(labels), budget)
    total = sampling.validation if isinstance(sampling.validation, int) else round(sampling.validation * used)
    rows = stratified(labels, total, generator(seed, "validation", task), keep=sampling.shots or 1)
    if len(rows) == 0 or (isinstance(sampling.validation, int) and len(rows) < total):
        raise DataError(
            f"task '{task}': validation = {sampling.validation} asks for {total} rows but {len(rows)} of {len(labels)} "
            "can be set aside while training keeps its own; change validation (0 for none) or give more rows"
        )
    return rows


def limited_test(labels: IntArray, limit: int | None, seed: int, task: str) -> IntArray:
    """Positions of the test rows used: all, or at most `limit` spread evenly over classes."""
    return np.arange(len(labels)) if limit is None else balanced(labels, limit, generator(seed, "test", task))
