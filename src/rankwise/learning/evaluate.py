"""Evaluation: one row of R, and what the branches measured meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rankwise.adapters import Sink
from rankwise.streams import Split, Task

if TYPE_CHECKING:
    from rankwise.learning.learner import Learner


@dataclass(frozen=True)
class Row:
    """Scores on every task of the stream at one moment; None where a task cannot be answered yet."""

    test: list[float | None]
    validation: list[float | None]
    diagnostics: list[dict[str, Any]]
    """For each task: what its test examples made the branches report, by name, as a mean over the sites."""
    sites: dict[str, dict[str, list[float]]]
    """For each site: the same by name, as a mean over the test examples of all tasks."""


def evaluate(learner: Learner) -> Row:
    """Score the learner on every task it can answer, test and validation."""
    sinks = [Sink() for _ in learner.tasks]
    test = [score(learner, t, t.test, sink) for t, sink in zip(learner.tasks, sinks, strict=True)]
    held = [None if t.validation is None else score(learner, t, t.validation) for t in learner.tasks]
    return Row(test, held, [sink.means() for sink in sinks], Sink.by_site(sinks))


def score(learner: Learner, task: Task, split: Split, sink: Sink | None = None) -> float | None:
    """Return the objective's score on `split` of a task; None where it cannot be answered yet."""
    return learner.objective.score(learner, task, split, sink)
