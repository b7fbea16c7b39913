"""What a training loop that is not ours does not give to strategies: each is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from rankwise.config import TrainSettings
from rankwise.errors import UsageError
from rankwise.models import Backbone
from rankwise.objectives import Objective, Outputs
from rankwise.streams import Batch, Split, Task


class Withheld:
    """The part of `strategies.Host` that a foreign loop has no answer to."""

    @property
    def seen(self) -> tuple[int, ...]:
        """No classes are known on a foreign loop."""
        return ()

    @property
    def objective(self) -> Objective:
        """Refuse: what the task asks is the loop's own."""
        self._refuse("an objective; it takes its own losses")

    @property
    def backbone(self) -> Backbone:
        """Refuse: how raw inputs become features is the loop's own."""
        self._refuse("a base that encodes raw inputs")

    @property
    def batch(self) -> Batch:
        """Refuse: the data belong to the foreign loop."""
        self._refuse("the examples of its steps; it holds its own data")

    @property
    def train(self) -> TrainSettings:
        """Refuse: the loop has its own."""
        self._refuse("settings of training")

    @property
    def rank(self) -> int:
        """Refuse: no block is ever made here."""
        self._refuse("a rank; it makes no blocks")

    def rule(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """Refuse: the loop has its own."""
        self._refuse("its rule to parts; it has one optimiser")

    def forward(self, batch: Batch, *, hidden: bool = False) -> Outputs:
        """Refuse: what comes out of the model is the loop's own."""
        self._refuse("outputs; it takes its own losses")

    def rehearse(self, batch: Batch, classes: Sequence[int]) -> Tensor:
        """Refuse: nothing is remembered here."""
        self._refuse("remembered examples; it holds its own data")

    def each(self, split: Split, do: Callable[[Batch], Tensor], blocks: tuple[str, ...] | None = None) -> Tensor:
        """Refuse: the data belong to the foreign loop."""
        self._refuse("rows; it holds its own data")

    def examples(self, rows: Tensor, drawn: tuple[str, int] | None = None) -> Batch:
        """Refuse: the data belong to the foreign loop."""
        self._refuse("rows; it holds its own data")

    def steps(self, task: Task) -> int:
        """Refuse: the loop alone knows."""
        self._refuse("the number of its steps")

    def features(self, split: Split, blocks: tuple[str, ...] | None = None, **options: Any) -> Tensor:
        """Refuse: the data belong to the foreign loop."""
        self._refuse("features; it holds its own data")

    def _refuse(self, what: str) -> NoReturn:
        raise UsageError(f"a foreign loop does not give {what}; use rankwise.run for strategies that ask for it")
