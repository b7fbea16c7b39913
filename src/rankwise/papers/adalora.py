"""AdaLoRA: a budget of ranks moves to the sites where they matter most (arXiv 2303.10512).

    update = s P diag(w) Q;   P, Q ~ N(0, 0.02^2), w = 0 at the start
    loss + gamma mean(||P^T P - I|| + ||Q Q^T - I||)
    I = |v g| for each value v;  I' <- b1 I' + (1 - b1) I;  U <- b2 U + (1 - b2) |I - I'|;  score = I' U
    score of a rank: score(w_i) + mean score(P_i) + mean score(Q_i)
    budget(t) = b_T + (b_0 - b_T) (1 - (t - t_i) / (T - t_f - t_i))^3 ranks over all sites; the others' w is set to zero

P and Q are kept, so a rank may come back until the last t_f steps, in which the choice stays as it is. Changed from the
authors' code: times are fractions of a task, each of which runs through the budget anew; s does not follow the ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from rankwise.adapters import Init, Site, Weight, banks_of
from rankwise.adapters.gates import WEIGHT, RankWeights
from rankwise.config import Count, NotNegative
from rankwise.errors import ConflictError
from rankwise.learning.recipe import Method
from rankwise.strategies import Host, Strategy, Term
from rankwise.streams import Task

Share = Annotated[float, Field(ge=0, lt=1)]
SPREAD = 0.02  # standard deviation of P and Q at the start


@dataclass(frozen=True)
class Strengths(RankWeights):
    """The strength of each rank, zero at the start and wherever the budget does not reach: s P diag(w) Q.

    | symbol | shape | meaning |
    |---|---|---|
    | w | [R] | strengths, in the place of singular values |
    """

    def start(self, site: Site, rank: int, rng: Generator) -> dict[str, Tensor]:
        """Return zeros."""
        return {WEIGHT: torch.zeros(rank)}


@dataclass(frozen=True)
class AdaloraSettings:
    """The budget and its course, and what scores a rank."""

    target: Annotated[float, Field(gt=0, le=1)] = 2 / 3
    """Share of all ranks that is left in the end (12 -> 8 on average). Lower: fewer ranks."""
    initial: Share = 0.1
    """t_i / T: fraction of a task's steps with all ranks."""
    final: Share = 0.3
    """t_f / T: fraction of a task's steps, its last, in which the choice stays as it is."""
    every: Count = 1
    """Steps between two choices."""
    beta1: Share = 0.85
    """b1, of the running mean of importance."""
    beta2: Share = 0.85
    """b2, of the running mean of its spread."""
    gamma: NotNegative = 0.5
    """Weight of the orthogonality of P and Q. Paper: 0.1."""

    def __post_init__(self) -> None:
        """Refuse a budget without time to fall."""
        if self.initial + self.final >= 1:
            raise ValueError("initial + final must stay below 1")


class Adalora(Strategy):
    """Scores ranks in every step and zeroes the strengths of those that the budget does not reach."""

    name = "adalora"
    Settings = AdaloraSettings
    reads = frozenset({"gradients", "live"})
    writes = {"loss": "add", "live": "set"}
    needs_adapter = True
    needs_sequence = False

    def __init__(self, settings: AdaloraSettings | None = None, seed: int = 0) -> None:
        """Start before the first step."""
        super().__init__(settings or AdaloraSettings(), seed)
        self.done, self.means, self.dropped = 0, {}, torch.empty(0, dtype=torch.bool)

    def begin_task(self, host: Host, task: Task) -> None:
        """Begin with all ranks and no scores."""
        if not all({"A", "B", WEIGHT} <= set(bank.live) for _, bank in banks_of(host.model).values()):
            raise ConflictError("dynamics 'adalora' and an adapter without P, w and Q: choose the method of that name")
        self.done, self.means = 0, {}
        self.dropped = torch.zeros(sum(map(len, strengths(host.model))), dtype=torch.bool)

    def terms(self, host: Host, step: int) -> Sequence[Term]:
        """Return the orthogonality of P and Q."""
        model, gamma = host.model, self.settings.gamma
        return [Term("orthogonality", None, lambda _: skewness(model), gamma)] if gamma else []

    @torch.no_grad()
    def settle(self, host: Host, step: int) -> None:
        """Score the ranks, choose those that stay, and zero the strengths of the others."""
        total, t = host.steps(host.task), self.done + 1
        first, last = self.times(total)
        if t <= last:
            sites = [(name, bank.live) for name, (_, bank) in banks_of(host.model).items()]
            scores = torch.cat([self._scores(name, live).cpu() for name, live in sites])
            if t <= first or ((t - first) % self.settings.every and t < last):
                return
            lowest = scores.argsort(stable=True)[: len(scores) - self.budget(t, total, len(scores))]
            self.dropped = torch.zeros(len(scores), dtype=torch.bool).index_fill(0, lowest, True)
        live = strengths(host.model)
        for w, dropped in zip(live, self.dropped.split([len(w) for w in live]), strict=True):
            w.masked_fill_(dropped.to(w.device), 0.0)

    def follow(self, host: Host, step: int) -> None:
        """Count the step."""
        self.done += 1

    def times(self, total: int) -> tuple[int, int]:
        """Return t_i and T - t_f for a task of `total` steps."""
        return int(self.settings.initial * total), total - int(self.settings.final * total)

    def budget(self, t: int, total: int, ranks: int) -> int:
        """Return how many of `ranks` may act after step `t` (from 1) of `total`."""
        first, last = self.times(total)
        if t <= first:
            return ranks
        least, left = self.settings.target * ranks, max(1 - (t - first) / max(last - first, 1), 0.0)
        return round(least + (ranks - least) * left**3)

    def _scores(self, site: str, live: nn.ParameterDict) -> Tensor:
        """Return the score of each rank of a site, after taking this step's gradients into the running means."""
        score = {name: self._score(f"{site}/{name}", live[name]) for name in ("A", "B", WEIGHT)}
        return score[WEIGHT] + score["A"].mean(1) + score["B"].mean(0)

    def _score(self, name: str, parameter: nn.Parameter) -> Tensor:
        """Return I' U of each value."""
        now = torch.zeros_like(parameter) if parameter.grad is None else (parameter * parameter.grad).abs()
        zero, (b1, b2) = torch.zeros_like(now), (self.settings.beta1, self.settings.beta2)
        mean = b1 * self.means.get(f"{name}.mean", zero).to(now) + (1 - b1) * now
        spread = b2 * self.means.get(f"{name}.spread", zero).to(now) + (1 - b2) * (now - mean).abs()
        self.means.update({f"{name}.mean": mean, f"{name}.spread": spread})
        return mean * spread

    def state(self) -> dict[str, Tensor]:
        """Return counter, choice and running means."""
        return {"done": torch.tensor(self.done), "dropped": self.dropped, **self.means}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        self.done, self.dropped = int(state["done"]), state["dropped"].clone()
        self.means = {name: tensor.clone() for name, tensor in state.items() if name not in ("done", "dropped")}


def strengths(model: nn.Module) -> list[nn.Parameter]:
    """Return the live strengths of every site."""
    return [bank.live[WEIGHT] for _, bank in banks_of(model).values()]


def skewness(model: nn.Module) -> Tensor:
    """Return the mean over all P and Q of ||P^T P - I|| and ||Q Q^T - I||: a scalar."""
    squares = [m for _, bank in banks_of(model).values() for m in (bank.live["A"], bank.live["B"].T)]
    return torch.stack([(m @ m.T - torch.eye(len(m)).to(m)).norm() for m in squares]).mean()


def factors(site: Site, rank: int, rng: Generator, weight: Weight, scale: float) -> tuple[Tensor, Tensor]:
    """Draw Q [r, in] and P [out, r] with standard deviation 0.02."""
    q, p = torch.randn(rank, site.n_in, generator=rng), torch.randn(site.n_out, rank, generator=rng)
    return SPREAD * q, SPREAD * p


METHOD = Method(
    slug="adalora",
    title="AdaLoRA: ranks go where they matter most",
    paper="arXiv 2303.10512 (ICLR 2023)",
    axis="gate and dynamics",
    gate=Strengths,
    init=Init("adalora", factors),
    dynamics=Adalora,
    parameters="rank * (in + out + 1) a site",
    peft="converted",
    defaults={"adapter": {"rank": 12}},
)
