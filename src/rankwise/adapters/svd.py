"""A pair in the form of a singular value decomposition, s P diag(w) Q, that is learnt: A = Q, B = P, strengths w."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from rankwise.adapters.gates import WEIGHT, RankWeights
from rankwise.adapters.inits import Weight
from rankwise.adapters.model import banks_of
from rankwise.adapters.sites import Site

SPREAD = 0.02
"""Standard deviation of P and Q at the start."""
TRIPLE = ("A", "B", WEIGHT)
"""The tensors Q, P and w, by their names in a bank."""


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


def factors(site: Site, rank: int, rng: Generator, weight: Weight, scale: float) -> tuple[Tensor, Tensor]:
    """Draw Q [r, in] and P [out, r] with standard deviation 0.02."""
    q, p = torch.randn(rank, site.n_in, generator=rng), torch.randn(site.n_out, rank, generator=rng)
    return SPREAD * q, SPREAD * p


def skewness(model: nn.Module) -> Tensor:
    """Return the mean over all live P and Q of ||P^T P - I|| and ||Q Q^T - I||: a scalar."""
    squares = [m for _, bank in banks_of(model).values() for m in (bank.live["A"], bank.live["B"].T)]
    return torch.stack([(m @ m.T - torch.eye(len(m)).to(m)).norm() for m in squares]).mean()
