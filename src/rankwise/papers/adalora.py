"""AdaLoRA: a budget of ranks moves to the sites where they matter most (arXiv 2303.10512).

    update = s P diag(w) Q;   P, Q ~ N(0, 0.02^2), w = 0 at the start
    loss + gamma mean(||P^T P - I||, ||Q Q^T - I||) over all sites; each norm as it is, as in the authors' code
    I = |v g| for each value v;  I' <- b1 I' + (1 - b1) I;  U <- b2 U + (1 - b2) |I - I'|;  score = I' U
    score of a rank: score(w_i) + mean score(P_i) + mean score(Q_i)
    budget(t) = b_T + (b_0 - b_T) (1 - (t - t_i) / (T - t_f - t_i))^3 ranks over all sites; the others' w is set to zero

P and Q are kept, so a rank may come back until the last t_f steps, in which the choice stays as it is. Changed from the
authors' code: times are fractions of a task, each of which runs through the budget anew; s does not follow the ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.adapters import Init
from rankwise.adapters.ranks import lowest, rank_weights, silence
from rankwise.adapters.svd import TRIPLE, Strengths, factors, skewness
from rankwise.config import Count, Fraction, NotNegative, Portion
from rankwise.learning.recipe import Method
from rankwise.strategies import Counted, Host, Sensitivity, Term, courses
from rankwise.streams import Task


@dataclass(frozen=True)
class AdaloraSettings:
    """The budget and its course, and what scores a rank."""

    target: Portion = 2 / 3
    """Share of all ranks that is left in the end (12 -> 8 on average). Lower: fewer ranks."""
    initial: Fraction = 0.1
    """t_i / T: fraction of a task's steps with all ranks."""
    final: Fraction = 0.3
    """t_f / T: fraction of a task's steps, its last, in which the choice stays as it is."""
    every: Count = 1
    """Steps between two choices."""
    beta1: Fraction = 0.85
    """b1, of the running mean of importance."""
    beta2: Fraction = 0.85
    """b2, of the running mean of its spread."""
    gamma: NotNegative = 0.5
    """Weight of the orthogonality of P and Q. Paper: 0.1."""

    def __post_init__(self) -> None:
        """Refuse a budget without time to fall."""
        if self.initial + self.final >= 1:
            raise ValueError("initial + final must stay below 1")


class Adalora(Counted):
    """Scores ranks in every step and zeroes the strengths of those that the budget does not reach."""

    name = "adalora"
    Settings = AdaloraSettings
    reads = frozenset({"gradients", "live"})
    writes = {"loss": "add", "live": "set", "the values a task ends with": "set"}
    needs_sequence = False
    needs_live = (TRIPLE, "P, w and Q")
    remembers = ("dropped",)

    def __init__(self, settings: AdaloraSettings | None = None, seed: int = 0) -> None:
        """Start before the first step."""
        super().__init__(settings, seed)
        self.sensitivity = Sensitivity(self.settings.beta1, self.settings.beta2)
        self.dropped = torch.empty(0, dtype=torch.bool)  # over all sites, one after another

    def begin_task(self, host: Host, task: Task) -> None:
        """Begin with all ranks and no scores."""
        super().begin_task(host, task)
        self.sensitivity.restore({})
        self.dropped = torch.zeros(sum(map(len, rank_weights(host.model).values())), dtype=torch.bool)

    def terms(self, host: Host, step: int) -> Sequence[Term]:
        """Return the orthogonality of P and Q."""
        model, gamma = host.model, self.settings.gamma
        return [Term("orthogonality", None, lambda _: skewness(model), gamma)] if gamma else []

    def settle(self, host: Host, step: int) -> None:
        """Score the ranks, choose those that stay, and zero the strengths of the others."""
        first, last = courses.stretch(host.steps(host.task), self.settings.initial, self.settings.final)
        t = self.done + 1
        if t <= last:
            scores = self.sensitivity.take_all(host.model)
            if t <= first or ((t - first) % self.settings.every and t < last):
                return
            self.dropped = lowest(scores, len(scores) - self.budget(t, (first, last), len(scores)))
        silence(host.model, self.dropped)

    def budget(self, t: int, between: tuple[int, int], ranks: int) -> int:
        """Return how many of `ranks` may act after step `t` (from 1), where they get fewer `between` two steps."""
        least = self.settings.target * ranks
        return round(least + (ranks - least) * courses.left(t, *between) ** 3)

    def state(self) -> dict[str, Tensor]:
        """Return counter, choice and running means."""
        return {**super().state(), **self.sensitivity.means}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        super().restore(state)
        self.sensitivity.restore({name: t for name, t in state.items() if name not in ("done", "dropped")})


METHOD = Method(
    slug="adalora",
    title="AdaLoRA: ranks go where they matter most",
    paper="arXiv 2303.10512 (ICLR 2023)",
    axis="gate and dynamics",
    gate=Strengths,
    init=Init("adalora", factors, bound=True),
    dynamics=Adalora,
    parameters="rank * (in + out + 1) a site",
    peft="converted",
    defaults={"adapter": {"rank": 12}},
)
