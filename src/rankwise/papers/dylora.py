"""DyLoRA: each step trains one prefix of the ranks, so that every prefix is an adapter by itself (arXiv 2210.07558).

    step:  b ~ uniform {smallest .. r}, the same at all sites
    y = W x + (s r / b) B[:, :b] A[:b] x;    only the first b ranks (or the b-th alone) may move
    end:   keep the first `keep` ranks, or the smallest prefix whose validation loss is within `tolerance`

| symbol | shape | meaning |
|---|---|---|
| b | number | prefix that acts in this step; without a draw all r ranks act |
| A[:b], B[:, :b] | [b, in], [out, b] | its ranks |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from rankwise.adapters import Change, adapter_of, nested
from rankwise.config import NotNegative
from rankwise.errors import ConflictError
from rankwise.learning.recipe import Method
from rankwise.seeds import derive
from rankwise.strategies import Host, Strategy, validation_loss
from rankwise.streams import Batch, Task


@dataclass(frozen=True)
class Settings(nested.Drawing):
    """`[adapter.dynamics] kind = "dylora"`."""

    updates: Literal["prefix", "newest"] = "prefix"
    """What a step moves: all ranks of the prefix, or its last one alone ("DyLoRA frozen"), which leaves smaller
    prefixes as they are."""
    strict: bool = True
    """Put ranks outside of that back after the optimiser, whose momentum and weight decay move them too. The released
    code does not."""
    keep: Annotated[int, Field(ge=0)] = 0
    """Ranks that stay after the last task; 0: all of them."""
    tolerance: NotNegative | None = None
    """After the last task, keep the smallest prefix whose mean loss on its validation rows is at most (1 + tolerance)
    times that of the best; without such rows all of them stay."""


class NestedRanks(Strategy):
    """Draws the prefix of each step, the same at all sites, in all its micro-batches and processes."""

    name = "dylora"
    Settings = Settings
    reads = frozenset({"gradients", "live"})
    writes = {"gradients": "set", "live": "set"}
    needs_sequence = False
    needs_adapter = True

    def __init__(self, settings: Settings | None = None, seed: int = 0) -> None:
        """Start without a step under way."""
        super().__init__(settings or Settings(), seed)
        self.held: list[tuple[nested.Part, Tensor]] = []  # what the step under way must not move
        self.tried = 0  # prefix under which validation rows are looked at; 0: all ranks

    def fits(self, host: Host) -> None:
        """Refuse a branch that knows no prefixes."""
        if not isinstance(adapter_of(host.model).branch.gate, nested.Prefix):
            raise ConflictError(
                f"adapter.dynamics {self.name!r} draws prefixes, which only the method of that name has; choose it"
            )

    def drawn(self, ranks: int, step: int) -> int:
        """Return b of `step`, counted from 1, for blocks of up to `ranks`; a function of the seed and the step."""
        return self.settings.length(derive(self.seed, nested.PREFIX, step) / 2**63, ranks)

    def context(self, host: Host, batch: Batch, step: int | None) -> Mapping[str, Any]:
        """Say which prefix acts: the step's, in training."""
        b = self.tried if step is None else self.drawn(nested.longest(host.model), step)
        return {"draws": {nested.PREFIX: torch.tensor(b)}} if b else {}

    def shape(self, host: Host, step: int) -> None:
        """Take the gradients of ranks that are not to move, and note their values."""
        b, newest = self.drawn(nested.longest(host.model), step), self.settings.updates == "newest"
        self.held = nested.hold(nested.outside(host.model, b, newest=newest))

    def settle(self, host: Host, step: int) -> None:
        """Put the values of those ranks back."""
        if self.settings.strict:
            nested.put_back(self.held)

    def end_task(self, host: Host, task: Task) -> Sequence[Change]:
        """Cut the block to the chosen prefix, after the last task."""
        b = self._chosen(host, task) if task is host.tasks[-1] else 0
        return nested.shortened(host.model, b) if b else ()

    def _chosen(self, host: Host, task: Task) -> int:
        if self.settings.tolerance is None or task.validation is None:
            return self.settings.keep
        losses: dict[int, float] = {}
        for self.tried in range(1, nested.longest(host.model) + 1):
            losses[self.tried] = validation_loss(host, task.validation, task.classes)
        self.tried = 0
        most = min(losses.values()) * (1 + self.settings.tolerance)
        return next(b for b, loss in losses.items() if loss <= most)


METHOD = Method(
    slug="dylora",
    title="DyLoRA: every prefix of the ranks is an adapter",
    paper="arXiv 2210.07558 (EACL 2023)",
    axis="gate: a prefix, drawn anew in each step",
    gate=nested.Prefix,
    dynamics=NestedRanks,
    scaling=nested.alpha,
    parameters="rank * (in + out) a site",
    peft="converted",
)
