"""Rounds of boosting: a stack a round, which ends with its best values by validation loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rankwise.adapters import Change
from rankwise.papers.brainstacks.settings import StackSettings
from rankwise.strategies import Host, Phase, Strategy, validation_loss
from rankwise.streams import Task

ROUND = "#"
"""Stands in a stack's label between its domain (the task's name) and the number of its round."""


class Best:
    """Watches the validation loss of one round."""

    def __init__(self) -> None:
        """Start a round."""
        self.steps, self.misses, self.loss = 0, 0, torch.inf
        self.values: dict[str, Tensor] = {}

    def note(self, loss: float, live: Mapping[str, Tensor]) -> None:
        """Take note of a validation loss; keep the live values if there was no better one."""
        self.misses = 0 if loss < self.loss else self.misses + 1
        if loss < self.loss:
            self.loss = loss
            self.values = {name: value.detach().clone() for name, value in live.items()}

    @torch.no_grad()
    def put_back(self, live: Mapping[str, Tensor]) -> None:
        """Write the best values into the live ones."""
        for name, value in live.items():
            value.copy_(self.values[name])
        self.values = {}

    def state(self) -> dict[str, Tensor]:
        """Return all of it."""
        numbers = torch.tensor([self.steps, self.misses, self.loss], dtype=torch.float64)
        return {"numbers": numbers, **{f"values/{name}": value for name, value in self.values.items()}}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take it back."""
        steps, misses, self.loss = state["numbers"].tolist()
        self.steps, self.misses = int(steps), int(misses)
        self.values = {name.removeprefix("values/"): t for name, t in state.items() if name != "numbers"}


class Rounds(Strategy):
    """Appends a stack that writes nothing yet, trains it with all earlier ones acting, and keeps its best values.

    Without validation rows: the last values, and all rounds.
    """

    Settings = StackSettings
    plans = True

    def __init__(self, settings: StackSettings | None = None, seed: int = 0) -> None:
        """Start without a round."""
        super().__init__(settings or StackSettings(), seed)
        self.best = Best()

    def plan(self, host: Host, task: Task, done: Sequence[Mapping[str, Any]]) -> Phase | None:
        """Return the next round, unless there were enough or the last one gained too little."""
        losses = [report["loss"] for report in done if "loss" in report]
        if len(done) >= self.settings.rounds:
            return None
        if len(losses) > 1 and losses[-2] - losses[-1] < self.settings.min_improvement:
            return None
        label = f"{task.name}{ROUND}{len(done) + 1}"
        return Phase(f"round {len(done) + 1}", changes=(Change("freeze"), Change("append", label, host.rank)))

    def begin_phase(self, host: Host, phase: Phase) -> None:
        """Start a round's watch over the validation loss."""
        self.best = Best()

    def follow(self, host: Host, step: int) -> None:
        """Count the round's steps."""
        self.best.steps += 1

    def enough(self, host: Host) -> bool:
        """Look at the validation loss when it is time, and say whether it has spiked or stopped falling."""
        if self.best.steps % self.settings.eval_every or host.task.validation is None:
            return False
        loss = self.look(host)
        return loss > self.best.loss + self.settings.spike or self.best.misses >= self.settings.patience

    def look(self, host: Host) -> float:
        """Return the validation loss; keep the live values if it is the best of the round."""
        task, training = host.task, host.model.training
        assert task.validation is not None
        loss = validation_loss(host, task.validation, host.classes(task))
        host.model.train(training)
        self.best.note(loss, host.live())
        return loss

    def end_phase(self, host: Host, phase: Phase) -> Mapping[str, Any]:
        """Put back the best values; report their validation loss."""
        if host.task.validation is None:
            return {}
        if self.best.steps % self.settings.eval_every or not self.best.values:
            self.look(host)
        self.best.put_back(host.live())
        return {"loss": self.best.loss}
