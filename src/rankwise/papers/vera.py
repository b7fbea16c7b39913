"""VeRA: one random pair of factors for the whole model, and two learned vectors a site (arXiv 2310.11454).

    y = W x + s diag(b) B diag(d) A x;    b = 0, d = 0.1 at the start

A and B are random, shared by all sites and never learnt: only b and d are, so ranks cost next to nothing. The paper has
no s; it is 1 unless `adapter.scale` says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from rankwise.adapters import Blocks, Branch, Context, Site, Spec, Weight
from rankwise.adapters.bank import BLOCK
from rankwise.adapters.sites import ALGEBRAS
from rankwise.errors import UsageError
from rankwise.learning.recipe import Method


@dataclass(frozen=True)
class SharedRandom(Branch):
    """dW = s diag(b) B diag(d) A with A, B drawn once for the largest site and cut to the shape of each.

    | tensor | shape | start |
    |---|---|---|
    | A, B | [r, largest in], [largest out, r] | Kaiming (gain sqrt 2); never learn; one pair for all sites and blocks |
    | d | [rank] | `d_initial` |
    | b | [out], one a block | zero |
    """

    thin: ClassVar[bool] = True
    d_initial: float = 0.1
    """Start of d. Paper: 0.1."""

    def __post_init__(self) -> None:
        """Refuse a start of A and B: they are drawn once."""
        self.refuse_init()

    def specs(self, site: Site) -> Mapping[str, Spec]:
        """Return the two vectors."""
        return {"d": Spec(("rank",), "gate"), "b": Spec((BLOCK, "out"), "gate")}

    def start(self, site: Site, rank: int, rng: Generator, weight: Weight) -> dict[str, Tensor]:
        """Return the starting values of the vectors."""
        return {"d": torch.full((rank,), self.d_initial), "b": torch.zeros(site.n_out)}

    def shared(self, widest: tuple[int, int], rank: int, rng: Generator) -> Mapping[str, Tensor]:
        """Draw the pair."""
        draws = {"A": torch.empty(rank, widest[0]), "B": torch.empty(widest[1], rank)}
        return {name: t.uniform_(-bound(t), bound(t), generator=rng) for name, t in draws.items()}

    def plain(self, blocks: Blocks, site: Site) -> tuple[Tensor, Tensor, float]:
        """Return the factors of the plain LoRA that computes the same."""
        a, b = self._factors(blocks, site)
        return a.detach(), b.detach(), self.scale * site.scale

    def delta(
        self, x: Tensor, y: Tensor, blocks: Blocks, context: Context, site: Site, module: nn.Module, training: bool
    ) -> Tensor:
        """Return s diag(b) B diag(d) A x, summed over blocks."""
        a, b = self._factors(blocks, site)
        x = self.dropped(x.to(a.dtype), training) if x.is_floating_point() else x
        algebra = ALGEBRAS[site.kind]
        return algebra.up(algebra.down(x, a, module, site), b) * (self.scale * site.scale)

    def _factors(self, blocks: Blocks, site: Site) -> tuple[Tensor, Tensor]:
        """Return diag(d) A [R, in] and diag(b) B [out, R], the ranks of all blocks in a row."""
        pairs = []
        for block in blocks.each():
            d, b = block["d"], block["b"][0]  # b has one entry a block, and this is one
            rank = len(d)
            if rank > len(blocks.shared["A"]):
                raise UsageError(
                    f"a block of {rank} ranks at {site.name!r}: the shared pair was drawn with "
                    f"{len(blocks.shared['A'])}, and a later block can have no more"
                )
            down, up = blocks.shared["A"][:rank, : site.n_in], blocks.shared["B"][: site.n_out, :rank]
            pairs.append((d[:, None] * down, b[:, None] * up))
        return torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], 1)


def bound(matrix: Tensor) -> float:
    """Return the half width of Kaiming's uniform draw with the gain of a rectifier: sqrt(6 / columns)."""
    return math.sqrt(6 / matrix.shape[1])


METHOD = Method(
    slug="vera",
    title="VeRA: two vectors a site over one random pair",
    paper="arXiv 2310.11454 (ICLR 2024)",
    axis="form: factors shared by all sites",
    form=SharedRandom,
    parameters="out + rank a site; rank * (largest in + largest out) stored once",
    peft="converted",
    refuses=("adapter.init: the shared pair must be random", "a later block with more ranks than the first"),
    defaults={"adapter": {"rank": 256}, "train": {"lr": 1e-2}},
)
