"""LoHa: the elementwise product of two low-rank matrices, of up to rank^2 ranks (FedPara, arXiv 2108.06098).

    y = W x + s ((B1 A1) * (B2 A2)) x;    * elementwise;    B2 = 0 at the start

| symbol | shape | meaning |
|---|---|---|
| A1, A2 | [r, in] | down factors, ~ N(0, 1) |
| B1, B2 | [out, r] | up factors; B1 ~ N(0, 0.1^2), B2 zero |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from rankwise.adapters import Site, Spec, Weight
from rankwise.adapters.dense import Dense
from rankwise.learning.recipe import Method


@dataclass(frozen=True)
class Hadamard(Dense):
    """dW = s (B1 A1) * (B2 A2), elementwise, with B2 alone starting at zero (with both there would be no gradient).

    The other factors start as in LyCORIS: B1 ~ N(0, 0.1^2), A1 and A2 ~ N(0, 1).
    """

    def specs(self, site: Site) -> Mapping[str, Spec]:
        """Return both pairs of factors."""
        down, up = Spec(("rank", "in"), "down"), Spec(("out", "rank"), "up")
        return {"A1": down, "B1": up, "A2": down, "B2": up}

    def start(self, site: Site, rank: int, rng: Generator, weight: Weight) -> dict[str, Tensor]:
        """Return the starting values; see the class."""
        a1, a2 = (torch.randn(rank, site.n_in, generator=rng) for _ in range(2))
        b1 = 0.1 * torch.randn(site.n_out, rank, generator=rng)
        return {"A1": a1, "B1": b1, "A2": a2, "B2": torch.zeros(site.n_out, rank)}

    def product(self, block: Mapping[str, Tensor], site: Site) -> Tensor:
        """Return (B1 A1) * (B2 A2)."""
        return (block["B1"] @ block["A1"]) * (block["B2"] @ block["A2"])


METHOD = Method(
    slug="loha",
    title="LoHa: an elementwise product of two low-rank matrices",
    paper="arXiv 2108.06098 (ICLR 2022); as an adapter in arXiv 2309.14859",
    axis="form: the weight's update",
    form=Hadamard,
    parameters="2 * rank * (in + out) a site",
    peft="merged",
    refuses=(
        "export as a LoRA: the update has up to rank^2 ranks",
        "adapter.init: four factors start in a way of their own",
    ),
)
