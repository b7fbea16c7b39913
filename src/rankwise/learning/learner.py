"""What learns in a run: the adapted base, the objective, the parts around them, the optimisers; and its state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from rankwise.adapters import Branch, Change, attach, grow, learn_base
from rankwise.config import Config
from rankwise.errors import ConflictError, StorageError, UsageError
from rankwise.learning import state
from rankwise.learning.processes import Processes
from rankwise.learning.recipe import Method, check_base, check_phases, curriculum_of
from rankwise.learning.rules import keep_moments, optimizers_of
from rankwise.learning.step import EMPTY
from rankwise.learning.view import View, Whole
from rankwise.models import Backbone
from rankwise.objectives import Objective
from rankwise.provenance import data_of
from rankwise.strategies import Phase, Setting, Strategy, check_together
from rankwise.streams import Stream, Task, refuse_texts

ONE_BLOCK = "adapter"
"""Label of the block of a method that keeps one through the stream."""


class Learner(View):
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
        check_base(method, branch.init, strategies, config.train, config.model.quantize or backbone.quantize)
        refuse_texts(config.train.augment or (), stream)
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
        for part in self.strategies:
            part.fits(self)
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
        record |= {"data": [data_of(self.stream.record)], "parents": []}
        adapter = attach(self.model, sites, branch, record)
        adapter.strict = True  # a context that changes between a forward and its backward is an error in our own steps

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

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return (tensors by path, JSON values): everything that steps and task edges change."""
        tensors, blocks = state.collect(self)
        values = {"begun": self.begun, "phase": asdict(self.phase), "learning": self.learning}
        return tensors, {"blocks": blocks, **values}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take back what `state` returned, on a learner made from the same config; StorageError for anything else."""
        try:
            self._restore(tensors, values)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise StorageError(f"a snapshot that is not of this run: {error!r}; start a new one") from error

    def _restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        state.put_back(self, tensors, values["blocks"])
        self.begun, self.phase = int(values["begun"]), state.phase_of(values["phase"])
        self.learning = int(values["learning"])
        if self.begun:
            self._enter(self.curriculum[self.begun - 1])
        self.optimizers = optimizers_of(self)
        state.put_back_moments(self, tensors)
