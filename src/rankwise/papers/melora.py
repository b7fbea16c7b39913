"""MELoRA: an ensemble of mini LoRAs on blocks of the coordinates, more rank for the same parameters (2402.17263).

    y = W x + s blockdiag(B_1 A_1, ..., B_E A_E) x

Mini LoRA e reads the e-th share of the input's coordinates and writes the e-th share of the output's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from rankwise.adapters import Blocks, Branch, Context, Site, Spec, Weight
from rankwise.adapters.inits import kaiming
from rankwise.adapters.sites import ALGEBRAS
from rankwise.config import Count
from rankwise.errors import UsageError
from rankwise.learning.recipe import Method


@dataclass(frozen=True)
class BlockDiagonal(Branch):
    """dW = s blockdiag(B_1 A_1, ..., B_E A_E): E mini LoRAs of rank / E ranks, each on its share of the coordinates.

    | tensor | shape | start |
    |---|---|---|
    | A | [rank, in / E]; rows of A_1, then of A_2, ... | Kaiming |
    | B | [out / E, rank] | zero |
    | group | [rank] | the mini LoRA each rank belongs to; does not learn |
    """

    thin: ClassVar[bool] = True
    groups: Count = 2
    """E, mini LoRAs; must divide the rank and both sizes of every site."""

    def __post_init__(self) -> None:
        """Refuse a start of whole factors."""
        self.refuse_init()

    def specs(self, site: Site) -> Mapping[str, Spec]:
        """Return both factors, without the zeros between the blocks."""
        if site.n_in % self.groups or site.n_out % self.groups:
            raise UsageError(
                f"adapter.form.groups = {self.groups} must divide both sizes of every site, and {site.name!r} has "
                f"{site.n_in} inputs and {site.n_out} outputs; put it into adapter.exclude or choose other groups"
            )
        down, up = Spec(("rank", "in / groups"), "down"), Spec(("out / groups", "rank"), "up")
        return {"A": down, "B": up, "group": Spec(("rank",), "index", learns=False)}

    def start(self, site: Site, rank: int, rng: Generator, weight: Weight) -> dict[str, Tensor]:
        """Return the starting values; see the class."""
        if rank % self.groups:
            raise UsageError(f"adapter.rank = {rank} is no multiple of adapter.form.groups = {self.groups}")
        group = torch.arange(rank) * self.groups // rank
        a = kaiming(rank, site.n_in // self.groups, rng)
        return {"A": a, "B": torch.zeros(site.n_out // self.groups, rank), "group": group}

    def delta(
        self, x: Tensor, y: Tensor, blocks: Blocks, context: Context, site: Site, module: nn.Module, training: bool
    ) -> Tensor:
        """Return dW x."""
        a, b = self._factors(blocks)
        x = self.dropped(x.to(a.dtype), training) if x.is_floating_point() else x
        algebra = ALGEBRAS[site.kind]
        return algebra.up(algebra.down(x, a, module, site), b) * (self.scale * site.scale)

    def plain(self, blocks: Blocks, site: Site) -> tuple[Tensor, Tensor, float]:
        """Return the factors with the zeros between the blocks: a plain LoRA of the total rank."""
        a, b = self._factors(blocks)
        return a.detach(), b.detach(), self.scale * site.scale

    def _factors(self, blocks: Blocks) -> tuple[Tensor, Tensor]:
        """Return A [R, in] and B [out, R] with the zeros between the blocks."""
        a, b = blocks["A"], blocks["B"]
        mask = nn.functional.one_hot(blocks["group"], self.groups).to(a)  # [R, E]
        return (mask[:, :, None] * a[:, None]).flatten(1), (mask.T[:, None] * b[None]).flatten(0, 1)


METHOD = Method(
    slug="melora",
    title="MELoRA: mini LoRAs on blocks of the coordinates",
    paper="arXiv 2402.17263 (ACL 2024)",
    axis="form: the weight's update",
    form=BlockDiagonal,
    kinds=("linear", "transposed"),
    parameters="rank * (in + out) / groups a site",
    peft="converted",
    refuses=("sites or ranks that the number of mini LoRAs does not divide",),
)
