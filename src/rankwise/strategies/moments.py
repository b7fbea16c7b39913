"""Moments of an optimiser's rule, cut down before what comes next goes on with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor, nn

Moments = dict[str, Tensor]
"""What a rule keeps of one parameter, by its word there; counters, too."""
Keep = Callable[[Tensor, float, Generator], Tensor]
"""(a moment, the share to set to zero, generator) -> a mask of what stays, 1 or 0."""


def at_random(held: Tensor, pruned: float, rng: Generator) -> Tensor:
    """Return 1 for entries that stay, each with probability 1 - `pruned`, and 0 for the others."""
    return (torch.rand(held.shape, generator=rng) >= pruned).to(held)


def largest(held: Tensor, pruned: float, rng: Generator) -> Tensor:
    """Return 1 for the share 1 - `pruned` of entries of largest magnitude, and 0 for the others."""
    kept = held.numel() - int(pruned * held.numel())
    return torch.zeros_like(held).flatten().index_fill(0, held.abs().flatten().topk(kept).indices, 1.0).view_as(held)


KEEPS: Mapping[str, Keep] = {"random": at_random, "magnitude": largest}
"""Which entries of a moment stay, by its name in a config."""


def cut(rule: torch.optim.Optimizer, parameter: nn.Parameter, keep: Keep, pruned: float, rng: Generator) -> Moments:
    """Return the moments that `rule` keeps of `parameter`, cut down; counters stay.

    One mask for all moments of a parameter, by the first of them (the mean gradient): a mean that outlived its mean
    square would be divided by nothing.
    """
    state = {key: held for key, held in rule.state.get(parameter, {}).items() if isinstance(held, Tensor)}
    own = [key for key, held in state.items() if held.shape == parameter.shape]
    mask = keep(state[own[0]], pruned, rng) if own else torch.ones(())
    return {key: held * mask if key in own else held.clone() for key, held in state.items()}
