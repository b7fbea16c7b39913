"""ReLoRA: the block is folded and started anew several times a task, so that their sum gains rank (arXiv 2307.05695).

    every N / cycles steps:  W <- W + s B A;  A Kaiming, B = 0;  moments cut down;  learning rate up again from 0

The rate follows the run's schedule times a warm-up after each restart ("jagged cosine"). Changed from the authors'
code: the moments of what is not restarted, such as a head's, are kept, and both moments of a value live or die together
(after a restart A has no gradient for a step, and a mean without its mean square would throw it far away).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from rankwise.adapters import Change, banks_of
from rankwise.config import Count
from rankwise.learning.recipe import Method
from rankwise.seeds import generator
from rankwise.strategies import Host, Setting, Strategy
from rankwise.streams import Task


@dataclass(frozen=True)
class ReloraSettings:
    """How often a task's block is folded, and how training goes on."""

    cycles: Count = 3
    """Blocks a task, one after another. Paper: one for each 1000 to 5000 steps."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Fraction of a cycle in which the learning rate rises again, in all cycles of a task but the first."""
    moments: Literal["reset", "random", "magnitude"] = "magnitude"
    """What becomes of the rule's moments: all zero, zero but for a random share, zero but for the largest."""
    pruned: Annotated[float, Field(ge=0, le=1)] = 0.999
    """random, magnitude: share of each moment's entries that is set to zero."""


class Relora(Strategy):
    """Folds and restarts the live block at the end of each cycle of a task but the last."""

    name = "relora"
    Settings = ReloraSettings
    writes = {"the factors' rule": "set"}
    needs_adapter = True
    needs_sequence = False

    def __init__(self, settings: ReloraSettings | None = None, seed: int = 0) -> None:
        """Start before the first step."""
        super().__init__(settings or ReloraSettings(), seed)
        self.done = self.since = self.restarts = 0  # steps of the task, the one it restarted at, restarts of the run
        self.left: dict[str, dict[str, Tensor]] = {}  # moments on their way to a new block; empty between steps

    def misfit(self, setting: Setting) -> str | None:
        """Refuse blocks that act by their task's name."""
        return "oracle = true: folded blocks act on every task; remove one of them" if setting.oracle else None

    def begin_task(self, host: Host, task: Task) -> None:
        """Start counting."""
        self.done = self.since = 0

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

    def follow(self, host: Host, step: int) -> None:
        """Count the step."""
        self.done += 1

    def changes(self, host: Host, step: int) -> Sequence[Change]:
        """Return the fold and the new block at the end of a cycle."""
        cycles, total = self.settings.cycles, host.steps(host.task)
        if self.done not in {round(i * total / cycles) for i in range(1, cycles)} - {total}:
            return ()
        self.left = self._cut(host, step) if self.settings.moments != "reset" else {}
        self.since, self.restarts = self.done, self.restarts + 1
        live = [(name, b) for name, (_, bank) in banks_of(host.model).items() for b in bank.blocks if b.live]
        folds = [Change("fold", block.label, site=name) for name, block in live]
        return [*folds, *(Change("append", f"restart {self.restarts}", block.size, name) for name, block in live)]

    def warm(self, total: int) -> float:
        """Return the factor on the learning rate of the next step, in a task of `total` steps."""
        if not self.since:
            return 1.0
        rising = int(self.settings.warmup * total / self.settings.cycles)
        return min((self.done - self.since + 1) / (rising + 1), 1.0)

    def _warm(self, rule: torch.optim.Optimizer, total: int) -> None:
        for group in rule.param_groups:
            group["lr"] *= self.warm(total)

    def _cut(self, host: Host, step: int) -> dict[str, dict[str, Tensor]]:
        """Return the moments of the rule, by the parameter's name, cut down; counters stay.

        One mask for all moments of a parameter, by the first of them (the mean gradient): a mean that outlived its mean
        square would be divided by nothing.
        """
        kept, live = KEEPS[self.settings.moments], host.live()
        found: dict[str, dict[str, Tensor]] = {}
        for name in self.names:
            state = {k: v for k, v in self.rule.state.get(live[name], {}).items() if isinstance(v, Tensor)}
            own = [key for key, held in state.items() if held.shape == live[name].shape]
            rng = generator(self.seed, "prune", step, name)
            mask = kept(state[own[0]], self.settings.pruned, rng) if own else torch.ones(())
            found[name] = {key: held * mask if key in own else held.clone() for key, held in state.items()}
        return found

    def state(self) -> dict[str, Tensor]:
        """Return the counters."""
        return {"counters": torch.tensor([self.done, self.since, self.restarts])}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        self.done, self.since, self.restarts = state["counters"].tolist()


def at_random(held: Tensor, pruned: float, rng: Generator) -> Tensor:
    """Return 1 for entries that stay, each with probability 1 - `pruned`, and 0 for the others."""
    return (torch.rand(held.shape, generator=rng) >= pruned).to(held)


def largest(held: Tensor, pruned: float, rng: Generator) -> Tensor:
    """Return 1 for the share 1 - `pruned` of entries of largest magnitude, and 0 for the others."""
    kept = held.numel() - int(pruned * held.numel())
    return torch.zeros_like(held).flatten().index_fill(0, held.abs().flatten().topk(kept).indices, 1.0).view_as(held)


KEEPS: Mapping[str, Callable[[Tensor, float, Generator], Tensor]] = {"random": at_random, "magnitude": largest}

METHOD = Method(
    slug="relora",
    title="ReLoRA: folded and restarted through each task",
    paper="arXiv 2307.05695 (ICLR 2024)",
    axis="growth and dynamics",
    dynamics=Relora,
    edits_base=True,
    parameters="rank * (in + out) a site",
    peft="converted",
    refuses=("an oracle: what is folded acts on every task",),
)
