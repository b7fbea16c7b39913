"""LoRA-XS: both factors are fixed to the weight's strongest directions, a small core between learns (arXiv 2405.17604).

    y = W x + s B R A x;    B = U_r,  A = S_r V_r (so that B A is the best approximation of W of rank r),  R [r, r]

The singular values lie on the input's side, so equal steps of R move W by unequal amounts: it needs a learning rate of
its own, larger than LoRA's. The base is not changed at the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from rankwise.adapters import Blocks, Context, Init, Site, Spec, Weight
from rankwise.adapters.bank import BLOCK
from rankwise.adapters.spectrum import truncated
from rankwise.config import NotNegative
from rankwise.learning.recipe import Method


@dataclass(frozen=True)
class Core:
    """A learned square matrix for each block: the update is s B R A.

    | symbol | shape | meaning |
    |---|---|---|
    | R | [r, r] | core of a block; all blocks have the same rank |
    """

    linear: ClassVar[bool] = True
    sigma: NotNegative = 1e-5
    """Standard deviation of R at the start; 0 starts at the base to the bit."""

    def specs(self, site: Site) -> Mapping[str, Spec]:
        """Return the place of the cores."""
        return {"R": Spec((BLOCK, "rank", "core"), "core")}

    def start(self, site: Site, rank: int, rng: Generator) -> dict[str, Tensor]:
        """Draw the core of a new block, next to nothing."""
        return {"R": self.sigma * torch.randn(rank, rank, generator=rng)}

    def __call__(self, z: Tensor, x: Tensor, blocks: Blocks, context: Context, site: Site, training: bool) -> Tensor:
        """Return R z, each block by its own core."""
        pieces = zip(z.split(list(blocks.sizes), -1), blocks["R"].to(z.dtype), strict=True)
        return torch.cat([part @ core.T for part, core in pieces], -1)


def factors(site: Site, rank: int, rng: Generator, weight: Weight, scale: float) -> tuple[Tensor, Tensor]:
    """Return A = S_r V_r [r, in] and B = U_r [out, r]."""
    strong = truncated(weight(), rank, site.name)
    return strong.s[:, None] * strong.vh, strong.u


METHOD = Method(
    slug="lora-xs",
    title="LoRA-XS: a small core between fixed directions of the weight",
    paper="arXiv 2405.17604 (ECAI 2025)",
    axis="init and gate",
    gate=Core,
    init=Init("lora-xs", factors, bound=True),
    identity_at_creation="moves",
    identity_at_append="moves",
    parameters="rank * rank a site; rank * (rank + in + out) stored",
    peft="converted",
    refuses=("more ranks than the weight has singular values", "selecting single ranks of a block"),
    defaults={"adapter": {"form": {"fixed": ["A", "B"]}}, "train": {"lr": 4e-3}},
)
