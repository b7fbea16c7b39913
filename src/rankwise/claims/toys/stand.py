"""A stand for the parts of a run around a bare model and a loss: no data sets, no head, the same order of hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from rankwise.adapters import Change, grow
from rankwise.config import TrainSettings
from rankwise.learning.step import EMPTY, rate_at
from rankwise.strategies import Host, Strategy
from rankwise.streams import Split, Task


@dataclass
class Stand:
    """What a part may ask of a learner, as far as it needs neither data nor a head."""

    model: nn.Module
    """Adapted; what learns in it is what requires gradient."""
    tasks: Sequence[Task]
    train: TrainSettings
    """`steps`, `lr` and `schedule` count."""
    seed: int = 0
    index: int = 0
    """Number of the task under way."""
    done: int = 0
    """Steps done in all."""
    rate: float = 0.0
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)

    @property
    def task(self) -> Task:
        """The task under way."""
        return self.tasks[self.index]

    def steps(self, task: Task) -> int:
        """Return how many steps a task takes."""
        return self.train.steps or 0

    def live(self) -> Mapping[str, nn.Parameter]:
        """Parameters that learn now, by the names they have in a run."""
        return {f"base.{name}": p for name, p in self.model.named_parameters() if p.requires_grad}

    def rule(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return AdamW over parameter groups."""
        beta1, beta2 = self.train.betas
        return torch.optim.AdamW(groups, betas=(beta1, beta2), weight_decay=self.train.weight_decay)

    def learn(self, index: int, part: Strategy, loss: Callable[[int], Tensor], *, after: Sequence[Change] = ()) -> None:
        """Learn task `index` with `part` from loss(step of the task), once `after` has been done to the structure."""
        self.begin(index, part, after)
        for step in range(self.steps(self.task)):
            self.step(part, loss(step), rate_at(self.train.schedule, 0.0, step, self.steps(self.task)))
        self.end(part)

    def begin(self, index: int, part: Strategy, after: Sequence[Change] = ()) -> None:
        """Begin task `index` and its one phase."""
        self.index, host = index, cast(Host, self)
        grow(self.model, after, self.seed)
        part.begin_task(host, self.task)
        phase = part.plan(host, self.task, ())
        if phase is not None:
            grow(self.model, phase.changes, self.seed)
        self._arm(part)

    def step(self, part: Strategy, loss: Tensor, factor: float = 1.0) -> None:
        """Take one step on `loss` and the terms of `part`, in the order of a run."""
        host, self.rate = cast(Host, self), self.train.lr * factor
        for rule in self.optimizers:
            rule.zero_grad()
        loss.backward()
        for term in part.terms(host, self.done):
            assert term.batch is None
            (term.weight * term.losses(EMPTY)).backward()
        part.shape(host, self.done)
        for rule in self.optimizers:
            for group in rule.param_groups:
                group["lr"] = group["peak"] * factor
            rule.step()
        part.settle(host, self.done)
        part.follow(host, self.done)
        changes = part.changes(host, self.done)
        self.done += 1
        if changes:
            grow(self.model, changes, self.seed)
            self._arm(part)

    def end(self, part: Strategy) -> None:
        """End the task."""
        grow(self.model, part.end_task(cast(Host, self), self.task), self.seed)

    def _arm(self, part: Strategy) -> None:
        """Make the rules: the part's, and one for the rest."""
        live, own = self.live(), part.optimizer(cast(Host, self), self.live())
        taken = {id(p) for group in (own.param_groups if own else ()) for p in group["params"]}
        rest = [p for p in live.values() if id(p) not in taken]
        self.optimizers = [
            *([own] if own else []),
            *([self.rule([{"params": rest, "lr": self.train.lr}])] if rest else []),
        ]
        for rule in self.optimizers:
            for group in rule.param_groups:
                group["peak"] = group["lr"]


def stand(model: nn.Module, tasks: int, *, seed: int = 0, **train: Any) -> Stand:
    """Return a stand for `tasks` tasks without rows, with these settings of the loop."""
    return Stand(model, [bare_task(i) for i in range(tasks)], TrainSettings(**train), seed)


def bare_task(index: int) -> Task:
    """Return a task that has a number and a name and one blank row."""
    row = Split(torch.zeros(1, 2, 2, dtype=torch.uint8), torch.tensor([index]), torch.tensor([0]))
    return Task(f"task-{index + 1}", index, (index,), row, None, row)
