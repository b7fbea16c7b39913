"""Strategies on a training loop that is not ours: hooks before and after the user's own optimiser step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.config import parse_record
from rankwise.errors import ConflictError, UsageError, nearest
from rankwise.strategies import STRATEGIES, Setting, Strategy, check_together
from rankwise.streams import Batch, Task


@dataclass
class Hooks:
    """The strategies at work on a foreign loop; counts its steps."""

    model: nn.Module
    strategies: Sequence[Strategy]
    seed: int
    step: int = 0

    @property
    def seen(self) -> tuple[int, ...]:
        """No classes are known on a foreign loop."""
        return ()

    @property
    def tasks(self) -> Sequence[Task]:
        """No tasks are known on a foreign loop."""
        return ()

    def live(self) -> Mapping[str, nn.Parameter]:
        """Parameters of the model that learn."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def losses(self, batch: Batch, classes: Sequence[int]) -> Tensor:
        """Refuse: the loss belongs to the foreign loop."""
        raise UsageError("a foreign loop takes its own losses; use rankwise.run for strategies that bring batches")

    def examples(self, rows: Tensor) -> Batch:
        """Refuse: the data belong to the foreign loop."""
        raise UsageError("a foreign loop holds its own data; use rankwise.run for strategies that bring batches")

    def before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Let strategies change gradients; the loop's own clipping, if any, was before."""
        for strategy in self.strategies:
            strategy.shape(self, self.step)

    def after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Let strategies put values right and look at the result."""
        for strategy in self.strategies:
            strategy.settle(self, self.step)
        for strategy in self.strategies:
            strategy.follow(self, self.step)
        self.step += 1


@contextmanager
def learning(
    model: nn.Module, *strategies: str, optimizer: torch.optim.Optimizer, seed: int = 0, **settings: Mapping[str, Any]
) -> Iterator[Hooks]:
    """Put strategies on a training loop of your own for the length of a `with` block.

    Args:
        model: any module, adapted or not.
        strategies: their names, in order.
        optimizer: the loop's optimiser; its `step` is where the hooks act.
        seed: of the strategies' draws.
        settings: for each strategy name, its settings as in a config.

    Raises:
        ConflictError: a strategy needs what a foreign loop cannot give (batches of its own); use `rankwise.run`.

    """
    if unused := sorted(set(settings) - set(strategies)):
        known = nearest(unused[0], strategies)
        raise UsageError(f"settings for {unused[0]!r}, which is not among the strategies; {known}")
    parts = [_strategy(name, settings.get(name, {}), seed) for name in strategies]
    for part in parts:
        if part.brings_batches:
            raise ConflictError(
                f"strategy {part.name!r} brings batches of its own, which a foreign loop cannot take; use rankwise.run"
            )
    check_together(parts, Setting())
    hooks = Hooks(model, parts, seed)
    handles = [optimizer.register_step_pre_hook(hooks.before), optimizer.register_step_post_hook(hooks.after)]
    try:
        yield hooks
    finally:
        for handle in handles:
            handle.remove()


def _strategy(name: str, settings: Mapping[str, Any], seed: int) -> Strategy:
    if name not in STRATEGIES:
        raise UsageError(f"strategy {name!r} does not exist; {nearest(name, STRATEGIES)}")
    part = STRATEGIES[name]
    return part(parse_record(part.Settings, settings, f"strategy {name!r}"), seed)
