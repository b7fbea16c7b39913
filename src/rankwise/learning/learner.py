"""What learns in a run: the adapted base, the objective, the strategies, the optimiser; and its state as one tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.adapters import Bank, Change, Gate, attach, banks_of, grow, learn_base, pick_sites, using
from rankwise.config import Config
from rankwise.errors import ConflictError, UsageError
from rankwise.learning.processes import Processes
from rankwise.learning.recipe import Method, Phase, check_phases
from rankwise.models import Backbone
from rankwise.objectives import Classify
from rankwise.strategies import Strategy, check_together
from rankwise.streams import Batch, Loader, Split, Stream, Task, concat, encoded, in_order

ONE_BLOCK = "adapter"
"""Label of the block of a method that keeps one through the stream."""


class Learner:
    """One method on one base and one stream, between its tasks or in the middle of one.

    Everything that a step can change is in `state()`: a learner that takes it back goes on as if nothing had happened.
    """

    def __init__(
        self,
        config: Config,
        method: Method,
        gate: Gate,
        backbone: Backbone,
        stream: Stream,
        objective: Classify,
        strategies: Sequence[Strategy],
        processes: Processes,
    ) -> None:
        """Adapt the base, in place, as `method` and `config` say; refuse parts that do not go together."""
        check_phases(method.phases)
        check_together(strategies, sequence=method.order == "stream", oracle=method.oracle)
        self.config, self.method, self.backbone, self.stream = config, method, backbone, stream
        self.objective, self.strategies, self.processes = objective, tuple(strategies), processes
        self.seed = config.seed
        self.curriculum = _curriculum(stream, method)
        self.begun = 0  # curriculum tasks begun
        self.phase = method.phases[0]
        self.acting: tuple[str, ...] | None = None
        self.growth = method.grows(config.adapter)
        self._adapt(gate)
        backbone.module.to(processes.device)
        objective.to(processes.device)
        if config.train.shard_base and method.live == "base":
            raise ConflictError(f"train.shard_base and method {method.slug!r}, whose base learns; remove shard_base")
        if processes.sharded:
            processes.shard(backbone.module)
        self.optimizer = self._optimizer()

    def _adapt(self, gate: Gate) -> None:
        if self.method.live != "adapter":
            if self.config.adapter.growth is not None:
                raise ConflictError(f"adapter.growth and method {self.method.slug!r}, which has no adapter; remove it")
            return
        settings = self.config.adapter
        sites = pick_sites(self.backbone.module, settings.sites, layers=settings.layers, exclude=settings.exclude)
        record = {"method": self.method.slug, "seed": self.seed}
        adapter = attach(self.backbone.module, sites, self.method.branch(settings, gate), record)
        adapter.strict = True  # a context that changes between a forward and its backward is an error in our own steps
        if self.growth == "keep":
            grow(self.backbone.module, [Change("append", ONE_BLOCK, settings.rank)], self.seed)

    @property
    def tasks(self) -> Sequence[Task]:
        """Tasks of the stream, in order."""
        return self.stream.tasks

    @property
    def seen(self) -> tuple[int, ...]:
        """Class ids of the tasks begun so far."""
        return tuple(sorted({c for task in self.curriculum[: self.begun] for c in task.classes}))

    def live(self) -> dict[str, nn.Parameter]:
        """Parameters that learn in the current phase, by name."""
        part = self.phase.live
        base = {f"base.{n}": p for n, p in self.backbone.module.named_parameters() if p.requires_grad}
        head = {f"head.{n}": p for n, p in self.objective.named_parameters() if p.requires_grad}
        return {**(base if part != "head" else {}), **(head if part != "adapter" else {})}

    def losses(self, batch: Batch, classes: Sequence[int]) -> Tensor:
        """Run a forward and return each example's loss among `classes`: [n]."""
        with self.processes.autocast():
            features = self.backbone.features(batch.inputs)
        return self.objective.losses(features, batch.labels, classes)

    def examples(self, rows: Tensor) -> Batch:
        """Encode training rows given as [n, 2] (task index, position)."""
        parts = [self.tasks[t].train.take(rows[rows[:, 0] == t, 1]) for t in rows[:, 0].unique().tolist()]
        return encoded(concat(parts), self.backbone.encode)

    def loader(self, task: Task) -> Loader:
        """Return the batches of a curriculum task."""
        settings = self.config.train
        return Loader(task.train, self.backbone.encode, settings.batch_size, self.seed, task.name)

    def loss_classes(self, task: Task) -> tuple[int, ...]:
        """Return the classes that the loss on a new batch ranks."""
        return task.classes if self.objective.settings.classes == "task" else self.seen

    @torch.no_grad()
    def features(self, split: Split, blocks: tuple[str, ...] | None, **context: Any) -> Tensor:
        """Return the features [N, d] of every row, in evaluation mode, computed by all processes together."""
        mine = split.take(torch.tensor(self.processes.share(len(split)), dtype=torch.long))
        rows = [torch.empty(0, self.backbone.dim, device=self.processes.device)]
        self.backbone.module.eval()
        for batch in in_order(mine, self.backbone.encode, self.config.train.eval_batch_size):
            rows.append(self._features(batch, blocks, **context))
        if self.processes.sharded:
            self._go_along(split, blocks, len(rows) - 1)
        return self.processes.gather(torch.cat(rows), len(split))

    def _features(self, batch: Batch, blocks: tuple[str, ...] | None, **context: Any) -> Tensor:
        tokens = batch.inputs.get("attention_mask")
        mask = None if tokens is None else tokens.bool()
        with using(self.backbone.module, blocks=blocks, tokens=mask, **context), self.processes.autocast():
            return self.backbone.features(batch.to(self.processes.device).inputs).float()

    def _go_along(self, split: Split, blocks: tuple[str, ...] | None, done: int) -> None:
        """Run the forwards that other processes run and this one does not need: they wait for its share of the base."""
        longest = -(-len(split) // self.processes.world)
        for _ in range(done, -(-longest // self.config.train.eval_batch_size)):
            self._features(encoded(split.take([0]), self.backbone.encode), blocks)

    def blocks_for(self, task: Task) -> tuple[str, ...] | None:
        """Return the blocks that act on a task's test examples: all, or its own where the method is told the task."""
        return (task.name,) if self.method.oracle else None

    def begin_task(self, task: Task) -> None:
        """Grow what the method grows, open the head's rows, and start a fresh optimiser."""
        module = self.backbone.module
        if self.method.live == "adapter" and self.growth == "append":
            grow(module, [Change("freeze"), Change("append", task.name, self.config.adapter.rank)], self.seed)
        if self.method.live == "base":
            learn_base(module)
        self._enter(task)
        self.objective.begin_task(
            task.classes, self._head_classes(task), self._start_features(task), self._labels(task)
        )
        for strategy in self.strategies:
            strategy.begin_task(self, task)

    def _enter(self, task: Task) -> None:
        self.begun = self.curriculum.index(task) + 1
        self.acting = self.blocks_for(task)

    def _labels(self, task: Task) -> Tensor:
        return task.train.labels.to(self.processes.device)

    def _start_features(self, task: Task) -> Tensor | None:
        return self.features(task.train, self.acting) if self.objective.wants_features else None

    def _head_classes(self, task: Task) -> tuple[int, ...]:
        old = self.objective.settings.classes == "seen" or any(s.learns_old_classes for s in self.strategies)
        return self.seen if old else task.classes

    def enter_phase(self, phase: Phase) -> None:
        """Let the parameters of `phase` learn, with a fresh optimiser."""
        self.phase = phase
        if not self.live():
            raise UsageError(
                f"method {self.method.slug!r} with objective.head = {self.objective.settings.head!r} has nothing "
                'to learn; set train.steps = 0 to score it as it is, or objective.head = "cosine"'
            )
        self.optimizer = self._optimizer()

    def end_task(self, task: Task) -> None:
        """Take class means, and those of remembered earlier examples again; let strategies look back."""
        for member in self._members(task):
            features = self.features(member.train, self.blocks_for(member))
            self.objective.end_task(member.classes, member.index, features, member.train.labels.to(features.device))
        for strategy in self.strategies:
            strategy.end_task(self, task)
            self._refresh_means(strategy.remembered(), task)

    def _members(self, task: Task) -> Sequence[Task]:
        return self.tasks if self.method.order == "at-once" else (task,)

    def _refresh_means(self, rows: Tensor, task: Task) -> None:
        for t in (t for t in rows[:, 0].unique().tolist() if t != task.index):
            old = self.tasks[t].train.take(rows[rows[:, 0] == t, 1])
            present = tuple(sorted(set(old.labels.tolist())))
            features = self.features(old, self.blocks_for(self.tasks[t]))
            self.objective.end_task(present, t, features, old.labels.to(features.device))

    def _optimizer(self) -> torch.optim.Optimizer:
        settings = self.config.train
        groups = {"base": settings.lr, "head": self.objective.settings.lr}
        named = self.live()
        parameters = [
            {"params": [p for n, p in named.items() if n.startswith(part)], "lr": lr, "peak": lr}
            for part, lr in groups.items()
        ]
        beta1, beta2 = settings.betas
        return torch.optim.AdamW(parameters, betas=(beta1, beta2), weight_decay=settings.weight_decay, fused=True)

    def _banks(self) -> dict[str, Bank]:
        sites = {f"sites/{name}": bank for name, (_, bank) in banks_of(self.backbone.module).items()}
        return {**sites, "head": self.objective.head.bank}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return (tensors by path, JSON values): everything that steps and task edges change."""
        tensors: dict[str, Tensor] = {}
        blocks: dict[str, Any] = {}
        for path, bank in self._banks().items():
            held, blocks[path] = bank.state()
            tensors.update({f"{path}/{name}": tensor for name, tensor in held.items()})
        tensors.update({"means/means": self.objective.means.means, "means/owners": self.objective.means.owners})
        tensors.update(self._base_state())
        tensors.update(
            {f"optimizer/{n}/{k}": v for n, p in self.live().items() for k, v in self.optimizer.state[p].items()}
        )
        for strategy in self.strategies:
            tensors.update({f"strategies/{strategy.name}/{k}": v for k, v in strategy.state().items()})
        return tensors, {"blocks": blocks, "begun": self.begun, "phase": self.method.phases.index(self.phase)}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take back what `state` returned, on a learner made from the same config."""
        device = self.processes.device
        for path, bank in self._banks().items():
            bank.restore(_under(tensors, f"{path}/"), values["blocks"][path])
            bank.to(device)
        means = _under(tensors, "means/")
        self.objective.means.means, self.objective.means.owners = means["means"].to(device), means["owners"].to(device)
        self._restore_base(_under(tensors, "base/"))
        self.begun, self.phase = int(values["begun"]), self.method.phases[int(values["phase"])]
        if self.begun:
            self._enter(self.curriculum[self.begun - 1])
        self.optimizer = self._optimizer()
        for name, parameter in self.live().items():
            held = {k: v.to(device) for k, v in _under(tensors, f"optimizer/{name}/").items()}
            if held:
                self.optimizer.state[parameter] = {**held, "step": held["step"].to(parameter.device)}
        for strategy in self.strategies:
            strategy.restore(_under(tensors, f"strategies/{strategy.name}/"))

    def _base_state(self) -> dict[str, Tensor]:
        if self.method.live != "base":
            return {}
        return {f"base/{name}": tensor.detach() for name, tensor in self.backbone.module.state_dict().items()}

    def _restore_base(self, tensors: Mapping[str, Tensor]) -> None:
        if tensors:
            self.backbone.module.load_state_dict(dict(tensors))
            learn_base(self.backbone.module)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries below `prefix`, by what is left of their path."""
    return {path[len(prefix) :]: tensor for path, tensor in tensors.items() if path.startswith(prefix)}


def _curriculum(stream: Stream, method: Method) -> tuple[Task, ...]:
    """Return the tasks as they are learnt: one by one, or all in one."""
    if method.order == "stream":
        return stream.tasks
    classes = tuple(sorted({c for task in stream.tasks for c in task.classes}))
    train, test = concat([t.train for t in stream.tasks]), concat([t.test for t in stream.tasks])
    return (Task("all tasks", 0, classes, train, None, test),)
