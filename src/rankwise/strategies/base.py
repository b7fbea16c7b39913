"""The hooks of a part of a run: what protects the past, and how gradients become updates; and the check of both."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rankwise.adapters import Branch, Change
from rankwise.errors import ConflictError
from rankwise.objectives import Outputs
from rankwise.strategies.host import Copy, Host, Phase, Term, require_branch, require_linear, require_live
from rankwise.streams import Batch, Task

Mode = Literal["add", "set"]


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
    needs_growth: ClassVar[tuple[str, str] | None] = None
    """How blocks must come for it to work, and what to say where they come otherwise; None: in whatever way."""
    needs_form: ClassVar[type[Branch] | None] = None
    """The form of adapter it works on; None: any."""
    needs_live: ClassVar[tuple[Collection[str], str] | None] = None
    """Tensors that must learn at every site, and what they are in words."""
    brings_batches: ClassVar[bool] = False
    """True if its terms have batches of their own, which only our own loop can take."""
    closed_forms: ClassVar[bool] = False
    """True if its `shape` is for gradients of examples: those of losses of the weights alone come in after it."""
    learns_old_classes: ClassVar[bool] = False
    """True if its losses rank classes of earlier tasks, whose head rows must then be live."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """What another part must write for it to work."""
    folds: ClassVar[bool] = False
    """True if it folds blocks into the base's weights, whose update must then not depend on the input."""
    plans: ClassVar[bool] = False
    """True if `plan` decides the phases of a task, in place of the method's fixed ones."""

    def __init__(self, settings: Any = None, seed: int = 0) -> None:
        """Take the settings, an instance of `Settings`, and the run's seed."""
        self.settings, self.seed = settings, seed

    def misfit(self, setting: Setting) -> str | None:
        """Return why it cannot work in `setting`, and the remedy; None: it can."""
        if self.needs_growth is None or setting.growth == self.needs_growth[0]:
            return None
        return f"adapter.growth = {setting.growth!r}: {self.needs_growth[1]}"

    def fits(self, host: Host) -> None:
        """Refuse, by ConflictError, an adapter it cannot work on: it is on, without blocks, and nothing is started."""
        if self.needs_form is not None:
            require_branch(host, self.name, self.needs_form)
        if self.needs_live is not None:
            require_live(host, self.name, *self.needs_live)
        if self.folds:
            require_linear(host, self.name)

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
    if setting.adapter and setting.growth == "planned" and not any(s.plans for s in strategies):
        raise ConflictError(
            "adapter.growth = 'planned' and no part that plans when blocks come, so none ever would: leave the method "
            "its own adapter.dynamics, or set adapter.growth to 'keep' or 'append'"
        )
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
