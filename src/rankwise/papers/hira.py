"""HiRA: the base's weight times a low-rank matrix, elementwise: an update of high rank (ICLR 2025).

    y = W x + s (W * (B A)) x;    * elementwise;    A Kaiming, B = 0 at the start

The update has up to rank(W) times r ranks, from the parameters of a LoRA; it is small where the weight is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from rankwise.adapters import Blocks, Context, Pair, Site, Weight, read_weight
from rankwise.adapters.dense import applied
from rankwise.errors import UsageError
from rankwise.learning.recipe import Method


@dataclass(frozen=True)
class Multiplied(Pair):
    """dW = W0 * (s B A), elementwise: W = W0 * (1 + s B A), of up to rank(W0) * rank ranks.

    Blocks add up while W0 is what it is. Where one of several is folded into the base, W0 and so what the others mean
    would change, so all are folded together.
    """

    thin: ClassVar[bool] = False  # no two thin factors give it
    additive: ClassVar[bool] = False  # all blocks are folded together

    def delta(
        self, x: Tensor, y: Tensor, blocks: Blocks, context: Context, site: Site, module: nn.Module, training: bool
    ) -> Tensor:
        """Return (W0 * (s B A)) x."""
        update = self._update(blocks, site, read_weight(module, site))
        x = self.dropped(x.to(update.dtype), training) if x.is_floating_point() else x
        return applied(update, x, module, site)

    def plain(self, blocks: Blocks, site: Site) -> tuple[Tensor, Tensor, float]:
        """Refuse: the update has more ranks than B A."""
        raise UsageError(
            f"{type(self).__name__}: the update has high rank, so no thin factors are equal to it; rankwise.merge it"
        )

    def dense(self, blocks: Blocks, site: Site, weight: Weight) -> Tensor:
        """Return W0 * (s B A) [out, in] in float32 (float64 for float64 tensors)."""
        update = self._update(blocks, site, weight()).detach()
        return update.to(torch.promote_types(update.dtype, torch.float32))

    def _update(self, blocks: Blocks, site: Site, weight: Tensor) -> Tensor:
        products = [part["B"] @ part["A"] for part in blocks.parts]
        factor = sum(products[1:], products[0]) * (self.scale * site.scale)
        return weight.to(torch.promote_types(factor.dtype, weight.dtype)) * factor


METHOD = Method(
    slug="hira",
    title="HiRA: the base's weight times a low-rank matrix",
    paper="ICLR 2025 (as in arXiv 2601.22708)",
    axis="form: the weight's update",
    form=Multiplied,
    parameters="rank * (in + out) a site",
    peft="merged",
    refuses=(
        "export as a LoRA: the update has high rank",
        "fold of some of its blocks: the others multiply the weight that would change",
    ),
    defaults={"train": {"lr": 3e-3}},
)
