"""Strategies on a training loop that is not ours: hooks before and after the user's own optimiser step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rankwise.adapters import is_adapted, unwrapped
from rankwise.adapters.store import under as below
from rankwise.config import parse_record
from rankwise.errors import ConflictError, UsageError, nearest
from rankwise.learning.step import EMPTY
from rankwise.learning.withheld import Withheld
from rankwise.strategies import STRATEGIES, Copy, Phase, Setting, Strategy, check_together
from rankwise.streams import Batch, Split, Task

T = TypeVar("T")

Losses = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
"""(model, a batch of yours) -> the loss of each example [n], with a graph."""

BEYOND: Mapping[str, str] = {
    "optimizer": "takes over the rule of the optimiser",
    "context": "sets what each forward reads",
    "acting": "chooses the blocks that act",
    "own": "changes the losses of new examples",
    "rehearsed": "changes the losses of remembered examples",
    "plan": "plans the phases of a task",
    "changes": "changes the structure between steps",
    "enough": "ends phases before their last step",
}
"""Hooks that nobody calls on a foreign loop -> what a strategy that has one does."""


class Hooks(Withheld):
    """The strategies at work on a foreign loop: what they may ask for, and the moments at which they act.

    The loop gives parameters, gradients and, at the end of a task, its batches; what it does not give is `Withheld`.
    """

    def __init__(
        self, model: nn.Module, strategies: Sequence[Strategy], seed: int, losses: Losses | None = None
    ) -> None:
        """Take the parts as they are; `learning` checks that they fit."""
        self.model, self.strategies, self.seed = model, tuple(strategies), seed
        self.step = 0
        self.tasks: list[Task] = []
        self.rate = 0.0
        self._losses = losses
        self._batches: Iterable[Mapping[str, Tensor]] = ()
        self._open = False

    @property
    def task(self) -> Task:
        """The task begun last; its rows are stand-ins, since the loop holds the data."""
        return self.tasks[-1]

    @property
    def phase(self) -> Phase:
        """The one phase of a task."""
        return Phase()

    def live(self) -> dict[str, nn.Parameter]:
        """Parameters of the model that learn, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def losses(self, batch: Batch, classes: Sequence[int]) -> Tensor:
        """Return the loss of each example [n] of one of the loop's batches, by the function it has given for that."""
        if self._losses is None:
            raise UsageError(
                "a foreign loop takes its own losses; give losses = (model, batch) -> loss of each example [n], or use "
                "rankwise.run"
            )
        return self._losses(self.model, batch.inputs)

    @contextmanager
    def evaluating(self, batch: Batch) -> Iterator[None]:
        """Let forwards in a block be those of evaluation; gradients flow."""
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)

    def classes(self, task: Task) -> tuple[int, ...]:
        """Return the stand-in's one class: what the loop's loss ranks is its own affair."""
        return task.classes

    def add_up(self, tensors: list[Tensor]) -> None:
        """Refuse several processes: each would see its own share."""
        _refuse_processes()

    def batches(self, task: Task) -> Iterable[Batch]:
        """Return the batches that the loop gave for the task it ends."""
        if not self._batches:
            raise UsageError("a foreign loop holds its own data; give the task's batches: end_task(batches)")
        _refuse_processes()
        device = next(iter(self.model.parameters())).device
        return (as_batch(batch).to(device) for batch in self._batches)

    def snapshot(self) -> Copy:
        """Return a copy of everything that learns, as it is now."""
        return Copy({name: p.detach().clone() for name, p in self.live().items()}, None)

    @torch.no_grad()
    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Write values into the parameters that learn, by name, in place."""
        live = self.live()
        for name, tensor in tensors.items():
            live[name].copy_(tensor)

    @torch.no_grad()
    def under(self, copy: Copy, do: Callable[[], T]) -> T:
        """Return do(), with every forward in it reading `copy` in place of the live values."""
        before = self.snapshot().tensors
        self.put(copy.tensors)
        try:
            return do()
        finally:
            self.put(before)

    def deployed(self) -> Copy | None:
        """Return the values that are to answer: an average, where a strategy keeps one; None: the live ones."""
        return next((copy for part in self.strategies if (copy := part.deployed()) is not None), None)

    @contextmanager
    def showing_deployed(self) -> Iterator[nn.Module]:
        """Hold those values in the model's parameters until the block ends: to score or save what answers."""
        copy = self.deployed()
        before = self.snapshot().tensors if copy is not None else {}
        self.put(copy.tensors if copy is not None else {})
        try:
            yield self.model
        finally:
            self.put(before)

    def begin_task(self, name: str = "") -> None:
        """Say that a task begins; the first one begins by itself with the block."""
        if self._open:
            raise UsageError(f"task {self.task.name!r} has not ended; call end_task() first")
        self.tasks.append(_stand_in(name or str(len(self.tasks) + 1), len(self.tasks), 1))
        self._open = True
        for part in self.strategies:
            part.begin_task(self, self.task)
        for part in self.strategies:
            part.begin_phase(self, Phase())

    def end_task(self, batches: Iterable[Mapping[str, Tensor]] = (), rows: int | None = None) -> None:
        """Say that a task has ended.

        Args:
            batches: its training batches, for strategies that look back at the data: mappings of tensors, each with
                one row an example; read anew by each strategy that asks.
            rows: how many examples they hold; None: they are counted, in a pass of its own.

        """
        if not self._open:
            raise UsageError("no task has begun; call begin_task() first")
        if isinstance(batches, Iterator):
            raise UsageError("end_task: batches are read more than once; give a list or a DataLoader, not an iterator")
        self._batches, self._open = batches, False
        counted = rows if rows is not None else sum(len(as_batch(batch)) for batch in batches)
        self.tasks[-1] = _stand_in(self.task.name, self.task.index, max(counted, 1))
        for part in self.strategies:
            part.end_phase(self, Phase())
        for part in self.strategies:
            if part.end_task(self, self.task):
                self._refuse(f"structure to change, which strategy {part.name!r} does at the end of a task")
        self._batches = ()

    def before(self, optimizer: torch.optim.Optimizer, args: Any = (), kwargs: Any = None) -> None:
        """Add the gradients of the parts' own losses and let them change the sum; the loop's clipping was before."""
        if not self._open:
            self.begin_task()
        self.rate = float(optimizer.param_groups[0]["lr"])
        self._add_terms()
        for part in self.strategies:
            part.shape(self, self.step)

    def after(self, optimizer: torch.optim.Optimizer, args: Any = (), kwargs: Any = None) -> None:
        """Let strategies put values right and look at the result."""
        for part in self.strategies:
            part.settle(self, self.step)
        for part in self.strategies:
            part.follow(self, self.step)
        self.step += 1

    def _add_terms(self) -> None:
        """Add the gradient of each loss of the parameters alone; the loop's backward has brought those of its own."""
        live = self.live()
        for part in self.strategies:
            for term in part.terms(self, self.step):
                if term.batch is not None:
                    raise _brings_batches(part)
                with torch.enable_grad():
                    loss = term.weight * term.losses(EMPTY)
                if loss.requires_grad:
                    gradients = torch.autograd.grad(loss, list(live.values()), allow_unused=True)
                    _add(list(live.values()), gradients)

    def state(self) -> dict[str, Tensor]:
        """Return everything the strategies and the count of steps and tasks need to go on: for your checkpoint."""
        counts = {
            "steps": torch.tensor(self.step),
            "tasks": torch.tensor(len(self.tasks)),
            "open": torch.tensor(self._open),
        }
        parts = {f"{part.name}/{k}": v for part in self.strategies for k, v in part.state().items()}
        return {**counts, **parts}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned, before the first step."""
        self.step, self._open = int(state["steps"]), bool(state["open"])
        self.tasks = [_stand_in(str(i + 1), i, 1) for i in range(int(state["tasks"]))]
        for part in self.strategies:
            part.restore(below(state, f"{part.name}/"))


def as_batch(batch: Mapping[str, Tensor]) -> Batch:
    """Take a batch of the loop for one of ours: all tensors are inputs, each with one row an example."""
    tensors = dict(batch) if isinstance(batch, Mapping) else {}
    sizes = {len(tensor) if isinstance(tensor, Tensor) and tensor.ndim else 0 for tensor in tensors.values()}
    if len(sizes) != 1 or not sizes.isdisjoint({0}):
        raise UsageError(
            f"a batch of a foreign loop is a mapping of tensors with one row an example, not {type(batch).__name__} "
            f"with lengths {sorted(sizes)}; give ({{'x': x, 'y': y}} for x, y in loader)"
        )
    count = sizes.pop()
    return Batch(tensors, torch.zeros(count, dtype=torch.long), torch.arange(count))


def build(
    model: nn.Module,
    strategies: Sequence[str],
    seed: int,
    losses: Losses | None,
    settings: Mapping[str, Mapping[str, Any]],
) -> Hooks:
    """Make the hooks of the named strategies, refusing by name what a foreign loop cannot give them."""
    if unused := sorted(set(settings) - set(strategies)):
        known = nearest(unused[0], strategies)
        raise UsageError(f"settings for {unused[0]!r}, which is not among the strategies; {known}")
    parts, model = [_strategy(name, settings.get(name, {}), seed) for name in strategies], unwrapped(model)
    for part in parts:
        _refuse_beyond(part)
    check_together(parts, Setting(adapter=is_adapted(model)))
    return Hooks(model, parts, seed, losses)


@contextmanager
def learning(
    model: nn.Module,
    *strategies: str,
    optimizer: torch.optim.Optimizer,
    seed: int = 0,
    losses: Losses | None = None,
    **settings: Mapping[str, Any],
) -> Iterator[Hooks]:
    """Put strategies on a training loop of your own for the length of a `with` block.

    The strategies act when your optimiser steps: losses of the parameters alone are added to the gradients, gradients
    are shaped, values are put right. Whatever you do to gradients before the step (clipping) was before.

    Args:
        model: any module: adapted here, adapted by PEFT, or plain.
        strategies: their names, in order.
        optimizer: the loop's optimiser; its `step` is where the hooks act.
        seed: of the strategies' draws.
        losses: (model, a batch of yours) -> the loss of each example, for strategies that look back at the data when a
            task ends; see `Hooks.end_task`.
        settings: for each strategy name, its settings as in a config.

    Raises:
        ConflictError: a strategy needs what a foreign loop cannot give (batches of its own); use `rankwise.run`.

    """
    hooks = build(model, strategies, seed, losses, settings)
    hooks.begin_task()
    handles = [optimizer.register_step_pre_hook(hooks.before), optimizer.register_step_post_hook(hooks.after)]
    try:
        yield hooks
    finally:
        for handle in handles:
            handle.remove()


def _strategy(name: str, settings: Mapping[str, Any], seed: int) -> Strategy:
    if name not in STRATEGIES:
        known = nearest(name, STRATEGIES)
        raise UsageError(
            f"strategy {name!r} does not exist; {known}; the dynamics of a method act in rankwise.run only"
        )
    part = STRATEGIES[name]
    return part(parse_record(part.Settings, settings, f"strategy {name!r}"), seed)


def _refuse_beyond(part: Strategy) -> None:
    """Refuse, before anything is trained, what would need more than the loop gives."""
    if part.brings_batches:
        raise _brings_batches(part)
    reason = part.misfit(Setting(words=True))
    if reason is not None and part.misfit(Setting()) is None:
        raise ConflictError(f"strategy {part.name!r}: a foreign loop knows no classes, as where tasks are {reason}")
    for hook, what in BEYOND.items():
        if getattr(type(part), hook) is not getattr(Strategy, hook):
            raise ConflictError(
                f"strategy {part.name!r} {what}, which a foreign loop does not let it; use rankwise.run"
            )


def _refuse_processes() -> None:
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise ConflictError("strategies that look back at the data, and several processes: each sees its own share")


def _brings_batches(part: Strategy) -> ConflictError:
    return ConflictError(
        f"strategy {part.name!r} brings batches of its own, which a foreign loop cannot take; use rankwise.run"
    )


def _stand_in(name: str, index: int, rows: int) -> Task:
    """Return a task of as many rows as the loop's, one class and no data."""
    split = Split(range(rows), torch.zeros(rows, dtype=torch.long), torch.arange(rows))
    return Task(name, index, (0,), split, None, split)


@torch.no_grad()
def _add(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
