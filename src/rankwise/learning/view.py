"""What a learner can be asked without changing it: its tasks, and forwards with the live values or a copy of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rankwise.adapters import Sink, using
from rankwise.config import Config, TrainSettings
from rankwise.learning import passes
from rankwise.learning.processes import Processes
from rankwise.learning.recipe import Method
from rankwise.learning.rules import rule_of
from rankwise.models import Backbone
from rankwise.objectives import Objective, Outputs
from rankwise.strategies import Copy, Phase, Strategy
from rankwise.streams import Batch, Loader, Split, Stream, Task, concat, encoded, in_order, lengths_of, views

T = TypeVar("T")


class Whole(nn.Module):
    """Base and head as one module, so that a copy of all that learns can be laid over both for a forward."""

    def __init__(self, base: nn.Module, head: nn.Module) -> None:
        """Hold both under the names that `Learner.live` gives them."""
        super().__init__()
        self.base, self.head = base, head

    def forward(self, do: Callable[[], T]) -> T:
        """Return do()."""
        return do()


class View:
    """A learner as its parts, its objective and its evaluation see it; `Learner` is the one there is."""

    config: Config
    method: Method
    backbone: Backbone
    stream: Stream
    objective: Objective
    strategies: tuple[Strategy, ...]
    processes: Processes
    seed: int
    model: nn.Module
    """The base, with its adapter on."""
    whole: Whole
    curriculum: tuple[Task, ...]
    begun: int
    """Curriculum tasks begun."""
    phase: Phase
    """The phase under way."""
    acting: tuple[str, ...] | None
    """The blocks that act on the task being learnt; None: all."""
    rate: float
    """Learning rate of adapter or base in the step under way."""
    batch: Batch
    """The new examples of the step under way."""

    @property
    def tasks(self) -> Sequence[Task]:
        """Tasks of the stream, in order."""
        return self.stream.tasks

    @property
    def task(self) -> Task:
        """The curriculum task begun last."""
        return self.curriculum[max(self.begun - 1, 0)]

    @property
    def seen(self) -> tuple[int, ...]:
        """Class ids of the tasks begun so far."""
        return tuple(sorted({c for task in self.curriculum[: self.begun] for c in task.classes}))

    @property
    def train(self) -> TrainSettings:
        """The settings of the loop."""
        return self.config.train

    @property
    def rank(self) -> int:
        """Ranks of a new block, as configured."""
        return self.config.adapter.rank

    @property
    def oracle(self) -> bool:
        """Whether the task of a test example is known."""
        return self.method.oracle

    @property
    def old_classes(self) -> bool:
        """Whether a strategy learns classes of earlier tasks."""
        return any(strategy.learns_old_classes for strategy in self.strategies)

    @property
    def rehearses(self) -> bool:
        """Whether a strategy brings examples of earlier tasks into a step."""
        return any(strategy.brings_batches for strategy in self.strategies)

    def rule(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the run's own rule over parameter groups with a learning rate each."""
        return rule_of(self.config.train, groups)

    def live(self) -> dict[str, nn.Parameter]:
        """Parameters that learn in the current phase, by name."""
        named = {name: p for name, p in self.whole.named_parameters() if p.requires_grad}
        part = self.phase.live
        if isinstance(part, tuple):
            return {name: p for name, p in named.items() if any(fnmatchcase(name, glob) for glob in part)}
        left_out = {"all": "", "adapter": "head.", "head": "base."}[part]
        return {name: p for name, p in named.items() if not left_out or not name.startswith(left_out)}

    def forward(self, batch: Batch, *, hidden: bool = False) -> Outputs:
        """Run a forward on a batch; with `hidden`, keep the states between the layers."""
        with self.processes.autocast():
            return self.objective.run(self.backbone, batch.inputs, hidden=hidden)

    def losses(self, batch: Batch, classes: Sequence[int]) -> Tensor:
        """Run a forward and return each example's loss among `classes`: [n]."""
        return self.objective.losses(self.forward(batch), batch, classes)

    def own(self, batch: Batch, classes: Sequence[int]) -> Tensor:
        """Return the losses [n] of new examples, with what the parts make of them."""
        outputs = self.forward(batch)
        losses = self.objective.losses(outputs, batch, classes)
        for strategy in self.strategies:
            losses = strategy.own(self, batch, outputs, losses)
        return losses

    def rehearse(self, batch: Batch, classes: Sequence[int]) -> Tensor:
        """Return the losses [n] of remembered examples, with what the parts make of them."""
        outputs = self.forward(batch, hidden=any("hidden" in strategy.reads for strategy in self.strategies))
        losses = self.objective.losses(outputs, batch, classes)
        for strategy in self.strategies:
            losses = strategy.rehearsed(self, batch, outputs, losses)
        return losses

    def classes(self, task: Task) -> tuple[int, ...]:
        """Return the classes that the loss on a new batch of `task` ranks."""
        return self.objective.loss_classes(self, task)

    @contextmanager
    def evaluating(self, batch: Batch) -> Iterator[None]:
        """Let forwards on `batch` in a block be those of evaluation; gradients flow."""
        training = self.model.training
        self.model.eval()
        with using(self.model, blocks=self.acting, **self.context(batch, None)):
            yield
        self.model.train(training)

    def examples(self, rows: Tensor, drawn: tuple[str, int] | None = None) -> Batch:
        """Encode training rows given as [n, 2] (task index, position), task by task; a row may come more than once.

        `drawn`, the name of a draw and its step, lets train.augment give each row a view; None: as they are stored.
        """
        rows = rows[rows[:, 0].argsort(stable=True)]
        distinct, back = rows.unique(dim=0, return_inverse=True)
        parts = [self._stored(t, distinct[distinct[:, 0] == t, 1], drawn) for t in distinct[:, 0].unique().tolist()]
        return encoded(concat(parts), self.backbone.encode).rows(back)

    def _stored(self, index: int, places: Tensor, drawn: tuple[str, int] | None) -> Split:
        task = self.tasks[index]
        rows = task.train.take(places)
        return rows if drawn is None else views(rows, self.train.augment or (), self.seed, *drawn, task.name)

    def loader(self, task: Task) -> Loader:
        """Return the batches of a curriculum task."""
        settings = self.config.train
        lengths = lengths_of(task.train) if settings.bucket else None
        augment = settings.augment or ()
        return Loader(task.train, self.backbone.encode, settings.batch_size, self.seed, task.name, lengths, augment)

    def batches(self, task: Task) -> Iterator[Batch]:
        """Yield the training rows of a task in order, on the device, in batches of the size of training."""
        for batch in in_order(task.train, self.backbone.encode, self.config.train.batch_size):
            yield batch.to(self.processes.device)

    def steps(self, task: Task) -> int:
        """Return how many steps a curriculum task takes; tasks learnt at once take those of all of them together."""
        settings = self.config.train
        if settings.steps is None:
            return settings.epochs * self.loader(task).steps_per_epoch
        return settings.steps * (len(self.tasks) if self.method.order == "at-once" else 1)

    def context(self, batch: Batch, step: int | None) -> dict[str, Any]:
        """Return what a forward on `batch` may know besides its input; `step` is None in evaluation."""
        tokens = batch.inputs.get("attention_mask")
        found: dict[str, Any] = {"tokens": None if tokens is None else tokens.bool()}
        for strategy in self.strategies:
            found.update(strategy.context(self, batch, step))
        return found

    def snapshot(self) -> Copy:
        """Return a copy of everything that learns, as it is now."""
        named = {name: p for name, p in self.whole.named_parameters() if p.requires_grad}
        return Copy({name: p.detach().clone() for name, p in named.items()}, self.acting)

    @torch.no_grad()
    def under(self, copy: Copy, do: Callable[[], T]) -> T:
        """Return do(), with every forward in it reading `copy` in place of the live values."""
        with using(self.model, blocks=copy.blocks):
            return torch.func.functional_call(self.whole, dict(copy.tensors), (do,))

    def deployed(self) -> Copy | None:
        """Return the values that answer in evaluation; None: the live ones."""
        return next((copy for s in self.strategies if (copy := s.deployed()) is not None), None)

    @torch.no_grad()
    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Write values into parameters that learn, by name, in place."""
        named = dict(self.whole.named_parameters())
        for name, tensor in tensors.items():
            named[name].copy_(tensor)

    @contextmanager
    def showing_deployed(self) -> Iterator[None]:
        """Hold the deployed values in the parameters themselves until the block ends: to save what answers."""
        copy = self.deployed()
        before = self.snapshot().tensors if copy is not None else {}
        self.put(copy.tensors if copy is not None else {})
        try:
            yield
        finally:
            self.put(before)

    def features(self, split: Split, blocks: tuple[str, ...] | None = None, *, sink: Sink | None = None) -> Tensor:
        """Return the features [N, d] of every row, in evaluation mode, computed by all processes together."""
        return self.each(split, lambda batch: self.backbone.features(batch.inputs).float(), blocks, sink=sink)

    @torch.no_grad()
    def each(
        self,
        split: Split,
        do: Callable[[Batch], Tensor],
        blocks: tuple[str, ...] | None = None,
        *,
        sink: Sink | None = None,
    ) -> Tensor:
        """Return do(batch) for all rows of `split` [N, ...], in evaluation mode, by all processes together.

        Forwards in it see the deployed values and the given blocks.
        """
        copy, whole = self.deployed(), partial(passes.each, self, split, do, blocks, sink)
        return whole() if copy is None else self.under(Copy(copy.tensors, None), whole)

    def add_up(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over processes."""
        self.processes.add_up(tensors)

    def blocks_for(self, task: Task) -> tuple[str, ...] | None:
        """Return the blocks that act on a task's test examples: all, or its own where the method is told the task."""
        if self.method.oracle:
            return (task.name,)
        return next((blocks for s in self.strategies if (blocks := s.acting(self, task)) is not None), None)

    def members(self, task: Task) -> Sequence[Task]:
        """Return the stream's tasks in a curriculum task."""
        return self.tasks if self.method.order == "at-once" else (task,)
