"""What learns in a run: the adapted base, the objective, the parts around them, the optimisers; and its state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rankwise.adapters import Branch, Change, Sink, attach, grow, learn_base, using
from rankwise.config import Config, TrainSettings
from rankwise.errors import ConflictError, UsageError
from rankwise.learning import passes, state
from rankwise.learning.processes import Processes
from rankwise.learning.recipe import Method, check_base, check_phases, curriculum_of
from rankwise.learning.rules import keep_moments, optimizers_of, rule_of
from rankwise.learning.step import EMPTY
from rankwise.models import Backbone
from rankwise.objectives import Objective, Outputs
from rankwise.strategies import Copy, Phase, Setting, Strategy, check_together
from rankwise.streams import Batch, Loader, Split, Stream, Task, concat, encoded, in_order, lengths_of

ONE_BLOCK = "adapter"
"""Label of the block of a method that keeps one through the stream."""

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


class Learner:
    """One method on one base and one stream, between its tasks or in the middle of one.

    Everything that a step can change is in `state()`: a learner that takes it back goes on as if nothing had happened.
    """

    def __init__(
        self,
        config: Config,
        method: Method,
        branch: Branch,
        backbone: Backbone,
        stream: Stream,
        objective: Objective,
        strategies: Sequence[Strategy],
        processes: Processes,
    ) -> None:
        """Adapt the base, in place, as `method` and `config` say; refuse parts that do not go together.

        `strategies` come in config order, the method's dynamics last.
        """
        check_phases(method.phases)
        check_base(method, config)
        adapter = method.live == "adapter"
        self.growth = method.grows(config.adapter)
        setting = Setting(method.order == "stream", method.oracle, adapter, method.live != "head", self.growth)
        check_together(strategies, replace(setting, words=objective.writes))
        self.config, self.method, self.backbone, self.stream = config, method, backbone, stream
        self.objective, self.strategies, self.processes = objective, tuple(strategies), processes
        self.model, self.whole = backbone.module, Whole(backbone.module, objective)
        self.seed = config.seed
        self.curriculum = curriculum_of(method, stream)
        self.begun = 0  # curriculum tasks begun
        self.learning = 0  # numbers that learnt in the phase begun last
        self.phase = method.phases[0]
        self.acting: tuple[str, ...] | None = None
        self.rate, self.batch = config.train.lr, EMPTY
        self._refuse_whole_batch(branch)
        self._adapt(branch)
        backbone.module.to(processes.device)
        objective.to(processes.device)
        if processes.sharded and objective.writes:
            raise ConflictError(
                f"train.shard_base and objective.kind = {config.objective.kind!r}: answers differ in length, and "
                "processes would wait for each other's forwards; remove shard_base"
            )
        if processes.sharded:
            processes.shard(backbone.module)
        self.optimizers = optimizers_of(self)

    def _refuse_whole_batch(self, branch: Branch) -> None:
        if branch.whole_batch and (self.config.train.accumulate > 1 or self.processes.world > 1):
            raise ConflictError(
                f"method {self.method.slug!r} has a loss over the whole batch, which is no sum over its parts; set "
                "train.accumulate = 1 and start one process"
            )

    def _adapt(self, branch: Branch) -> None:
        if self.method.live != "adapter":
            if self.config.adapter.growth is not None:
                raise ConflictError(f"adapter.growth and method {self.method.slug!r}, which has no adapter; remove it")
            return
        sites = self.method.places(self.model, self.config.adapter)
        record = {"method": self.method.slug, "seed": self.seed, "fingerprint": self.backbone.fingerprint}
        adapter = attach(self.model, sites, branch, record)
        adapter.strict = True  # a context that changes between a forward and its backward is an error in our own steps

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

    def examples(self, rows: Tensor) -> Batch:
        """Encode training rows given as [n, 2] (task index, position)."""
        parts = [self.tasks[t].train.take(rows[rows[:, 0] == t, 1]) for t in rows[:, 0].unique().tolist()]
        return encoded(concat(parts), self.backbone.encode)

    def loader(self, task: Task) -> Loader:
        """Return the batches of a curriculum task."""
        settings = self.config.train
        lengths = lengths_of(task.train) if settings.bucket else None
        return Loader(task.train, self.backbone.encode, settings.batch_size, self.seed, task.name, lengths)

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

    def change(self, changes: Sequence[Change]) -> None:
        """Change the structure; what learns afterwards has fresh optimisers."""
        if changes:
            self._take_deployed()
            grow(self.model, changes, self.seed)
            for strategy in self.strategies:
                strategy.reshaped(self)

    def _take_deployed(self) -> None:
        """Let go on what has answered, so that it is what will be frozen, folded or cut."""
        copy = self.deployed()
        self.put({} if copy is None else copy.tensors)

    def begin_task(self, task: Task) -> None:
        """Grow what the method grows, open what the objective opens, and tell the parts."""
        if self.method.live == "adapter":
            self._grow(task)
        if self.method.live == "base":
            learn_base(self.model)
        self._enter(task)
        self.objective.begin_task(self, task)
        for strategy in self.strategies:
            strategy.begin_task(self, task)

    def _grow(self, task: Task) -> None:
        if self.growth == "append":
            self.change([Change("freeze"), Change("append", task.name, self.config.adapter.rank)])
        elif self.growth == "keep" and self.begun == 0:
            self.change([Change("append", ONE_BLOCK, self.config.adapter.rank)])

    def _enter(self, task: Task) -> None:
        self.begun = self.curriculum.index(task) + 1
        self.acting = self.blocks_for(task)

    def next_phase(self, task: Task, done: Sequence[Mapping[str, Any]]) -> Phase | None:
        """Return the phase after those whose reports are `done`: the plan of a part, or the method's fixed ones."""
        planner = next((s for s in self.strategies if s.plans), None)
        if planner is not None:
            return planner.plan(self, task, done)
        return self.method.phases[len(done)] if len(done) < len(self.method.phases) else None

    def enter_phase(self, phase: Phase) -> None:
        """Make the phase's changes and let its parameters learn, with fresh optimisers."""
        self.change(phase.changes)
        self.phase = phase
        if not self.live():
            raise UsageError(
                f"method {self.method.slug!r} with this objective has nothing to learn in phase {phase.name!r}; set "
                'train.steps = 0 to score it as it is, or objective.head = "cosine"'
            )
        self.learning = sum(parameter.numel() for parameter in self.live().values())
        for strategy in self.strategies:
            strategy.begin_phase(self, phase)
        self.optimizers = optimizers_of(self)

    def end_phase(self) -> dict[str, Any]:
        """Let the parts end the phase; return their reports as one."""
        report: dict[str, Any] = {"phase": self.phase.name}
        for strategy in self.strategies:
            report.update(strategy.end_phase(self, self.phase))
        return report

    def end_task(self, task: Task) -> None:
        """Let objective and parts look back."""
        if self.growth != "keep":
            self._take_deployed()
        changes = [change for strategy in self.strategies for change in strategy.end_task(self, task)]
        self.change(changes)
        self.objective.end_task(self, task)
        for strategy in self.strategies:
            self.objective.refresh(self, strategy.remembered(), task)
        if changes:
            self.optimizers = optimizers_of(self)

    def after_step(self, step: int) -> None:
        """Make the structure changes that parts ask for after a step."""
        changes = [change for strategy in self.strategies for change in strategy.changes(self, step)]
        if changes:
            before = self.optimizers
            self.change(changes)
            self.optimizers = optimizers_of(self)
            keep_moments(self.optimizers, before)

    def rule(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the run's own rule over parameter groups with a learning rate each."""
        return rule_of(self.config.train, groups)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return (tensors by path, JSON values): everything that steps and task edges change."""
        tensors, blocks = state.collect(self)
        values = {"begun": self.begun, "phase": asdict(self.phase), "learning": self.learning}
        return tensors, {"blocks": blocks, **values}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take back what `state` returned, on a learner made from the same config."""
        state.put_back(self, tensors, values["blocks"])
        self.begun, self.phase = int(values["begun"]), state.phase_of(values["phase"])
        self.learning = int(values["learning"])
        if self.begun:
            self._enter(self.curriculum[self.begun - 1])
        self.optimizers = optimizers_of(self)
        state.put_back_moments(self, tensors)
