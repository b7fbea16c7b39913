"""Orthogonality of a new block to the old ones: the penalty of O-LoRA (arXiv 2310.14152)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from rankwise.adapters import banks_of
from rankwise.config import NotNegative
from rankwise.errors import ConflictError
from rankwise.strategies.base import Setting, Strategy
from rankwise.strategies.host import Host, Term
from rankwise.streams import Task

Course = Annotated[tuple[NotNegative, ...], Field(min_length=1)]


@dataclass(frozen=True)
class OrthogonalSettings:
    """`[[strategy]] kind = "orthogonal"`: keep the keys of a new block orthogonal to those of frozen ones."""

    lambda1: Course = (0.5,)
    """Weight of the sum of |A_old A^T| over all sites, one number a task; the last holds for all later tasks. Raise it
    if the first tasks are forgotten. Paper's run of 15 tasks: 0.5 up to the 9th, then 5."""
    lambda2: Course = (0.0,)
    """Weight of the sum of the norms of the new A and B, in the same form."""


class Orthogonal(Strategy):
    """Adds lambda1 * sum |A_old A^T| + lambda2 * sum ||A|| + ||B|| to each step; without old blocks the first is zero.

    Only A is constrained: the rows that read the input. As in the authors' code the first sum runs over absolute
    values; their text squares them.
    """

    name = "orthogonal"
    Settings = OrthogonalSettings
    reads = frozenset({"live"})
    writes = {"loss": "add"}
    needs_adapter = True

    def misfit(self, setting: Setting) -> str | None:
        """Refuse an adapter that keeps no old blocks."""
        if setting.growth == "append":
            return None
        return f"blocks that come as {setting.growth!r}: no old one stays beside the new; set adapter.growth = 'append'"

    def begin_task(self, host: Host, task: Task) -> None:
        """Refuse, from the second task on, an adapter without old blocks, or whose rows A do not learn."""
        banks = [bank for _, bank in banks_of(host.model).values()]
        if task.index and not any("A" in bank.frozen.tensors() and "A" in bank.live for bank in banks):
            raise ConflictError(
                "strategy 'orthogonal' needs frozen blocks with rows A beside a new one whose rows learn, and this "
                "adapter has none; choose a method that keeps blocks of two factors"
            )

    def terms(self, host: Host, step: int) -> Sequence[Term]:
        """Return the penalties of this task that weigh anything."""
        now = host.task.index
        weights = [course[min(now, len(course) - 1)] for course in (self.settings.lambda1, self.settings.lambda2)]
        model = host.model
        found = [
            Term("orthogonal", None, lambda _: overlap(model), weights[0]),
            Term("size", None, lambda _: size(model), weights[1]),
        ]
        return [term for term in found if term.weight]


def overlap(model: nn.Module) -> Tensor:
    """Return the sum over sites of |A_old A^T|: a scalar."""
    banks = [bank for _, bank in banks_of(model).values() if "A" in bank.live]
    pairs = [(old["A"], bank.live["A"]) for bank in banks if "A" in (old := bank.frozen.tensors())]
    return torch.stack([(old @ new.T).abs().sum() for old, new in pairs]).sum() if pairs else torch.zeros(())


def size(model: nn.Module) -> Tensor:
    """Return the sum of the norms of the live A and B: a scalar."""
    live = [bank.live[name] for _, bank in banks_of(model).values() for name in ("A", "B") if name in bank.live]
    return torch.stack([tensor.norm() for tensor in live]).sum() if live else torch.zeros(())
