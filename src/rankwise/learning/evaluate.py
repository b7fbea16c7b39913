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
    """For each task: what its test examples made the branches report, by name."""


def evaluate(learner: Learner) -> Row:
    """Score the learner on every task it can answer, test and validation."""
    answered = [(task if set(task.classes) <= set(candidates(learner, task)) else None) for task in learner.tasks]
    sinks = [Sink() for _ in answered]
    test = [None if t is None else score(learner, t, t.test, s) for t, s in zip(answered, sinks, strict=True)]
    held = [None if t is None or t.validation is None else score(learner, t, t.validation) for t in answered]
    return Row(test, held, [sink.means() for sink in sinks])


def candidates(learner: Learner, task: Task) -> list[int]:
    """Return the classes a task's test examples are ranked among: what can be answered, as the stream allows."""
    known = learner.objective.known()
    if learner.method.oracle or learner.stream.candidates == "task":
        return sorted(known & set(task.classes))
    return sorted(known if learner.stream.candidates == "all" else known & set(learner.seen))


def score(learner: Learner, task: Task, split: Split, sink: Sink | None = None) -> float:
    """Return the accuracy on `split`, each example ranked among `candidates`."""
    features = learner.features(split, learner.blocks_for(task), sink=sink)
    labels = split.labels.to(features.device)
    learner.processes.add_up([] if sink is None else sink.sums())
    return int((learner.objective.answer(features, candidates(learner, task)) == labels).sum()) / len(labels)
