"""Learning without forgetting: the model before the task is the teacher, on the new task's data (arXiv 1606.09282).

The authorities differ: in the factor T^2 (Hinton has it; Mammoth, Avalanche and PILOT do not), and in softmax against
one sigmoid a class (iCaRL's and later LwF.MC, the form that arXiv 2203.17269 finds to be what helps). Both have names.
The paper's warm-up of the head is left out: new rows start at the means of their class (`objective.imprint`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.adapters import Change
from rankwise.config import NotNegative, Positive
from rankwise.errors import ConflictError
from rankwise.objectives import Outputs
from rankwise.strategies.base import Setting, Strategy
from rankwise.strategies.host import Host, places_of
from rankwise.streams import Batch, Task


def distilled(student: Tensor, teacher: Tensor, temperature: float, squared: bool = False) -> Tensor:
    """Return KL(softmax(teacher / T) || softmax(student / T)) of each row: logits [n, C] -> [n]; times T^2 if squared.

    Mammoth's cross-entropy is this plus the teacher's entropy: the same gradient.
    """
    q = torch.log_softmax(teacher / temperature, -1)
    p = torch.log_softmax(student / temperature, -1)
    return F.kl_div(p, q, reduction="none", log_target=True).sum(-1) * (temperature**2 if squared else 1.0)


def one_by_one(student: Tensor, teacher: Tensor, hit: Tensor, new: Tensor) -> Tensor:
    """Return the binary cross-entropy of each row, averaged over its classes (LwF.MC): [n, C] -> [n].

    The target is `hit` (1 at the label) for classes that are `new` [C], and the teacher's sigmoid for all others.
    """
    target = torch.where(new, hit.to(student.dtype), torch.sigmoid(teacher))
    return F.binary_cross_entropy_with_logits(student, target, reduction="none").mean(-1)


@dataclass(frozen=True)
class LwfSettings:
    """`[[strategy]] kind = "lwf"`: answer for old classes as before, on new data."""

    form: Literal["softmax", "multi-class"] = "softmax"
    """softmax: the task's own loss, plus the distance to the teacher over old classes; multi-class: a sigmoid for each
    class in place of the task's own loss, with the teacher's values as targets of old classes."""
    weight: NotNegative = 0.5
    """alpha, factor on the distance (softmax). Mammoth 0.5, Avalanche 1."""
    temperature: Positive = 2.0
    """T (softmax). Higher: the teacher's smaller scores count for more."""
    squared: bool = False
    """Multiply by T^2 (softmax), so that the pull does not fade with T."""
    scale: Positive = 5.0
    """Factor on the mean over classes (multi-class), which shrinks as classes come."""


class Lwf(Strategy):
    """Keeps the teacher as what it answers: its scores of the old classes on the new task's training rows.

    They are taken once, as the task before ends, from the model that answers then: the live teacher to the bit, without
    a second model or a second forward. With train.augment it is asked about the picture itself, not about a view of it
    (as in Mammoth). Whatever happens to blocks, base or head afterwards, the teacher stays what it was. Memory: rows *
    old classes. Where answers are words, the distance is over the vocabulary, at the first token of the answer.
    """

    name = "lwf"
    Settings = LwfSettings
    reads = frozenset({"loss"})
    writes = {"own loss": "set"}
    learns_old_classes = True

    def __init__(self, settings: LwfSettings, seed: int) -> None:
        """Start without a teacher."""
        super().__init__(settings, seed)
        self.teacher = torch.empty(0, 0)

    def misfit(self, setting: Setting) -> str | None:
        """Refuse where old classes are not asked any more, or there are none."""
        if setting.oracle:
            return (
                "oracle = true: each task has a block of its own, which the new task does not change, so there is "
                "nothing to distil; remove 'lwf' or choose a method with shared blocks"
            )
        if setting.words and self.settings.form == "multi-class":
            return "answers in words: form = 'multi-class' has a sigmoid for each class; use form = 'softmax'"
        return None

    def begin_task(self, host: Host, task: Task) -> None:
        """Refuse a stream whose later tasks ask for the same classes, where labels would be the only targets."""
        if self.settings.form != "multi-class":
            return
        for later in host.tasks[1:]:
            if set(_before(host, later)) <= set(later.classes):
                raise ConflictError(
                    f"strategy 'lwf' with form = 'multi-class' distils classes that task {later.name!r} does not "
                    "teach, and it teaches all; use form = 'softmax'"
                )

    def own(self, host: Host, batch: Batch, outputs: Outputs, losses: Tensor) -> Tensor:
        """Return the task's losses with the distance to the teacher, or the multi-class losses in their place."""
        old = _before(host, host.task)
        teacher = self.teacher[places_of(host.task, batch)].to(losses.device) if old else None
        if self.settings.form == "multi-class":
            return self._sigmoids(host, batch, outputs, old, teacher)
        if teacher is None:
            return losses
        student = host.objective.logits(outputs, batch, old)
        return losses + self.settings.weight * distilled(
            student, teacher, self.settings.temperature, self.settings.squared
        )

    def _sigmoids(
        self, host: Host, batch: Batch, outputs: Outputs, old: Sequence[int], teacher: Tensor | None
    ) -> Tensor:
        classes = [c for c in old if c not in host.task.classes] + list(host.task.classes)
        student = host.objective.logits(outputs, batch, classes)
        new = torch.tensor([c in host.task.classes for c in classes], device=student.device)
        target = torch.zeros_like(student)
        if teacher is not None:
            target[:, ~new] = teacher[:, [c not in host.task.classes for c in old]].to(student.dtype)
        hit = batch.labels[:, None] == torch.tensor(classes, device=student.device)
        return self.settings.scale * one_by_one(student, target, hit, new)

    def end_task(self, host: Host, task: Task) -> Sequence[Change]:
        """Ask the teacher of the next task, which is the model as it is now, for all it will be asked."""
        self.teacher = torch.empty(0, 0)
        for later in host.tasks[task.index + 1 : task.index + 2]:
            self.teacher = host.each(later.train, partial(_scores, host, _before(host, later))).cpu()
        return ()

    def state(self) -> dict[str, Tensor]:
        """Return the teacher's answers."""
        return {"teacher": self.teacher}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        self.teacher = state["teacher"].clone()


def _scores(host: Host, classes: Sequence[int], batch: Batch) -> Tensor:
    """Return the model's scores of `classes`: [n, len(classes)]."""
    return host.objective.logits(host.forward(batch), batch, classes)


def _before(host: Host, task: Task) -> tuple[int, ...]:
    """Return the classes of the tasks before `task`, in the order of the teacher's columns."""
    return tuple(sorted({c for earlier in host.tasks[: task.index] for c in earlier.classes}))
