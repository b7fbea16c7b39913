"""Ranks that have a weight each (`gates.RankWeights`): where the weights are, and what sets some of them to zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from rankwise.adapters.gates import WEIGHT
from rankwise.adapters.growth import Change
from rankwise.adapters.model import banks_of


def rank_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the live weights w [r] of every site, by the site's name."""
    return {name: bank.live[WEIGHT] for name, (_, bank) in banks_of(model).items()}


def lowest(scores: Tensor, count: int) -> Tensor:
    """Return which of the scores [R] are the `count` lowest, the earlier of equal ones first: [R] bool."""
    dropped = scores.argsort(stable=True)[:count]
    return torch.zeros(len(scores), dtype=torch.bool).index_fill(0, dropped, True)


@torch.no_grad()
def silence(model: nn.Module, dropped: Tensor) -> None:
    """Set to zero the weights of the ranks that are marked in `dropped` [R] bool, over all sites in their order."""
    live = [*rank_weights(model).values()]
    for w, marks in zip(live, dropped.split([len(w) for w in live]), strict=True):
        w.masked_fill_(marks.to(w.device), 0.0)


def selecting(left: Mapping[str, Iterable[int]]) -> list[Change]:
    """Return the changes after which each site has the ranks `left`, by its name, alone."""
    return [Change("select", site=name, index=tuple(index)) for name, index in left.items()]


def soft(v: Tensor, kappa: float) -> Tensor:
    """Return sign(v) max(|v| - kappa, 0)."""
    return v.sign() * (v.abs() - kappa).clamp_min(0)


def double(v: Tensor, kappa: float) -> Tensor:
    """Return sign(v) (|v| - kappa) where |v| >= 2 kappa, v where |v| is kappa itself, and 0 elsewhere."""
    return torch.where(v.abs() >= 2 * kappa, soft(v, kappa), torch.where(v.abs() == kappa, v, 0.0))


THRESHOLDS: Mapping[str, Callable[[Tensor, float], Tensor]] = {"soft": soft, "double": double}
"""What draws small weights to zero, by its name in a config."""
