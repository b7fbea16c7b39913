"""Replay: a bounded buffer of earlier examples, rehearsed beside each batch of new ones (arXiv 1902.10486).

    loss = mean l(x, y) + weight * mean l(x', y'),    (x', y') drawn from the buffer in each step

Two defaults are not that paper's: rows are offered when their task ends (as Avalanche does it), so that what is
rehearsed is old, and the two means are added. The paper is `offer = "step"` with `average = true`: with as many stored
examples as new ones that is one mean over both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from rankwise.adapters import Change
from rankwise.config import Count, Positive
from rankwise.objectives import Outputs
from rankwise.seeds import derive, generator
from rankwise.strategies.base import Strategy
from rankwise.strategies.host import Host, Term, places_of
from rankwise.streams import Batch, Task


class ReplayBuffer:
    """At most `size` of the training rows seen so far, as (task index, position) and class id.

    Every row gets one uniform draw, a function of (seed, task, position), and the rows with the smallest draws stay:
    over all rows ("reservoir": an exact uniform sample of everything seen) or within each class's equal share
    ("balanced"; the remainder of an uneven division goes to the smallest class ids).
    """

    def __init__(self, size: int, policy: str, seed: int) -> None:
        """Make an empty buffer."""
        self.size, self.policy, self.seed = size, policy, seed
        self.rows = torch.empty(0, 3, dtype=torch.long)

    def offer(self, task: int, labels: Tensor, places: Tensor | None = None) -> None:
        """Offer training rows of `task` with their labels [n], at `places` [n] in its training split; None: all of it.

        A row that is offered again has its draw of before, so it neither comes twice nor comes back.
        """
        places = torch.arange(len(labels)) if places is None else places
        new = torch.stack([torch.full_like(places, task), places, labels.cpu()], 1)
        rows = torch.cat([self.rows, new]).unique(dim=0)
        draws = torch.tensor([derive(self.seed, "buffer", *row) for row in rows[:, :2].tolist()], dtype=torch.long)
        rows = rows[draws.argsort()]
        self.rows = rows[: self.size] if self.policy == "reservoir" else self._balance(rows)

    def draw(self, count: int, step: int) -> Tensor:
        """Return up to `count` stored rows, without replacement, as [n, 3]; a function of (seed, step)."""
        order = torch.randperm(len(self.rows), generator=generator(self.seed, "rehearse", step))
        return self.rows[order[:count]]

    def _balance(self, rows: Tensor) -> Tensor:
        classes = rows[:, 2].unique().tolist()
        share, rest = divmod(self.size, len(classes))
        kept = [rows[rows[:, 2] == c][: share + (i < rest)] for i, c in enumerate(classes)]
        return torch.cat(kept)


@dataclass(frozen=True)
class ReplaySettings:
    """`[[strategy]] kind = "replay"`: rehearse stored examples of earlier tasks."""

    size: Count = 200
    """Examples the buffer holds."""
    policy: Literal["reservoir", "balanced"] = "reservoir"
    """reservoir: a uniform sample of everything seen; balanced: an equal share for each class."""
    batch_size: Annotated[int, Field(ge=0)] = 32
    """Stored examples rehearsed in a step; 0: as many as new ones."""
    weight: Positive = 1.0
    """Factor on the rehearsal loss."""
    average: bool = False
    """Divide both losses, new and rehearsed, by 1 + weight: their mean in place of their sum."""
    offer: Literal["task", "step"] = "task"
    """When training rows are offered to the buffer. task: all of a task's as it ends, so that what is rehearsed is old;
    step: those of each step, after it."""
    classes: Literal["seen", "task"] = "seen"
    """Classes the rehearsal loss ranks: all seen so far, or those of the example's own task."""
    refresh_means: bool = True
    """Take the class means of earlier tasks again from the buffer when a task ends."""


class Replay(Strategy):
    """Adds the loss of a draw from the buffer to each step.

    New and stored examples are ranked among all classes seen, as one batch would be, unless `objective.classes` and
    `classes` say otherwise. Ranking new examples among their own task's classes alone, as ER-ACE does, fails here: as
    stored rows are of earlier tasks, no example would then say that a new class scores higher than an old one (unless
    `offer` = "step").
    """

    name = "replay"
    Settings = ReplaySettings
    reads = frozenset({"loss", "memory"})
    writes = {"loss": "add", "replay buffer": "set"}
    brings_batches = True
    learns_old_classes = True

    def __init__(self, settings: ReplaySettings, seed: int) -> None:
        """Start with an empty buffer."""
        super().__init__(settings, seed)
        self.buffer = ReplayBuffer(settings.size, settings.policy, seed)

    def terms(self, host: Host, step: int) -> Sequence[Term]:
        """Return the rehearsal loss: one term, or one for each task drawn from where classes = "task"."""
        drawn = self.buffer.draw(self.settings.batch_size or host.train.batch_size, step)[:, :2]
        groups = {"rehearsal": (drawn, host.seen)} if len(drawn) else {}
        if self.settings.classes == "task":
            tasks = drawn[:, 0].unique().tolist()
            groups = {f"rehearsal.{t}": (drawn[drawn[:, 0] == t], host.tasks[t].classes) for t in tasks}
        return [
            Term(
                name,
                host.examples(rows, ("rehearse", step)),
                partial(host.rehearse, classes=classes),
                self.weight * (len(rows) / len(drawn)),
            )
            for name, (rows, classes) in groups.items()
        ]

    @property
    def weight(self) -> float:
        """The factor on the rehearsal loss."""
        return self.settings.weight / (1 + self.settings.weight) if self.settings.average else self.settings.weight

    def own(self, host: Host, batch: Batch, outputs: Outputs, losses: Tensor) -> Tensor:
        """Return the losses of new examples, scaled down for a mean with the rehearsed ones."""
        shared = self.settings.average and len(self.buffer.rows)
        return losses / (1 + self.settings.weight) if shared else losses

    def follow(self, host: Host, step: int) -> None:
        """Offer the new examples of the step, if that is when."""
        if self.settings.offer == "step":
            self.buffer.offer(host.task.index, host.batch.labels, places_of(host.task, host.batch))

    def end_task(self, host: Host, task: Task) -> Sequence[Change]:
        """Offer the finished task's training rows, if that is when."""
        if self.settings.offer == "task":
            self.buffer.offer(task.index, task.train.labels)
        return ()

    def remembered(self) -> Tensor:
        """Return what the buffer holds, if class means are to be taken from it again."""
        return self.buffer.rows[:, :2] if self.settings.refresh_means else self.buffer.rows[:0, :2]

    def state(self) -> dict[str, Tensor]:
        """Return the stored rows."""
        return {"rows": self.buffer.rows}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take the stored rows back."""
        self.buffer.rows = state["rows"].clone()
