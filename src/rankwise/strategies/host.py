"""What a part of a run may ask of the learner it belongs to, and the records that pass between the two."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from rankwise.adapters import Branch, Change, Sink, adapter_of, banks_of
from rankwise.config import TrainSettings
from rankwise.errors import ConflictError
from rankwise.models import Backbone
from rankwise.objectives import Objective, Outputs
from rankwise.streams import Batch, Split, Task

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

    def examples(self, rows: Tensor, drawn: tuple[str, int] | None = None) -> Batch:
        """Encode training rows given as [n, 2] (task index, position in its training split).

        `drawn`, the name of a draw and its step, lets train.augment give each row a view; None: as they are stored.
        """
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


def weights_of(host: Host) -> dict[str, nn.Parameter]:
    """Return what learns in the model, by its name there, whatever phase it is: never the head's rows."""
    return {name: p for name, p in host.model.named_parameters() if p.requires_grad}


def require_live(host: Host, who: str, names: Collection[str], what: str) -> None:
    """Refuse an adapter that at some site does not learn one of the tensors `names`, which are `what` in words.

    Raises:
        ConflictError: the adapter lacks one; `who` is the name of the dynamics that ask.

    """
    banks = [bank for _, bank in banks_of(host.model).values()]
    if not all(set(names) <= {name for name, spec in bank.specs.items() if spec.learns} for bank in banks):
        raise ConflictError(f"dynamics {who!r} and an adapter without {what}: choose the method of that name")


def require_branch(host: Host, who: str, kind: type[Branch]) -> None:
    """Refuse an adapter of another branch than `kind`.

    Raises:
        ConflictError: its branch is another; `who` is the name of the dynamics that ask.

    """
    branch = adapter_of(host.model).branch
    if not isinstance(branch, kind):
        form = type(branch).__name__
        raise ConflictError(f"dynamics {who!r} and an adapter of form {form}: choose the method of that name")


def require_linear(host: Host, who: str) -> None:
    """Refuse an adapter whose update depends on the input, so that no block of it can be folded.

    Raises:
        ConflictError: it does; `who` is the name of the dynamics that ask.

    """
    branch = adapter_of(host.model).branch
    if not branch.linear:
        what = f"fold blocks into the weight, and what one of form {type(branch).__name__} adds depends on the input"
        raise ConflictError(f"dynamics {who!r} {what}; choose the method of that name")


def validation_loss(host: Host, split: Split, classes: Sequence[int]) -> float:
    """Return the mean loss on the rows of `split`, ranked among `classes`, in evaluation mode."""
    return float(host.each(split, lambda batch: host.losses(batch, classes)).mean())


def places_of(task: Task, batch: Batch) -> Tensor:
    """Return where the rows of `batch` stand in the training split of `task`: [n]."""
    order = task.train.ids.argsort()
    return order[torch.searchsorted(task.train.ids[order], batch.ids.cpu())]
