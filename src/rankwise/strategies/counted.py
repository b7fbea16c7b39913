"""Dynamics that count the steps of a task, and what of theirs a resumed run takes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from rankwise.strategies.base import Strategy
from rankwise.strategies.host import Host
from rankwise.streams import Task


class Counted(Strategy):
    """Knows how many steps of the task under way are done: what changes over a task's steps is a function of it."""

    needs_adapter = True
    remembers: ClassVar[tuple[str, ...]] = ()
    """Names of its tensors that a resumed run takes back, besides the counter."""

    def __init__(self, settings: Any = None, seed: int = 0) -> None:
        """Start before the first step."""
        super().__init__(settings or self.Settings(), seed)
        self.done = 0

    def begin_task(self, host: Host, task: Task) -> None:
        """Start counting."""
        self.done = 0

    def follow(self, host: Host, step: int) -> None:
        """Count the step."""
        self.done += 1

    def state(self) -> dict[str, Tensor]:
        """Return the counter, and the tensors that it remembers."""
        return {"done": torch.tensor(self.done), **{name: vars(self)[name] for name in self.remembers}}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        self.done = int(state["done"])
        vars(self).update({name: state[name].clone() for name in self.remembers})
