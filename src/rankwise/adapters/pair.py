"""The low-rank branch: y = base(x) + s * B gate(A x; x)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from rankwise.adapters.bank import Blocks, Spec
from rankwise.adapters.branch import Branch
from rankwise.adapters.context import Context
from rankwise.adapters.fused import Fused, FusedGate
from rankwise.adapters.inits import Weight
from rankwise.adapters.sites import ALGEBRAS, Site


@dataclass(frozen=True)
class Pair(Branch):
    """A pair of factors with a gate between: delta(x) = s * B gate(A x; x).

    | symbol | shape | meaning |
    |---|---|---|
    | A | [R, in] | down factor; rows are keys |
    | B | [out, R] | up factor; columns are values |
    | s | scalar | scale |

    The operations come in PEFT's order (base, then the scaled update added), so a plain adapter gives its bits. A site
    may carry a factor of its own on top of s.
    """

    thin: ClassVar[bool] = True
    fixed: tuple[str, ...] = ()
    """Names of factors that do not learn: A, B."""

    def specs(self, site: Site) -> Mapping[str, Spec]:
        """Return the factors and what the gate needs."""
        down = Spec(("rank", "in"), "down", "A" not in self.fixed)
        return {"A": down, "B": Spec(("out", "rank"), "up", "B" not in self.fixed), **self.gate.specs(site)}

    def start(self, site: Site, rank: int, rng: Generator, weight: Weight) -> dict[str, Tensor]:
        """Return the starting values of a new block of `rank` ranks at `site`."""
        a, b = self.init.factors(site, rank, rng, weight, self.scale * site.scale)
        return {"A": a, "B": b, **self.gate.start(site, rank, rng)}

    def delta(
        self,
        x: Tensor,
        y: Tensor,
        blocks: Blocks,
        context: Context,
        site: Site,
        module: nn.Module,
        training: bool,
    ) -> Tensor:
        """Return s * B gate(A x; x), laid out as the output of `module` restricted to the site's rows."""
        algebra = ALGEBRAS[site.kind]
        if x.is_floating_point():
            x = self.dropped(x.to(blocks.parts[0]["A"].dtype), training)
        z = [algebra.down(x, part["A"], module, site) for part in blocks.parts]
        w = self.mixed(z[0] if len(z) == 1 else torch.cat(z, -1), x, blocks, context, site, module, training)
        parts = [algebra.up(v, part["B"]) for v, part in zip(blocks.split(w), blocks.parts, strict=True)]
        return sum(parts[1:], parts[0]) * (self.scale * site.scale)

    def mixed(
        self, z: Tensor, x: Tensor, blocks: Blocks, context: Context, site: Site, module: nn.Module, training: bool
    ) -> Tensor:
        """Return the coefficients [..., R] of the values: what the gate makes of the responses z [..., R]."""
        return self.gate(z, x, blocks, context, site, training)

    def fused(self, blocks: Blocks, site: Site, training: bool) -> Fused | None:
        """Return the gate's product; a subclass with a formula of its own has none."""
        own = type(self).delta is not Pair.delta or type(self).mixed is not Pair.mixed
        if own or not isinstance(self.gate, FusedGate):
            return None
        return self.gate.fused(blocks, self.scale * site.scale, training)

    def plain(self, blocks: Blocks, site: Site) -> tuple[Tensor, Tensor, float]:
        """Return (A, B, scale) of the plain LoRA that computes the same: a linear gate goes into A.

        Raises:
            UsageError: the gate depends on the input, so no matrix is equal to the update.

        """
        self.refuse_unless_linear()
        a = blocks["A"].detach()
        a = self.gate(a.T, a.T, blocks, Context(), site, False).detach().T
        return a, blocks["B"].detach(), self.scale * site.scale
