"""Riemannian-preconditioned LoRA: both factors' gradients, each solved with the other's Gram matrix (2402.02347).

    g_A <- (B^T B + ridge)^-1 g_A,    g_B <- g_B (A A^T + ridge)^-1,    then the run's own rule (AdamW or SGD)

| symbol | shape | meaning |
|---|---|---|
| g_A, g_B | [r, in], [out, r] | gradients of the factors, from one backward |
| ridge | number | keeps the solves finite while B is zero |
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rankwise.adapters.paired import Ridge, closed_form
from rankwise.config import NotNegative
from rankwise.learning.recipe import Method
from rankwise.strategies.paired import Preconditioned


@dataclass(frozen=True)
class Settings:
    """`[adapter.dynamics] kind = "riemannian"`."""

    ridge: NotNegative = 1e-6
    """Added to the diagonal of the Gram matrices. While B is zero it enlarges A's gradient by 1 / ridge, but that is
    zero then."""
    inverse_scale: bool = False
    """Divide by s^2, so that the move of s B A does not depend on s."""


class Riemannian(Preconditioned):
    """g_A <- (B^T B + ridge)^-1 g_A and g_B <- g_B (A A^T + ridge)^-1 from one backward, then the run's own rule.

    With sgd that is scaled gradient descent, with adamw "scaled AdamW" (moments of the preconditioned gradients).
    """

    name = "riemannian"
    Settings = Settings

    def joint(self, a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Return both preconditioned gradients."""
        ridge, s = Ridge(self.settings.ridge), scale if self.settings.inverse_scale else 1.0
        return closed_form(of_a, b.T, s, ridge), closed_form(of_b.T, a, s, ridge).T


METHOD = Method(
    slug="riemannian",
    title="Riemannian preconditioning of both factors",
    paper="arXiv 2402.02347 (ICML 2024)",
    axis="dynamics: gradients are preconditioned jointly",
    dynamics=Riemannian,
    parameters="rank * (in + out) a site",
    refuses=("branches other than a pair of factors that both learn",),
)
