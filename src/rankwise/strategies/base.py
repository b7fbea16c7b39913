"""The hooks of a strategy, and the check that strategies go together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from rankwise.errors import ConflictError
from rankwise.streams import Batch, Task

Mode = Literal["add", "set"]


@dataclass(frozen=True)
class Term:
    """One loss of a step: its examples, and what each of them costs.

    The step takes weight * mean over the examples. `losses` gives one value an example, so any cut into micro-batches
    or processes adds up to the same step.
    """

    name: str
    batch: Batch
    losses: Callable[[Batch], Tensor]
    """Examples [n] -> losses [n]; runs one forward."""
    weight: float = 1.0


class Host(Protocol):
    """What a strategy may ask of the learner it is part of."""

    seed: int

    @property
    def seen(self) -> tuple[int, ...]:
        """Class ids of all tasks begun so far."""
        ...

    @property
    def tasks(self) -> Sequence[Task]:
        """The tasks of the stream."""
        ...

    def live(self) -> Mapping[str, nn.Parameter]:
        """Parameters that learn now, by name; valid until the structure changes."""
        ...

    def losses(self, batch: Batch, classes: Sequence[int]) -> Tensor:
        """Run a forward and return the objective's loss for each example, among `classes`."""
        ...

    def examples(self, rows: Tensor) -> Batch:
        """Encode training rows given as [n, 2] (task index, position in its training split)."""
        ...


class Strategy:
    """Hooks of a part that protects the past; each does nothing unless a strategy says otherwise.

    Order in a step: `terms`, then for each term forward and backward; gradients are summed over processes; `shape`
    (may change gradients), clip, the optimiser's rule, `settle` (may change live values), `follow` (own state only).
    """

    name: ClassVar[str]
    """Word in a config."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """What the hooks look at: loss, gradients, live, memory."""
    writes: ClassVar[Mapping[str, Mode]] = {}
    """What they change: "add" composes with other additions, "set" does not compose with anything."""
    needs_sequence: ClassVar[bool] = True
    """True if it makes no sense when all tasks are learnt at once."""
    brings_batches: ClassVar[bool] = False
    """True if its terms have batches of their own, which only our own loop can take."""
    learns_old_classes: ClassVar[bool] = False
    """True if its losses rank classes of earlier tasks, whose head rows must then be live."""

    def begin_task(self, host: Host, task: Task) -> None:
        """Before the first step of a task; the structure is final."""

    def terms(self, host: Host, step: int) -> Sequence[Term]:
        """Losses to add to this step (counted over the whole run)."""
        return ()

    def shape(self, host: Host, step: int) -> None:
        """Change gradients in place, after they are summed and before they are clipped."""

    def settle(self, host: Host, step: int) -> None:
        """Change live values in place, after the optimiser's rule."""

    def follow(self, host: Host, step: int) -> None:
        """Update own state; never live values."""

    def end_task(self, host: Host, task: Task) -> None:
        """After the last step of a task."""

    def remembered(self) -> Tensor:
        """Training rows of earlier tasks that are still at hand: [n, 2] (task index, position)."""
        return torch.empty(0, 2, dtype=torch.long)

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs; all that hooks change must be in it."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""


def check_together(strategies: Sequence[Strategy], *, sequence: bool, oracle: bool = False) -> None:
    """Refuse, before anything is trained, parts that cannot work together; the error names both.

    Args:
        strategies: in config order.
        sequence: False if the method learns all tasks at once.
        oracle: True if each task has parts of its own that alone act on its examples.

    """
    writers: dict[str, tuple[str, Mode]] = {}
    for strategy in strategies:
        if strategy.needs_sequence and not sequence:
            raise ConflictError(
                f"strategy {strategy.name!r} and order = 'at-once' (joint training): every step sees every task, so "
                f"there is no past to protect; remove {strategy.name!r} or choose a method that learns task by task"
            )
        if strategy.brings_batches and oracle:
            raise ConflictError(
                f"strategy {strategy.name!r} and oracle = true: each task has a block of its own, so earlier examples "
                f"have nothing to teach the current one; remove {strategy.name!r} or choose a method with shared blocks"
            )
        for resource, mode in strategy.writes.items():
            name, before = writers.get(resource, (strategy.name, "add"))
            if resource in writers and "set" in (mode, before):
                raise ConflictError(f"strategies {name!r} and {strategy.name!r} both set {resource}; keep one of them")
            writers[resource] = (strategy.name, mode)
