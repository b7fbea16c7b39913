"""Small strategies for loops that are not ours, one for each thing a strategy can do there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from rankwise.adapters import Change
from rankwise.adapters.store import under
from rankwise.strategies import Copy, Host, Strategy, Term
from rankwise.streams import Batch, Task


@dataclass(frozen=True)
class ProbeSettings:
    """Settings of the strategies in this file."""

    factor: float = 0.5


class Probe(Strategy):
    """Scales gradients, clamps values and notes what it saw and when."""

    name: ClassVar[str] = "probe"
    Settings: ClassVar[type] = ProbeSettings

    def __init__(self, settings: ProbeSettings, seed: int) -> None:
        super().__init__(settings, seed)
        self.factor, self.seen = settings.factor, []

    def note(self, hook: str, host: Host, step: int) -> None:
        self.seen.append((hook, step, {n: p.detach().clone() for n, p in host.live().items()}))

    def shape(self, host: Host, step: int) -> None:
        self.note("shape", host, step)
        for parameter in host.live().values():
            if parameter.grad is not None:
                parameter.grad.mul_(self.factor)

    def settle(self, host: Host, step: int) -> None:
        self.note("settle", host, step)
        with torch.no_grad():
            for parameter in host.live().values():
                parameter.clamp_(-0.5, 0.5)

    def follow(self, host: Host, step: int) -> None:
        self.note("follow", host, step)


class Setter(Probe):
    """Claims the live values for itself."""

    name: ClassVar[str] = "setter"
    writes: ClassVar[Mapping[str, Literal["add", "set"]]] = {"live": "set"}


class Rival(Setter):
    """So does this one."""

    name: ClassVar[str] = "rival"


class Fisher(Strategy):
    """Pulls each parameter back to where the last task left it, by its squared gradients there; a small EWC."""

    name: ClassVar[str] = "fisher"
    Settings: ClassVar[type] = ProbeSettings

    def __init__(self, settings: ProbeSettings, seed: int) -> None:
        super().__init__(settings, seed)
        self.anchors: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        self.rows: list[int] = []

    def terms(self, host: Host, step: int) -> Sequence[Term]:
        def penalty(batch: Batch) -> Tensor:
            live = host.live()
            terms = [(self.weights[n] * (live[n] - self.anchors[n]).square()).sum() for n in self.anchors]
            return torch.stack(terms).sum()

        return (Term("fisher", None, penalty, self.settings.factor),) if self.anchors else ()

    def end_task(self, host: Host, task: Task) -> Sequence[Change]:
        live = host.live()
        self.anchors = {n: p.detach().clone() for n, p in live.items()}
        self.weights = {n: torch.zeros_like(p) for n, p in live.items()}
        for batch in host.batches(task):
            for loss in host.losses(batch, task.classes):
                for n, g in zip(live, torch.autograd.grad(loss, list(live.values()), retain_graph=True), strict=True):
                    self.weights[n] += g.square() / len(task.train)
        self.rows.append(len(task.train))
        return ()

    def state(self) -> dict[str, Tensor]:
        tensors = {"anchors": self.anchors, "weights": self.weights}
        return {f"{part}/{n}": t for part, held in tensors.items() for n, t in held.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.anchors, self.weights = under(state, "anchors/"), under(state, "weights/")


class Average(Strategy):
    """Keeps the mean of the values after each step, and answers with it."""

    name: ClassVar[str] = "average"
    Settings: ClassVar[type] = ProbeSettings

    def __init__(self, settings: ProbeSettings, seed: int) -> None:
        super().__init__(settings, seed)
        self.values: list[Copy] = []

    def follow(self, host: Host, step: int) -> None:
        self.values.append(host.snapshot())

    def deployed(self) -> Copy | None:
        names = self.values[0].tensors if self.values else {}
        means = {n: torch.stack([copy.tensors[n] for copy in self.values]).mean(0) for n in names}
        return Copy(means, None) if means else None


class Ruler(Probe):
    """Wants the optimiser for itself."""

    name: ClassVar[str] = "ruler"

    def optimizer(self, host: Host, named: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer | None:
        return None


class Factors(Probe):
    """Works on the factors of an adapter."""

    name: ClassVar[str] = "factors"
    needs_adapter: ClassVar[bool] = True


KINDS: tuple[type[Strategy], ...] = (Probe, Setter, Rival, Fisher, Average, Ruler, Factors)
