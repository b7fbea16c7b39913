"""How factors start: pure functions of a site, a rank and a generator, looked up by the name used in a config."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from rankwise.adapters.sites import Site

Draw = Callable[[int, int, Generator], Tensor]
"""(rows, columns, generator) -> a float32 matrix."""
Weight = Callable[[], Tensor]
"""Returns the base's weight at a site, [out, in] in float32, dequantised; asking for it costs time."""
Factors = Callable[[Site, int, Generator, Weight, float], tuple[Tensor, Tensor]]


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


@dataclass(frozen=True)
class Init:
    """How the factors of a new block start."""

    name: str
    """Its word in a config, under adapter.init."""
    factors: Factors
    """(site, ranks, generator, the base's weight there, scale of the update) -> A [rank, in], B [out, rank]."""
    residual: bool = False
    """True: what the new block computes is taken out of the base's weight, so that the sum is what it was."""
    bound: bool = False
    """True: it starts factors that only the method it comes with has between or beside A and B."""


def zero_up(draw: Draw) -> Factors:
    """Return the start at which A is drawn by `draw` and B is zero, so that a new block changes no bit."""
    return partial(_zero_up, draw)  # no closure, so that an adapted model can be pickled


def _zero_up(draw: Draw, site: Site, rank: int, rng: Generator, weight: Weight, scale: float) -> tuple[Tensor, Tensor]:
    return draw(rank, site.n_in, rng), torch.zeros(site.n_out, rank)


KAIMING = Init("kaiming", zero_up(kaiming))
INITS: Mapping[str, Init] = {
    init.name: init for init in (KAIMING, Init("gaussian", zero_up(gaussian)), Init("orthogonal", zero_up(orthogonal)))
}
"""The starts that no method brings along, by their name in a config."""
