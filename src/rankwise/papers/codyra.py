"""CoDyRA: a LoRA whose ranks are chosen while it learns, folded into the weight after each task (arXiv 2412.01004).

    y = W x + B (w * A x);     A Kaiming, B = 0, w ~ N(0, 1) at the start of every task; no other scale
    step i of N:  AdamW on A, B, w;   if i > d N:  w <- T_kappa(w),  T_kappa(v) = sign(v) max(|v| - kappa, 0)
    task end:     ranks with w = 0 are dropped, W <- W + B diag(w) A, fresh A, B, w for the next task

kappa rises from 0 to kappa_max in `steps` equal steps over the rest of the task. No L1 term is in the loss. The random
start of w decides most of which ranks survive (an expected 8.2 of 16 by itself); `start_at = "one"` leaves it to the
data. `train.weight_decay`, 0 unless set, reaches w, too.
Changed from the authors' code: its threshold, which kills entries up to 2 kappa, is `threshold = "double"` here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from rankwise.adapters import Change, Site
from rankwise.adapters.gates import WEIGHT, RankWeights
from rankwise.adapters.ranks import THRESHOLDS, rank_weights, selecting
from rankwise.config import Count, Fraction, NotNegative
from rankwise.learning.recipe import Method
from rankwise.strategies import Counted, Host, courses
from rankwise.streams import Task


@dataclass(frozen=True)
class Importance(RankWeights):
    """A learned importance for each rank, exactly zero where the rank is not needed: the update is B diag(w) A.

    | symbol | shape | meaning |
    |---|---|---|
    | w | [R] | importances, of any sign |
    """

    start_at: Literal["normal", "one"] = "normal"
    """normal: N(0, 1), as published, so that half of the ranks die whatever the data; one: all alike."""

    def start(self, site: Site, rank: int, rng: Generator) -> dict[str, Tensor]:
        """Draw the importances of a new block."""
        return {WEIGHT: torch.ones(rank) if self.start_at == "one" else torch.randn(rank, generator=rng)}


@dataclass(frozen=True)
class CodyraSettings:
    """When and how hard importances are drawn to zero."""

    kappa_max: NotNegative = 5e-3
    """Largest threshold, taken off after each step. Raise it for fewer ranks; 0: none is pruned."""
    steps: Count = 50
    """Values the threshold takes on its way; a task with fewer steps to prune in does not reach the last."""
    dense: Fraction = 0.5
    """Fraction of a task's steps before pruning begins."""
    course: Literal["linear", "constant"] = "linear"
    """Ablation: constant takes kappa_max from the start of pruning."""
    threshold: Literal["soft", "double"] = "soft"
    """double: the authors' code, which also zeroes what the threshold leaves below kappa."""


class Codyra(Counted):
    """Draws the importances of ranks to zero, drops ranks of none, and folds the rest into the base."""

    name = "codyra"
    Settings = CodyraSettings
    reads = frozenset({"live"})
    writes = {"live": "set", "the values a task ends with": "set"}
    remembers = ("kept",)
    folds = True
    needs_live = ((WEIGHT,), "rank weights")
    needs_growth = ("append", "its block is folded after each task; set growth = 'append'")

    def __init__(self, settings: CodyraSettings | None = None, seed: int = 0) -> None:
        """Start before the first step."""
        super().__init__(settings, seed)
        self.kept = torch.empty(0, dtype=torch.long)  # ranks kept, one a task and site, task after task

    @torch.no_grad()
    def settle(self, host: Host, step: int) -> None:
        """Apply the threshold of this step to all importances."""
        kappa = self.kappa(self.done, host.steps(host.task))
        for w in rank_weights(host.model).values() if kappa else ():
            w.copy_(THRESHOLDS[self.settings.threshold](w, kappa))

    def kappa(self, i: int, total: int) -> float:
        """Return the threshold after step `i` (from 0) of `total`: kappas[index], 0 up to step dense * total."""
        dense, stairs = int(self.settings.dense * total), self.settings.steps
        if self.settings.course == "constant":
            return self.settings.kappa_max if i > dense else 0.0
        return self.settings.kappa_max * courses.stair(i, dense, total, stairs) / max(stairs - 1, 1)

    def end_task(self, host: Host, task: Task) -> Sequence[Change]:
        """Drop the ranks whose importance is zero, and fold the block."""
        left = {name: w.nonzero().flatten().tolist() for name, w in rank_weights(host.model).items()}
        self.kept = torch.cat([self.kept, torch.tensor([len(index) for index in left.values()])])
        return [*selecting(left), *(Change("fold", task.name, site=name) for name, index in left.items() if index)]


METHOD = Method(
    slug="codyra",
    title="CoDyRA: ranks chosen by a threshold, folded after each task",
    paper="arXiv 2412.01004 (Findings of EMNLP 2026)",
    axis="gate, dynamics and growth",
    gate=Importance,
    dynamics=Codyra,
    growth="append",
    parameters="rank * (in + out + 1) a site; none stored",
    peft="converted",
    defaults={"adapter": {"rank": 16}, "train": {"lr": 5e-4, "betas": [0.9, 0.9999]}},
)
