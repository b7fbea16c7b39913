"""ALLoRA: rows of the update learn the faster the smaller they are, by a factor inside the backward (2410.09692).

    y = W x + B A x;    no scale (alpha / r)
    c_i = 1 / sqrt(||(B A)_i|| + 1 / eta^2)        one number a row of B A, a constant of the step
    g_B = (c * D)^T z,    g_A = (B^T (c * D))^T x,    the gradient to x as without c

| symbol | shape | meaning |
|---|---|---|
| D | [tokens, out] | gradient of the loss by y |
| z | [tokens, r] | A x |
| c | [out] | pace of each row: eta where the row is zero, less as it grows |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rankwise.adapters import Blocks, Context, Pair, Site
from rankwise.adapters.sites import ALGEBRAS
from rankwise.config import Positive
from rankwise.errors import UsageError
from rankwise.learning.recipe import Method


class Up(torch.autograd.Function):
    """y = z B^T, whose backward weighs the outputs by c on their way to A and B, and not on their way to the input.

    With D = dL/dy [..., out] and Dc = D * c: g_B = Dc^T z, and z's gradient is Dc B where it leads to A, D B where it
    leads to x. Not the gradient of y, on purpose; c is a constant.
    """

    @staticmethod
    def forward(ctx: Any, of_x: Tensor, of_a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """Return z B^T for z [..., r], given as a function of x alone and of A alone; b [out, r], c [..., out]."""
        ctx.save_for_backward(of_a, b, c)
        return nn.functional.linear(of_a, b)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of z on both ways and of B."""
        (d,), (z, b, c) = gradients, ctx.saved_tensors
        wide = torch.promote_types(d.dtype, b.dtype)
        d, weighed = d.to(wide), d.to(wide) * c.to(wide)
        of_x, of_a = d @ b.to(wide), weighed @ b.to(wide)
        up = weighed.flatten(0, -2).T @ z.to(wide).flatten(0, -2)
        return of_x.to(z.dtype), of_a.to(z.dtype), up.to(b.dtype), None


def row_norms(a: Tensor, b: Tensor) -> Tensor:
    """Return ||(B A)_i|| [out] as sqrt(B_i (A A^T) B_i^T), without forming B A; in float32 or more."""
    exact = torch.promote_types(a.dtype, torch.float32)
    a, b = a.detach().to(exact), b.detach().to(exact)
    return ((b @ (a @ a.T)) * b).sum(1).clamp_min(0).sqrt()


@dataclass(frozen=True)
class RowPaced(Pair):
    """y = base(x) + B A x; the gradient reaches A and B weighed by c_i = 1 / sqrt(||(B A)_i|| + 1 / eta^2).

    A row at zero learns eta times faster, one that has grown more slowly. There is no scale (alpha / r).
    """

    eta: Positive = 2.0
    """Largest acceleration of a row; 1 accelerates none. Paper: eta^2 in 1, 2, 4."""
    factor: Literal["row", "output", "scaled"] = "row"
    """row: c from the rows of B A. Ablations: output, from |B A x| of each token; scaled, that as a factor on the
    output itself, with its natural gradient (no matrix equals it then)."""

    def __post_init__(self) -> None:
        """Refuse a scale."""
        if self.scale != 1:
            raise UsageError(f"adapter.scale = {self.scale}: this method has none; set adapter.form.eta instead")

    @property
    def linear(self) -> bool:
        """True unless the factor is on the output."""
        return self.factor != "scaled" and self.gate.linear

    def pace(self, size: Tensor) -> Tensor:
        """Return c for the sizes rho of rows or outputs."""
        return (size + 1 / self.eta**2).rsqrt()

    def delta(
        self, x: Tensor, y: Tensor, blocks: Blocks, context: Context, site: Site, module: nn.Module, training: bool
    ) -> Tensor:
        """Return B A x, each part of the blocks with the pace of its own rows."""
        if self.factor == "scaled":
            update = super().delta(x, y, blocks, context, site, module, training)
            return update * self.pace(update.abs())
        if x.is_floating_point():
            x = self.dropped(x.to(blocks.parts[0]["A"].dtype), training)
        parts = [self._part(x, part["A"], part["B"], module, site) for part in blocks.parts]
        return sum(parts[1:], parts[0]) * site.scale

    def _part(self, x: Tensor, a: Tensor, b: Tensor, module: nn.Module, site: Site) -> Tensor:
        down = ALGEBRAS[site.kind].down
        of_a = down(x.detach(), a, module, site)
        of_x = down(x, a.detach(), module, site) if x.requires_grad else of_a.detach()
        size = row_norms(a, b) if self.factor == "row" else nn.functional.linear(of_a, b).detach().abs()
        out: Tensor = Up.apply(of_x, of_a, b, self.pace(size))  # pyright: ignore[reportAssignmentType]
        return out.movedim(-1, 1) if site.kind == "conv2d" else out


METHOD = Method(
    slug="allora",
    title="ALLoRA: rows of the update at their own pace",
    paper="arXiv 2410.09692",
    axis="form: a factor inside the backward",
    form=RowPaced,
    parameters="rank * (in + out) a site",
    refuses=("adapter.scale: the method has none", "merge with adapter.form.factor = scaled: it depends on the input"),
)
