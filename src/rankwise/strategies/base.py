"""The hooks of a part of a run: what protects the past, and how gradients become updates; and the check of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from rankwise.adapters import Change, Sink
from rankwise.config import TrainSettings
from rankwise.errors import ConflictError
from rankwise.models import Backbone
from rankwise.objectives import Objective, Outputs
from rankwise.streams import Batch, Split, Task

Mode = Literal["add", "set"]
T = TypeVar("T")


@dataclass(frozen=True)
class Term:
    """One loss of a step: its examples, and what each of them costs.

    The step takes weight * mean over the examples. `losses` gives one value an example, so any cut into micro-batches
    or processes adds up to the same step. A loss of the parameters alone needs no examples: its batch is None, and
    `losses` gives one value for the whole step.
    """

    name: str
    batch: Batch | None
    losses: Callable[[Batch], Tensor]
    """Examples [n] -> losses [n]; runs one forward. Without a batch: called with an empty one, returns a scalar."""
    weight: float = 1.0


@dataclass(frozen=True)
class Phase:
    """A stretch of a task's training."""

    name: str = "fit"
    share: float = 1.0
    """Fraction of the task's steps; the learning rate's course starts anew in each phase."""
    live: Literal["all", "adapter", "head"] | tuple[str, ...] = "all"
    """What learns: everything the method trains, only the adapter (base), only the head, or the parameters whose name
    fits one of these globs."""
    changes: tuple[Change, ...] = ()
    """What happens to the structure before it begins."""
    own_loss: bool = True
    """Whether the task's own loss counts, or only the terms of the parts."""


@dataclass(frozen=True)
class Copy:
    """Values of everything that learnt at one moment, to be read beside those of now."""

    tensors: Mapping[str, Tensor]
    """By the names of `Host.live`."""
    blocks: tuple[str, ...] | None
    """The rank blocks there were; None: all there are."""


class Host(Protocol):
    """What a part may ask of the learner it belongs to."""

    seed: int

    @property
    def model(self) -> nn.Module:
        """The base, with its adapter on."""
        ...

    @property
    def backbone(self) -> Backbone:
        """The base with its encoder: what a batch's inputs mean to it."""
        ...

    @property
    def objective(self) -> Objective:
        """What the tasks ask."""
        ...

    @property
    def seen(self) -> tuple[int, ...]:
        """Class ids of all tasks begun so far."""
        ...

    @property
    def tasks(self) -> Sequence[Task]:
        """The tasks of the stream."""
        ...

    @property
    def task(self) -> Task:
        """The task being learnt."""
        ...

    @property
    def train(self) -> TrainSettings:
        """The settings of the loop."""
        ...

    @property
    def batch(self) -> Batch:
        """The new examples of the step under way."""
        ...

    @property
    def phase(self) -> Phase:
        """The phase under way."""
        ...

    @property
    def rank(self) -> int:
        """Ranks of a new block, as configured."""
        ...

    @property
    def rate(self) -> float:
        """Learning rate of adapter or base in the step under way."""
        ...

    def rule(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the run's own rule (AdamW or SGD, as configured) over parameter groups with a learning rate each."""
        ...

    def live(self) -> Mapping[str, nn.Parameter]:
        """Parameters that learn now, by name; valid until the structure changes."""
        ...

    def forward(self, batch: Batch, *, hidden: bool = False) -> Outputs:
        """Run a forward on a batch of `loader` or `examples`; with `hidden`, keep the states between the layers."""
        ...

    def losses(self, batch: Batch, classes: Sequence[int]) -> Tensor:
        """Run a forward and return the objective's loss for each example, among `classes`: [n]."""
        ...

    def rehearse(self, batch: Batch, classes: Sequence[int]) -> Tensor:
        """Return `losses` of remembered examples, with what the parts make of them (`Strategy.rehearsed`): [n]."""
        ...

    def evaluating(self, batch: Batch) -> AbstractContextManager[None]:
        """Let forwards on `batch` in a block be those of evaluation; gradients flow."""
        ...

    def classes(self, task: Task) -> tuple[int, ...]:
        """Return the classes that the loss on a new batch of `task` ranks."""
        ...

    def each(self, split: Split, do: Callable[[Batch], Tensor], blocks: tuple[str, ...] | None = None) -> Tensor:
        """Return do(batch) for all rows of `split` [N, ...] in evaluation mode, under the deployed values."""
        ...

    def deployed(self) -> Copy | None:
        """Return the values that answer in evaluation; None: the live ones."""
        ...

    def add_up(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over processes."""
        ...

    def examples(self, rows: Tensor) -> Batch:
        """Encode training rows given as [n, 2] (task index, position in its training split)."""
        ...

    def batches(self, task: Task) -> Iterable[Batch]:
        """Return the training batches of a task in order, once each, in the size of training."""
        ...

    def steps(self, task: Task) -> int:
        """Return how many steps a task takes."""
        ...

    def snapshot(self) -> Copy:
        """Return a copy of everything that learns, as it is now."""
        ...

    def under(self, copy: Copy, do: Callable[[], T]) -> T:
        """Return do(), with every forward in it reading `copy` in place of the live values, without gradient."""
        ...

    def features(self, split: Split, blocks: tuple[str, ...] | None = None, *, sink: Sink | None = None) -> Tensor:
        """Return the features [N, d] of every row of `split` in evaluation mode, under the deployed values."""
        ...


class Strategy:
    """A part of a run. Each hook does nothing unless a part says otherwise.

    Order in a step: `terms`, then for each term forward (with `own` or `rehearsed`) and backward; gradients are summed
    over processes; `shape` (may change gradients), clip, the optimisers' rules, `settle` (may change live values),
    `follow` (own state only).
    """

    name: ClassVar[str]
    """Word in a config."""
    Settings: ClassVar[type]
    """Frozen dataclass of its settings."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """What the hooks look at: loss, gradients, live, memory, hidden (the states of remembered examples)."""
    writes: ClassVar[Mapping[str, Mode]] = {}
    """What they change: "add" composes with other additions, "set" does not compose with anything."""
    needs_sequence: ClassVar[bool] = True
    """True if it makes no sense when all tasks are learnt at once."""
    needs_adapter: ClassVar[bool] = False
    """True if it works on the factors of an adapter."""
    brings_batches: ClassVar[bool] = False
    """True if its terms have batches of their own, which only our own loop can take."""
    learns_old_classes: ClassVar[bool] = False
    """True if its losses rank classes of earlier tasks, whose head rows must then be live."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """What another part must write for it to work."""
    plans: ClassVar[bool] = False
    """True if `plan` decides the phases of a task, in place of the method's fixed ones."""

    def __init__(self, settings: Any = None, seed: int = 0) -> None:
        """Take the settings, an instance of `Settings`, and the run's seed."""
        self.settings, self.seed = settings, seed

    def misfit(self, setting: Setting) -> str | None:
        """Return why it cannot work in `setting`, and the remedy; None: it can."""
        return None

    def begin_task(self, host: Host, task: Task) -> None:
        """Before the first phase of a task; the structure is that of its start."""

    def reshaped(self, host: Host) -> None:
        """After a change of the structure: live parameters are other ones, under the same names perhaps."""

    def plan(self, host: Host, task: Task, done: Sequence[Mapping[str, Any]]) -> Phase | None:
        """Return the next phase, after the reports of those done in this task; None: the task is finished."""
        return None

    def begin_phase(self, host: Host, phase: Phase) -> None:
        """After the phase's changes, before its first step."""

    def optimizer(self, host: Host, named: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer | None:
        """Return the rule for those of the live parameters that it takes over; None: it takes none."""
        return None

    def context(self, host: Host, batch: Batch, step: int | None) -> Mapping[str, Any]:
        """Return fields of the context of a forward; `step` is None in evaluation."""
        return {}

    def acting(self, host: Host, task: Task) -> tuple[str, ...] | None:
        """Return the blocks that act on a task's test examples, told which task they are of; None: all."""
        return None

    def terms(self, host: Host, step: int) -> Sequence[Term]:
        """Losses to add to this step (counted over the whole run)."""
        return ()

    def own(self, host: Host, batch: Batch, outputs: Outputs, losses: Tensor) -> Tensor:
        """Return the losses [n] of new examples, from those of the objective and what the forward gave."""
        return losses

    def rehearsed(self, host: Host, batch: Batch, outputs: Outputs, losses: Tensor) -> Tensor:
        """Return the losses [n] of remembered examples, from those of the objective and what the forward gave."""
        return losses

    def shape(self, host: Host, step: int) -> None:
        """Change gradients in place, after they are summed and before they are clipped."""

    def settle(self, host: Host, step: int) -> None:
        """Change live values in place, after the optimiser's rule."""

    def follow(self, host: Host, step: int) -> None:
        """Update own state; never live values."""

    def changes(self, host: Host, step: int) -> Sequence[Change]:
        """Return what must happen to the structure after this step; what it makes anew learns with fresh moments."""
        return ()

    @classmethod
    def reshapes(cls) -> bool:
        """Say whether it may change the structure in the middle of a phase."""
        return cls.changes is not Strategy.changes

    def enough(self, host: Host) -> bool:
        """Say, after a step, whether the phase may end before its last step."""
        return False

    def end_phase(self, host: Host, phase: Phase) -> Mapping[str, Any]:
        """After the last step of a phase; may put live values right. Return what `plan` will want to know, as JSON."""
        return {}

    def end_task(self, host: Host, task: Task) -> Sequence[Change]:
        """After the last step of a task; return what must happen to the structure."""
        return ()

    def remembered(self) -> Tensor:
        """Training rows of earlier tasks that are still at hand: [n, 2] (task index, position)."""
        return torch.empty(0, 2, dtype=torch.long)

    def deployed(self) -> Copy | None:
        """Return the values that answer in evaluation and are saved in the end; None: the live ones."""
        return None

    def artefact(self) -> dict[str, Tensor]:
        """Return what must lie beside the saved adapter for it to be used: a router, for example."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs; all that hooks change must be in it."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""


@dataclass(frozen=True)
class Setting:
    """What the parts of a run must fit."""

    sequence: bool = True
    """False if the method learns all tasks at once."""
    oracle: bool = False
    """True if each task has parts of its own that alone act on its examples."""
    adapter: bool = True
    """False if the method has none."""
    learns: bool = True
    """False if nothing learns but the head."""
    growth: Literal["keep", "append", "planned"] = "keep"
    """How blocks come, where the method has an adapter."""
    reshaper: str = ""
    """The part that changes the structure in the middle of a phase, if one does."""
    words: bool = False
    """True if the tasks ask for answers in words, not for classes."""
    held: Mapping[str, str] = field(default_factory=dict)
    """What somebody else sets already -> who."""


def check_together(strategies: Sequence[Strategy], setting: Setting) -> None:
    """Refuse, before anything is trained, parts that cannot work together; the error names both."""
    writers: dict[str, tuple[str, Mode]] = {what: (who, "set") for what, who in setting.held.items()}
    setting = replace(setting, reshaper=next((s.name for s in strategies if s.reshapes()), ""))
    for strategy in strategies:
        _check_alone(strategy, setting)
        _check_needs(strategy, strategies)
        for resource, mode in strategy.writes.items():
            name, before = writers.get(resource, (strategy.name, "add"))
            if resource in writers and "set" in (mode, before):
                raise ConflictError(f"strategies {name!r} and {strategy.name!r} both set {resource}; keep one of them")
            writers[resource] = (strategy.name, mode)


def _check_alone(strategy: Strategy, setting: Setting) -> None:
    if strategy.needs_sequence and not setting.sequence:
        raise ConflictError(
            f"strategy {strategy.name!r} and order = 'at-once' (joint training): every step sees every task, so "
            f"there is no past to protect; remove {strategy.name!r} or choose a method that learns task by task"
        )
    if strategy.brings_batches and setting.oracle:
        raise ConflictError(
            f"strategy {strategy.name!r} and oracle = true: each task has a block of its own, so earlier examples "
            f"have nothing to teach the current one; remove {strategy.name!r} or choose a method with shared blocks"
        )
    if strategy.needs_adapter and not setting.adapter:
        raise ConflictError(
            f"strategy {strategy.name!r} works on the factors of an adapter, and this method has none; remove "
            f"{strategy.name!r} or choose a method with an adapter"
        )
    reason = strategy.misfit(setting)
    if reason is not None:
        raise ConflictError(f"strategy {strategy.name!r} and {reason}")


def _check_needs(strategy: Strategy, strategies: Sequence[Strategy]) -> None:
    for what in sorted(strategy.needs - {written for s in strategies for written in s.writes}):
        raise ConflictError(
            f"strategy {strategy.name!r} needs the {what} of another strategy, and this run has none that keeps one; "
            f"add one, or remove {strategy.name!r}"
        )


def weights_of(host: Host) -> dict[str, nn.Parameter]:
    """Return what learns in the model, by its name there, whatever phase it is: never the head's rows."""
    return {name: p for name, p in host.model.named_parameters() if p.requires_grad}


def places_of(task: Task, batch: Batch) -> Tensor:
    """Return where the rows of `batch` stand in the training split of `task`: [n]."""
    order = task.train.ids.argsort()
    return order[torch.searchsorted(task.train.ids[order], batch.ids.cpu())]
