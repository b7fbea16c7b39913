"""A claim as data, and how what was measured of it is judged."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rankwise.learning.metrics import Interval, mean_interval

Relation = Literal["<=", "<", ">=", ">"]
Verdict = Literal["holds", "undecided", "does not hold", "not measured"]
Values = Mapping[str, float | None]
"""What one seed gave, by name; None where it was not a finite number."""

MEETS: Mapping[Relation, Callable[[float, float], bool]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Threshold:
    """What one of a claim's values must be."""

    value: str
    """Its name among the values."""
    relation: Relation
    bound: float
    share: float | None = None
    """None: the mean over seeds must meet the bound; else the share of seeds that must, each by itself (1.0: all)."""

    def meets(self, value: float | None) -> bool:
        """Say whether one number is on the right side; None never is."""
        return value is not None and MEETS[self.relation](value, self.bound)

    def judge(self, values: Sequence[float | None]) -> Verdict:
        """Judge the values of all seeds.

        Counted over seeds it holds or it does not. On the mean: it does not hold if the mean misses the bound; it holds
        if the whole 95 % interval meets it; between the two it is undecided (so is a single seed).
        """
        if self.share is not None:
            return "holds" if sum(map(self.meets, values)) >= self.share * len(values) else "does not hold"
        interval = interval_of(values)
        if interval is None or not self.meets(interval.mean):
            return "does not hold"
        return "holds" if self.meets(interval.low) and self.meets(interval.high) else "undecided"

    def __str__(self) -> str:
        """Write it as a reader would: the relation, the bound, and who must meet it."""
        who = {None: "", 1.0: ", every seed"}.get(self.share, f", {self.share or 0:.0%} of the seeds")
        return f"{self.relation} {self.bound:g}{who}"


def nothing_needed() -> str:
    """Say that a claim can be measured anywhere."""
    return ""


@dataclass(frozen=True)
class Claim:
    """A published claim in miniature."""

    slug: str
    """The method or study it belongs to; also its file."""
    number: str
    """Its number there."""
    title: str
    source: str
    """Where the claim was published."""
    statement: str
    """What is claimed of the miniature, with its sizes."""
    thresholds: tuple[Threshold, ...]
    """It holds if every one of them does."""
    measure: Callable[[int], Values]
    """Seed -> named values; a pure function of the seed."""
    seeds: int = 5
    """How many seeds are measured, at least 3."""
    needs: Callable[[], str] = nothing_needed
    """Says what is missing on this machine to measure it; an empty text if nothing is."""
    note: str = ""
    """What a reader must know: what the miniature leaves out, what was found."""

    @property
    def name(self) -> str:
        """Slug and number."""
        return f"{self.slug}-{self.number}"


def interval_of(values: Sequence[float | None]) -> Interval | None:
    """Return mean and 95 % Student interval over seeds, or None if one of them gave no number."""
    return mean_interval(values)


ORDER: tuple[Verdict, ...] = ("not measured", "does not hold", "undecided", "holds")


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict of a claim from those of its thresholds."""
    return min(verdicts, key=ORDER.index)
