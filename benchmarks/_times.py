"""Times of candidates that take turns in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Step = Callable[[], object]


@dataclass(frozen=True)
class Time:
    """Medians over repetitions, in milliseconds."""

    cpu: float
    wall: float
    fastest_cpu: float
    reps: int


Spent = Mapping[str, Sequence[tuple[float, float]]]
"""Candidate -> milliseconds of (processor time, wall time) of each round."""


def interleaved(steps: Mapping[str, Step], reps: int) -> dict[str, list[tuple[float, float]]]:
    """Time `steps` in turns, each round starting one further, after a round that does not count."""
    names, taken = list(steps), {name: list[tuple[float, float]]() for name in steps}
    for lap in range(reps + 1):
        for name in names[lap % len(names) :] + names[: lap % len(names)]:
            wall, cpu = time.perf_counter(), time.process_time()
            steps[name]()
            spent = 1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall)
            if lap:
                taken[name].append(spent)
    return taken


def medians(taken: Spent) -> dict[str, Time]:
    """Return the medians of each candidate."""
    found = {}
    for name, spent in taken.items():
        cpu, wall = ([pair[i] for pair in spent] for i in (0, 1))
        found[name] = Time(statistics.median(cpu), statistics.median(wall), min(cpu), len(spent))
    return found


def over(taken: Spent, name: str) -> dict[str, Any]:
    """Return records of the medians, with ratios to the candidate `name`: see `ratio`."""
    return {
        key: asdict(t) | {"cpu_ratio": ratio(taken, key, name), "wall_ratio": ratio(taken, key, name, 1), "n": t.reps}
        for key, t in medians(taken).items()
    }


def ratio(taken: Spent, name: str, other: str, which: int = 0) -> float:
    """Return the median, over the rounds, of one candidate's time over another's in the same round.

    What slows the machine for minutes slows both, so that this moves less than a ratio of medians.
    """
    rounds = zip(taken[name], taken[other], strict=True)
    return statistics.median(a[which] / b[which] for a, b in rounds)


def processor(do: Step) -> float:
    """Return the milliseconds of processor time that one call takes."""
    before = time.process_time()
    do()
    return 1e3 * (time.process_time() - before)
