"""LoRA-Pro: the pair of gradients whose joint move comes nearest to that of the full gradient (arXiv 2407.18242).

    g_A* = (1/s^2) (B^T B)^-1 g_A + X A
    g_B* = (1/s^2) (I - B (B^T B)^-1 B^T) g_B (A A^T)^-1 - B X,      then the run's own rule (AdamW)

| symbol | shape | meaning |
|---|---|---|
| g_A, g_B | [r, in], [out, r] | gradients of the factors |
| g_A*, g_B* | the same | those whose joint move of s B A comes nearest to the full gradient |
| X | [r, r] | moves no product; the default makes g* nearest to g (a Sylvester equation) |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rankwise.adapters.paired import Ridge, closed_form
from rankwise.config import NotNegative
from rankwise.learning.recipe import Method
from rankwise.strategies.paired import Preconditioned

Freedom = Literal["sylvester", "zero", "symmetric"]


def freedom(a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor, scale: float, ridge: Ridge, choice: Freedom) -> Tensor:
    """Return the matrix X [r, r] of LoRA-Pro, which moves no product: it says how the factors share one step.

    sylvester solves B^T B X + X A A^T = -(1/s^2) (B^T B)^-1 g_A A^T: the gradients nearest to the raw ones. symmetric
    is -(1/2s^2) (B^T B)^-1 B^T g_B (A A^T)^-1.

    Args:
        a: A [r, in].
        b: B [out, r].
        of_a: g_A [r, in].
        of_b: g_B [out, r].
        scale: s.
        ridge: on both Gram matrices.
        choice: which X.

    """
    rows, columns = a @ a.T, b.T @ b
    if choice == "symmetric":
        return -0.5 * ridge.solve(rows, ridge.solve(columns, b.T @ of_b).T).T / scale**2
    if choice == "zero":
        return torch.zeros_like(rows)
    right = -ridge.solve(columns, of_a @ a.T) / scale**2
    (left_values, left), (right_values, basis) = torch.linalg.eigh(columns), torch.linalg.eigh(rows)
    sums = (left_values.clamp_min(0)[:, None] + right_values.clamp_min(0)).clamp_min(ridge.size)
    return left @ (left.T @ right @ basis / sums) @ basis.T


def best_together(
    a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor, scale: float, ridge: Ridge, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Return LoRA-Pro's pair of gradients (of A, of B), whose joint move is P_c(B) G + (I - P_c(B)) G P_r(A).

    g_A* = (1/s^2) (B^T B)^-1 g_A + X A and g_B* = (1/s^2) (I - P_c(B)) g_B (A A^T)^-1 - B X (arXiv 2407.18242).
    """
    rest = of_b - b @ ridge.solve(b.T @ b, b.T @ of_b)
    return closed_form(of_a, b.T, scale, ridge) + x @ a, closed_form(rest.T, a, scale, ridge).T - b @ x


@dataclass(frozen=True)
class Settings:
    """`[adapter.dynamics] kind = "lora-pro"`."""

    free: Freedom = "sylvester"
    """The matrix X that moves no product: of a Sylvester equation (gradients nearest to the raw ones), zero, or
    symmetric. To first order the step of B A is the same; under momentum and Adam it is not."""
    ridge: NotNegative = 1e-8
    """Added to the diagonal of the Gram matrices: B starts at zero."""


class LoraPro(Preconditioned):
    """Replaces both gradients by the closed form and leaves them to the run's own rule.

    Changed from the released code, which keeps moments of the full gradient, as large as the weight itself: here the
    run's rule keeps moments of the adjusted gradients, in the space of the factors.
    """

    name = "lora-pro"
    Settings = Settings

    def joint(self, a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Return g_A* and g_B*."""
        ridge = Ridge(self.settings.ridge)
        x = freedom(a, b, of_a, of_b, scale, ridge, self.settings.free)
        return best_together(a, b, of_a, of_b, scale, ridge, x)


METHOD = Method(
    slug="lora-pro",
    title="LoRA-Pro: gradients whose joint move is nearest to full fine-tuning's",
    paper="arXiv 2407.18242 (ICLR 2025)",
    axis="dynamics: gradients are preconditioned jointly",
    dynamics=LoraPro,
    parameters="rank * (in + out) a site",
    refuses=("branches other than a pair of factors that both learn",),
)
