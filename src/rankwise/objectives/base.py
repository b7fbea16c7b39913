"""What an objective is: a forward, a loss for each example, a score; and what it may ask of the learner."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor, nn

from rankwise.adapters import Bank, Sink
from rankwise.files import Content
from rankwise.models import Answers, Backbone
from rankwise.streams import Batch, Split, Stream, Task


@dataclass(frozen=True)
class Outputs:
    """What one forward gives."""

    features: Tensor
    """[n, d], float32; one row an example."""
    hidden: tuple[Tensor, ...] = ()
    """States after the embedding and after each layer, [n, S, d], if they were asked for."""
    logits: Tensor | None = None
    """[n, S, V] of a language model's tokens; None for an encoder."""
    real: tuple[Tensor | None, ...] = ()
    """For each of `hidden`, 1 at tokens and 0 at padding [n, S]; None where nothing is padded."""


class Learning(Protocol):
    """What an objective may ask of the learner it belongs to."""

    seed: int
    backbone: Backbone
    stream: Stream

    @property
    def seen(self) -> tuple[int, ...]:
        """Class ids of all tasks begun so far."""
        ...

    @property
    def oracle(self) -> bool:
        """Whether the task of a test example is known."""
        ...

    @property
    def old_classes(self) -> bool:
        """Whether something in the run learns classes of earlier tasks."""
        ...

    @property
    def rehearses(self) -> bool:
        """Whether something in the run brings examples of earlier tasks into a step."""
        ...

    def members(self, task: Task) -> Sequence[Task]:
        """Return the stream's tasks in a curriculum task: itself, or all of them where they are learnt at once."""
        ...

    def blocks_for(self, task: Task) -> tuple[str, ...] | None:
        """Return the rank blocks that act on a task's test examples."""
        ...

    def features(self, split: Split, blocks: tuple[str, ...] | None = None, *, sink: Sink | None = None) -> Tensor:
        """Return the features [N, d] of every row of `split`, in evaluation mode."""
        ...

    def each(
        self,
        split: Split,
        do: Callable[[Batch], Tensor],
        blocks: tuple[str, ...] | None = None,
        *,
        sink: Sink | None = None,
    ) -> Tensor:
        """Return do(batch) [n, ...] for all rows of `split` [N, ...], in evaluation mode, by all processes together."""
        ...

    def add_up(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over processes."""
        ...


class Objective(nn.Module, ABC):
    """One kind of question; its parameters are those of the head."""

    metric: ClassVar[str]
    """Name of the score."""
    lr: float = 0.0
    """Learning rate of its parameters."""
    writes: ClassVar[bool] = False
    """True if its score takes a number of forwards that depends on the rows."""

    @classmethod
    def answers(cls, settings: Any) -> Answers | None:
        """Return how the base must be able to answer in words; None: it need not."""
        return None

    @classmethod
    @abstractmethod
    def made(cls, settings: Any, backbone: Backbone, stream: Stream, seed: int) -> Self:
        """Make the objective of a run from its settings; refuse a base or stream it does not fit."""

    @abstractmethod
    def run(self, backbone: Backbone, inputs: Mapping[str, Tensor], *, hidden: bool = False) -> Outputs:
        """Run one forward of the base on encoded inputs."""

    @abstractmethod
    def losses(self, outputs: Outputs, batch: Batch, classes: Sequence[int]) -> Tensor:
        """Return each example's loss [n] among `classes`, with a graph."""

    @abstractmethod
    def logits(self, outputs: Outputs, batch: Batch, classes: Sequence[int]) -> Tensor:
        """Return what the loss takes the softmax of, for `classes`: [n, len(classes)] (or tokens of the vocabulary)."""

    @abstractmethod
    def loss_classes(self, learning: Learning, task: Task) -> tuple[int, ...]:
        """Return the classes that the loss on a new batch of `task` ranks."""

    def begin_task(self, learning: Learning, task: Task) -> None:
        """Open what a task needs, before its first step."""

    def end_task(self, learning: Learning, task: Task) -> None:
        """Look back at a finished task."""

    def refresh(self, learning: Learning, rows: Tensor, task: Task) -> None:
        """Look again at remembered rows [n, 2] (task index, position) of tasks before `task`."""

    @abstractmethod
    def score(self, learning: Learning, task: Task, split: Split, sink: Sink | None = None) -> float | None:
        """Return the score on `split` of a task; None where it cannot be answered yet."""

    def banks(self) -> Mapping[str, Bank]:
        """Return the banks of the head, by name."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Return what else task edges change."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""

    def files(self, record: Mapping[str, Any]) -> dict[str, Content]:
        """Return the files under adapter/ from which answers can be given again; `record` says of what run."""
        return {}
