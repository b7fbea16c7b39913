"""How factors start: pure functions of a site, a rank and a generator, looked up by the name used in a config."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor

from rankwise.errors import UsageError, nearest

Init = Callable[[int, int, Generator], Tensor]
"""(rows, columns, generator) -> a float32 matrix."""


def kaiming(rows: int, columns: int, rng: Generator) -> Tensor:
    """Draw uniformly in +-1/sqrt(columns): torch's default for a linear layer (Kaiming with a = sqrt(5))."""
    return torch.empty(rows, columns).uniform_(-1 / math.sqrt(columns), 1 / math.sqrt(columns), generator=rng)


def gaussian(rows: int, columns: int, rng: Generator) -> Tensor:
    """Draw normally with standard deviation 1/rows, as PEFT's init_lora_weights = "gaussian" does."""
    return torch.empty(rows, columns).normal_(0.0, 1 / rows, generator=rng)


def orthogonal(rows: int, columns: int, rng: Generator) -> Tensor:
    """Return orthonormal rows (or columns, if there are more rows than columns), uniform over such frames."""
    tall = torch.empty(max(rows, columns), min(rows, columns)).normal_(0.0, 1.0, generator=rng)
    q, r = torch.linalg.qr(tall)
    q = q * torch.sign(torch.diagonal(r))
    return q.T.contiguous() if rows < columns else q


def zeros(rows: int, columns: int, rng: Generator) -> Tensor:
    """Return zeros: the up factor's start, so that a new block changes nothing by itself."""
    return torch.zeros(rows, columns)


INITS: Mapping[str, Init] = {"kaiming": kaiming, "gaussian": gaussian, "orthogonal": orthogonal}
"""Starts of the down factor, by their name in a config."""


def init_named(name: str) -> Init:
    """Return the init called `name`, or raise UsageError with the nearest name."""
    if name not in INITS:
        raise UsageError(f"adapter.init = {name!r}: no such init; {nearest(name, INITS)}")
    return INITS[name]
