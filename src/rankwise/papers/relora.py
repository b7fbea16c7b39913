"""ReLoRA: the block is folded and started anew several times a task, so that their sum gains rank (arXiv 2307.05695).

    every N / cycles steps:  W <- W + s B A;  A Kaiming, B = 0;  moments cut down;  learning rate up again from 0

The rate follows the run's schedule times a warm-up after each restart ("jagged cosine"). Changed from the authors'
code: the moments of what is not restarted, such as a head's, are kept, and both moments of a value live or die together
(after a restart A has no gradient for a step, and a mean without its mean square would throw it far away).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rankwise.adapters import Change, banks_of
from rankwise.config import Count, Fraction, Share
from rankwise.learning.recipe import Method
from rankwise.seeds import generator
from rankwise.strategies import Counted, Host, Setting, courses
from rankwise.strategies.moments import KEEPS, Moments, cut
from rankwise.streams import Task


@dataclass(frozen=True)
class ReloraSettings:
    """How often a task's block is folded, and how training goes on."""

    cycles: Count = 3
    """Blocks a task, one after another. Paper: one for each 1000 to 5000 steps."""
    warmup: Fraction = 0.1
    """Fraction of a cycle in which the learning rate rises again, in all cycles of a task but the first."""
    moments: Literal["reset", "random", "magnitude"] = "magnitude"
    """What becomes of the rule's moments: all zero, zero but for a random share, zero but for the largest."""
    pruned: Share = 0.999
    """random, magnitude: share of each moment's entries that is set to zero."""


class Relora(Counted):
    """Folds and restarts the live block at the end of each cycle of a task but the last."""

    name = "relora"
    Settings = ReloraSettings
    writes = {"the factors' rule": "set"}
    needs_sequence = False
    folds = True

    def __init__(self, settings: ReloraSettings | None = None, seed: int = 0) -> None:
        """Start before the first step."""
        super().__init__(settings, seed)
        self.since = self.restarts = 0  # step of the task it restarted at, restarts of the run
        self.left: dict[str, Moments] = {}  # moments on their way to a new block; empty between steps

    def misfit(self, setting: Setting) -> str | None:
        """Refuse blocks that act by their task's name."""
        return "oracle = true: folded blocks act on every task; remove one of them" if setting.oracle else None

    def begin_task(self, host: Host, task: Task) -> None:
        """Start counting."""
        super().begin_task(host, task)
        self.since = 0

    def optimizer(self, host: Host, named: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer | None:
        """Take over what the sites learn: the run's own rule, with what is left of its moments and a warm-up."""
        own = {p for _, bank in banks_of(host.model).values() for p in bank.live.values()}
        taken = {name: p for name, p in named.items() if p in own}
        if not taken:
            return None
        self.rule, self.names = host.rule([{"params": list(taken.values()), "lr": host.train.lr}]), list(taken)
        for name, held in self.left.items():
            self.rule.state[taken[name]] = held
        self.left, total = {}, host.steps(host.task)
        self.rule.register_step_pre_hook(lambda rule, *_: self._warm(rule, total))
        return self.rule

    def changes(self, host: Host, step: int) -> Sequence[Change]:
        """Return the fold and the new block at the end of a cycle."""
        if self.done not in courses.cuts(host.steps(host.task), self.settings.cycles):
            return ()
        self.left = self._cut(host, step) if self.settings.moments != "reset" else {}
        self.since, self.restarts = self.done, self.restarts + 1
        live = [(name, b) for name, (_, bank) in banks_of(host.model).items() for b in bank.blocks if b.live]
        folds = [Change("fold", block.label, site=name) for name, block in live]
        return [*folds, *(Change("append", f"restart {self.restarts}", block.size, name) for name, block in live)]

    def _warm(self, rule: torch.optim.Optimizer, total: int) -> None:
        """Lower the learning rate of the next step, in a task of `total` steps, while a restarted block warms up."""
        rising = int(self.settings.warmup * total / self.settings.cycles)
        for group in rule.param_groups:
            group["lr"] *= courses.rise(self.done - self.since, rising) if self.since else 1.0

    def _cut(self, host: Host, step: int) -> dict[str, Moments]:
        """Return the moments of the rule, by the parameter's name, cut down."""
        keep, pruned, live = KEEPS[self.settings.moments], self.settings.pruned, host.live()
        draws = {name: generator(self.seed, "prune", step, name) for name in self.names}
        return {name: cut(self.rule, live[name], keep, pruned, rng) for name, rng in draws.items()}

    def state(self) -> dict[str, Tensor]:
        """Return the counters."""
        return {"counters": torch.tensor([self.done, self.since, self.restarts])}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        self.done, self.since, self.restarts = state["counters"].tolist()


METHOD = Method(
    slug="relora",
    title="ReLoRA: folded and restarted through each task",
    paper="arXiv 2307.05695 (ICLR 2024)",
    axis="growth and dynamics",
    dynamics=Relora,
    parameters="rank * (in + out) a site",
    peft="converted",
    refuses=("an oracle: what is folded acts on every task",),
)
