"""Which stacks help an example, measured: a greedy search over combinations of domains, all examples at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Losses = Callable[[Tensor], Tensor]
"""Weights of the domains for each example [n, D] -> each example's loss [n]."""


def discover(losses: Losses, count: int, domains: int, threshold: float) -> tuple[Tensor, Tensor]:
    """Return (the chosen domains [count, D] as bool, the loss with them [count]).

    Starts from the best single domain where that beats none at all, then goes over the others again and again and adds
    each that lowers the loss by more than `threshold`, until a whole pass adds nothing (section 6 of the paper, a-d).
    So no example ends above its loss without any domain, nor above that with its best single one.
    """
    none = losses(torch.zeros(count, domains))
    singles = torch.stack([losses(one_hot(count, domains, d)) for d in range(domains)], 1)
    least, first = singles.min(1)
    alone = least < none
    chosen = one_hot(count, domains, first).bool() & alone[:, None]
    best, grew = torch.where(alone, least, none), True
    while grew:
        grew = False
        for d in range(domains):
            trial = chosen.clone()
            trial[:, d] = True
            loss = losses(trial.float())
            better = ~chosen[:, d] & (loss < best - threshold)
            chosen[:, d] |= better
            best = torch.where(better, loss, best)
            grew = grew or bool(better.any())
    return chosen, best


def targets(chosen: Tensor, domain: int, prior: float) -> Tensor:
    """Return what the router shall answer [n, D]: the measured choice, drawn by `prior` to the examples' own domain."""
    return ((1 - prior) * chosen.float() + prior * one_hot(len(chosen), chosen.shape[1], domain)).clamp(0, 1)


def one_hot(count: int, domains: int, which: int | Tensor) -> Tensor:
    """Return float32 [count, domains] with a 1 at `which` (one for all rows, or one a row)."""
    index = torch.as_tensor(which).expand(count)
    return torch.nn.functional.one_hot(index, domains).float()
