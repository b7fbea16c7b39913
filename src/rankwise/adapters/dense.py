"""Branches that make their update as a whole matrix: products that are no sum over ranks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankwise.adapters.bank import Blocks
from rankwise.adapters.branch import Branch
from rankwise.adapters.context import Context
from rankwise.adapters.inits import Weight
from rankwise.adapters.sites import ALGEBRAS, Site


def applied(update: Tensor, x: Tensor, module: nn.Module, site: Site) -> Tensor:
    """Return what an update [out, in] of the weight adds to the output of `module` on x."""
    y = ALGEBRAS[site.kind].down(x, update, module, site)
    return y.movedim(-1, 1) if site.kind == "conv2d" else y


@dataclass(frozen=True)
class Dense(Branch):
    """delta = dW x with dW = s * the sum of `product` over the blocks; memory of one [out, in] matrix a site."""

    def __post_init__(self) -> None:
        """Refuse a start of A and B alone."""
        self.refuse_init()

    @abstractmethod
    def product(self, block: Mapping[str, Tensor], site: Site) -> Tensor:
        """Return the matrix [out, in] that the tensors of one block stand for, without the scale."""

    def update(self, blocks: Blocks, site: Site) -> Tensor:
        """Return dW [out, in], with its graph."""
        parts = [self.product(block, site) for block in blocks.each()]
        return sum(parts[1:], parts[0]) * (self.scale * site.scale)

    def delta(
        self, x: Tensor, y: Tensor, blocks: Blocks, context: Context, site: Site, module: nn.Module, training: bool
    ) -> Tensor:
        """Return dW x, laid out as the output of `module`."""
        update = self.update(blocks, site)
        x = self.dropped(x.to(update.dtype), training) if x.is_floating_point() else x
        return applied(update, x, module, site)

    def dense(self, blocks: Blocks, site: Site, weight: Weight) -> Tensor:
        """Return dW [out, in] in float32 (float64 for float64 tensors)."""
        update = self.update(blocks, site).detach()
        return update.to(torch.promote_types(update.dtype, torch.float32))
