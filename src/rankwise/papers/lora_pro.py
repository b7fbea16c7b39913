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

from torch import Tensor

from rankwise.adapters.paired import Ridge, best_together, freedom
from rankwise.learning.recipe import Method
from rankwise.strategies.paired import Preconditioned


@dataclass(frozen=True)
class Settings:
    """`[adapter.dynamics] kind = "lora-pro"`."""

    free: Literal["sylvester", "zero", "symmetric"] = "sylvester"
    """The matrix X that moves no product: of a Sylvester equation (gradients nearest to the raw ones), zero, or
    symmetric. To first order the step of B A is the same; under momentum and Adam it is not."""
    ridge: float = 1e-8
    """Added to the diagonal of the Gram matrices: B starts at zero."""


class LoraPro(Preconditioned):
    """Replaces both gradients by the closed form and leaves them to the run's own rule.

    Changed from the released code, which keeps moments of the full gradient, as large as the weight itself: here the
    run's rule keeps moments of the adjusted gradients, in the space of the factors.
    """

    name = "lora-pro"
    Settings = Settings

    def joint(self, a: Tensor, b: Tensor, down: Tensor, up: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Return g_A* and g_B*."""
        ridge = Ridge(self.settings.ridge)
        x = freedom(a, b, down, up, scale, ridge, self.settings.free)
        return best_together(a, b, down, up, scale, ridge, x)


METHOD = Method(
    slug="lora-pro",
    title="LoRA-Pro: gradients whose joint move is nearest to full fine-tuning's",
    paper="arXiv 2407.18242 (ICLR 2025)",
    axis="dynamics: gradients are preconditioned jointly",
    dynamics=LoraPro,
    parameters="rank * (in + out) a site",
    refuses=("branches other than a pair of factors that both learn",),
)
