"""Courses: how a number changes over the steps of a task, as functions of the steps done and of those there are."""

from __future__ import annotations


def stretch(total: int, initial: float, final: float) -> tuple[int, int]:
    """Return the steps between which something changes: after a share `initial` of `total`, before a share `final`.

    >>> stretch(100, 0.1, 0.3)
    (10, 70)
    """
    return int(initial * total), total - int(final * total)


def left(t: int, first: int, last: int) -> float:
    """Return 1 up to step `first`, 0 from step `last` on, and what lies on a line between them.

    >>> [left(t, 2, 6) for t in (0, 2, 3, 6, 9)]
    [1.0, 1.0, 0.75, 0.0, 0.0]
    """
    return min(max(1 - (t - first) / max(last - first, 1), 0.0), 1.0)


def stair(i: int, first: int, total: int, stairs: int) -> int:
    """Return 0 up to step `first`, then up to stairs - 1, which rises at multiples of an equal part of what is left.

    >>> [stair(i, 4, 12, 4) for i in range(12)]
    [0, 0, 0, 0, 0, 1, 2, 2, 3, 3, 3, 3]
    """
    stride = max((total - first) // stairs, 1)
    return min(i // stride - (first - 1) // stride, stairs - 1) if i > first else 0


def rise(since: int, rising: int) -> float:
    """Return the factor of a warm-up in its step `since` (from 0), of `rising` steps below 1.

    >>> [rise(since, 3) for since in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return min((since + 1) / (rising + 1), 1.0)


def cuts(total: int, parts: int) -> set[int]:
    """Return the numbers of steps done at which one of `parts` equal parts of `total` steps ends and another begins.

    >>> cuts(10, 3), cuts(2, 4)
    ({3, 7}, {0, 1})
    """
    return {round(i * total / parts) for i in range(1, parts)} - {total}
