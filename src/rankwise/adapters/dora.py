"""The pair with magnitudes: directions from the weight and its update, a learned length for each output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from rankwise.adapters.bank import BLOCK, Blocks, Spec
from rankwise.adapters.context import Context
from rankwise.adapters.edits import read_weight
from rankwise.adapters.inits import Weight
from rankwise.adapters.pair import Pair
from rankwise.adapters.sites import Site
from rankwise.errors import UsageError

MAGNITUDE = "magnitude"
"""Name of the tensor of lengths."""


@dataclass(frozen=True)
class Dora(Pair):
    """DoRA (arXiv 2402.09353): W = diag(m / n) V with V = W0 + s B A and n the length of each row of V.

        delta = (m / n - 1) (y - bias) + (m / n) s B A x,    y = W0 x + bias

    | symbol | shape | meaning |
    |---|---|---|
    | n | [out] | length of each row of V; a constant in the backward (section 4.3 of the paper) |
    | m | [out] | learned lengths: those of the rows of W0, plus the sum of `magnitude` over the acting blocks |

    The tensor holds the difference from W0's lengths, so a new block of zeros changes no bit and blocks add up; weight
    decay draws it to the base's lengths instead of to zero. In training with dropout only the update's input is
    dropped, the base's output is not.
    """

    thin: ClassVar[bool] = False
    additive: ClassVar[bool] = False

    def specs(self, site: Site) -> Mapping[str, Spec]:
        """Return the factors and the magnitudes."""
        return {**super().specs(site), MAGNITUDE: Spec((BLOCK, "out"), "magnitude")}

    def start(self, site: Site, rank: int, rng: Generator, weight: Weight) -> dict[str, Tensor]:
        """Return the factors' start, and lengths as the base has them."""
        return {**super().start(site, rank, rng, weight), MAGNITUDE: torch.zeros(site.n_out)}

    def delta(
        self, x: Tensor, y: Tensor, blocks: Blocks, context: Context, site: Site, module: nn.Module, training: bool
    ) -> Tensor:
        """Return what turns the base's output into that of the rescaled weight; see the class."""
        update = super().delta(x, y, blocks, context, site, module, training)
        gain = self._lay(self.gain(blocks, site, read_weight(module, site)).to(y.dtype), site)
        bias = dict(module.named_parameters(recurse=False)).get("bias")
        bare = y if bias is None else y - self._lay(bias[slice(*(site.rows or (0, len(bias))))], site)
        return (gain - 1) * bare + gain * update

    def gain(self, blocks: Blocks, site: Site, weight: Tensor) -> Tensor:
        """Return m / ||V|| for the base's `weight` [out, in]: [out]."""
        with torch.no_grad():
            length = weight.norm(dim=1)
            whole = (weight + self._product(blocks, site)).norm(dim=1)
        return (length + blocks[MAGNITUDE].to(length.dtype).sum(0)) / whole

    def lengths(self, blocks: Blocks, weight: Tensor) -> Tensor:
        """Return m [out] itself, as other programs store it."""
        return weight.norm(dim=1) + blocks[MAGNITUDE].detach().to(weight.dtype).sum(0)

    def factors(self, blocks: Blocks, site: Site) -> tuple[Tensor, Tensor, float]:
        """Return (A, B, scale) of V - W0."""
        return super().plain(blocks, site)

    def plain(self, blocks: Blocks, site: Site) -> tuple[Tensor, Tensor, float]:
        """Refuse: lengths act on the base's weight too."""
        raise UsageError(
            f"{type(self).__name__}: the update has full rank, so no thin factors are equal to it; rankwise.merge it"
        )

    def dense(self, blocks: Blocks, site: Site, weight: Weight) -> Tensor:
        """Return the rescaled weight less W0: [out, in], float32."""
        before = weight()
        gain = self.gain(blocks, site, before).detach()
        return gain[:, None] * (before + self._product(blocks, site)) - before

    def _product(self, blocks: Blocks, site: Site) -> Tensor:
        a, b, scale = self.factors(blocks, site)
        exact = torch.promote_types(a.dtype, torch.float32)
        return scale * (b.to(exact) @ a.to(exact))

    def _lay(self, rows: Tensor, site: Site) -> Tensor:
        """Lay one value an output [out] along the axis of features of the site's output."""
        return rows.view(-1, 1, 1) if site.kind == "conv2d" else rows
