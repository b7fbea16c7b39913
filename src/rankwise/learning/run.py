"""A run: learn each task of a stream, score all of them after each, and be able to stop at any instant."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from rankwise.errors import NonFiniteError
from rankwise.learning.evaluate import Row, evaluate
from rankwise.learning.learner import Learner
from rankwise.learning.ledger import Ledger
from rankwise.learning.step import rate_at, step
from rankwise.strategies import Phase, Term
from rankwise.streams import Batch, Task


class Watch:
    """What an onlooker is told while a run goes on; every call does nothing here."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def task(self, index: int, count: int, name: str, steps: int, done: int) -> None:
        """A task begins (or goes on after `done` of its `steps`)."""

    def stepped(self, done: int, loss: float) -> None:
        """`done` steps of the task are behind; the loss of the last one."""

    def scored(self, name: str, scores: Sequence[float | None]) -> None:
        """All tasks were scored after `name`."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands: all of it that is not in the learner."""

    task: int = 0
    """Curriculum tasks finished."""
    step: int = 0
    """Steps done in the task under way."""
    total: int = 0
    """Steps done in all."""
    first: int = -1
    """Step of the task at which the phase under way began; -1: none is."""
    last: int = -1
    """Step of the task before which it ends."""
    done: list[dict[str, Any]] = field(default_factory=list)
    """Reports of the phases finished in the task under way."""
    zero_shot: list[float | None] = field(default_factory=list)
    rows: list[list[float | None]] = field(default_factory=list)
    validation: list[list[float | None]] = field(default_factory=list)
    diagnostics: list[list[dict[str, Any]]] = field(default_factory=list)
    sites: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """What the branches reported site by site after the last task; see `evaluate.Row`."""
    seconds: float = 0.0
    """Wall seconds of all sittings."""


def run(learner: Learner, ledger: Ledger, watch: Watch) -> Progress:
    """Learn what is left of the stream, from the newest whole snapshot or from the start.

    Everything that decides the outcome is in the snapshot or a function of counters, so a run that was killed at any
    instant ends, after any number of resumptions, with the same weights, scores and events.
    """
    watch = watch if learner.processes.first else Watch()
    progress = _resumed(learner, ledger, watch)
    clock = _Clock(progress.seconds, learner.config.train.snapshot_seconds)
    if not progress.zero_shot:
        for line in learner.stream.notes:
            watch.note(f"note: {line}")
        progress = replace(progress, zero_shot=evaluate(learner).test)
        _record(learner, ledger, "start", scores=progress.zero_shot)
    for task in learner.curriculum[progress.task :]:
        progress = _learn(learner, ledger, watch, task, progress, clock)
        row = evaluate(learner)
        progress = _task_done(replace(progress, seconds=clock.seconds()), row)
        watch.scored(task.name, row.test)
        _record(learner, ledger, "task", task=task.name, scores=row.test, validation=row.validation)
        _save(learner, ledger, progress, kept=True)
    return progress


def _learn(learner: Learner, ledger: Ledger, watch: Watch, task: Task, progress: Progress, clock: _Clock) -> Progress:
    """Train one task, phase by phase, from where `progress` says."""
    watch.task(progress.task, len(learner.curriculum), task.name, learner.steps(task), progress.step)
    if progress.first < 0 and not progress.done:
        learner.begin_task(task)
    saved = progress.total
    while True:
        if progress.first < 0:
            phase = learner.next_phase(task, progress.done)
            if phase is None:
                break
            if progress.total > saved and clock.rang():
                _save(learner, ledger, replace(progress, seconds=clock.seconds()), kept=False)
                saved = progress.total
            length = steps_of(learner, task, phase, progress.done)
            if not length and not phase.changes:
                progress = replace(progress, done=[*progress.done, {"phase": phase.name}])
                continue
            learner.enter_phase(phase)
            progress = replace(progress, first=progress.step, last=progress.step + length)
        progress = _fit(learner, ledger, watch, task, progress, clock)
        progress = replace(progress, first=-1, done=[*progress.done, learner.end_phase()])
    learner.end_task(task)
    return replace(progress, done=[])


def _fit(learner: Learner, ledger: Ledger, watch: Watch, task: Task, progress: Progress, clock: _Clock) -> Progress:
    """Train one phase step by step, from where `progress` says."""
    settings, first, last = learner.config.train, progress.first, progress.last
    learner.model.train(learner.method.live != "head")
    for batch in learner.loader(task).stream(progress.step, last, settings.workers):
        rate = rate_at(settings.schedule, settings.warmup, progress.step - first, last - first)
        with _pointing_back(ledger):
            losses = step(learner, _terms(learner, task, batch, progress.total), progress.total, rate)
        progress = replace(progress, step=progress.step + 1, total=progress.total + 1)
        over = progress.step == last or any(strategy.enough(learner) for strategy in learner.strategies)
        watch.stepped(progress.step, sum(losses.values()))
        if progress.step % settings.log_every == 0 or over:
            _record(learner, ledger, "step", task=task.name, step=progress.step, losses=losses, rate=rate)
        if over:
            break
        if clock.rang():
            _save(learner, ledger, replace(progress, seconds=clock.seconds()), kept=False)
    return progress


def steps_of(learner: Learner, task: Task, phase: Phase, done: Sequence[Mapping[str, Any]]) -> int:
    """Return the steps of a phase: its share of the task's, the shares of the fixed phases rounded to add up."""
    steps = learner.steps(task)
    if phase not in learner.method.phases:
        return round(phase.share * steps)
    before = sum(p.share for p in learner.method.phases[: len(done)])
    return round((before + phase.share) * steps) - round(before * steps)


def _terms(learner: Learner, task: Task, batch: Batch, number: int) -> list[Term]:
    """Return the losses of one step: the task's own, then those of the strategies in config order."""
    classes, learner.batch = learner.classes(task), batch
    own = Term(learner.config.objective.kind, batch, lambda part: learner.own(part, classes))
    terms = [own] if learner.phase.own_loss else []
    return [*terms, *(term for strategy in learner.strategies for term in strategy.terms(learner, number))]


class _Clock:
    """Counts the wall seconds of all sittings, and says when a snapshot is due: when one is written, never what is."""

    def __init__(self, before: float, interval: float) -> None:
        self.start = self.mark = time.monotonic()
        self.before, self.interval = before, interval

    def seconds(self) -> float:
        return self.before + time.monotonic() - self.start

    def rang(self) -> bool:
        if time.monotonic() - self.mark < self.interval:
            return False
        self.mark = time.monotonic()
        return True


def _resumed(learner: Learner, ledger: Ledger, watch: Watch) -> Progress:
    if learner.processes.first:
        ledger.clean()
    learner.processes.wait()
    state, refused = ledger.last()
    for line in refused:
        watch.note(line)
    if state is None:
        if learner.processes.first:
            ledger.rewind(0, -1)
        return Progress()
    tensors, values = state
    progress = Progress(**values["progress"])
    learner.restore(tensors, values["learner"])
    learner.processes.wait()
    if learner.processes.first:
        ledger.rewind(int(values["events"]), _number(progress))
    return progress


def _task_done(progress: Progress, row: Row) -> Progress:
    return replace(
        progress,
        task=progress.task + 1,
        step=0,
        first=-1,
        rows=[*progress.rows, row.test],
        validation=[*progress.validation, row.validation],
        diagnostics=[*progress.diagnostics, row.diagnostics],
        sites=row.sites,
    )


def _record(learner: Learner, ledger: Ledger, event: str, **values: Any) -> None:
    if learner.processes.first:
        ledger.record(event, **values)


def _save(learner: Learner, ledger: Ledger, progress: Progress, *, kept: bool) -> None:
    """Write a snapshot. The first process decides when, by its own clock, so nobody may wait for the others here."""
    if not learner.processes.first:
        return
    for name, parameter in learner.live().items():
        if not bool(torch.isfinite(parameter).all()):
            raise NonFiniteError(f"step {progress.total - 1} left {name} not finite; lower train.lr; {ledger.newest()}")
    tensors, values = learner.state()
    ledger.snapshot((tensors, {"learner": values, "progress": asdict(progress)}), _number(progress), kept=kept)


def _number(progress: Progress) -> int:
    """Number a snapshot: grows with every step and every task end, also where a task has no steps."""
    return progress.total + progress.task


@contextmanager
def _pointing_back(ledger: Ledger) -> Iterator[None]:
    """Add to the error of a step that is not finite where a resumed run starts from."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}; {ledger.newest()}") from None
