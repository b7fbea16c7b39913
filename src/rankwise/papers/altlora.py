"""AltLoRA: one factor a step, moved by the best low-rank image of the full gradient (arXiv 2505.12455).

    step:     one factor moves, the other one waits; B first, as A has no gradient while B is zero
    g~_A = (1/s^2) (B^T B + ridge)^-1 g_A,         g~_B = (1/s^2) g_B (A A^T + ridge)^-1
    M~_A = (B^T B)^-1 B^T B_old M_A,               M~_B = M_B A_old A^T (A A^T)^-1        (theorem 2)
    M <- beta1 M~ + (1 - beta1) g~;    factor <- factor - lr M                            (algorithm 1)

| symbol | shape | meaning |
|---|---|---|
| g_A, g_B | [r, in], [out, r] | gradients of the factors; the full gradient is never formed |
| g~ | as the factor | for which s B g~_A, or s g~_B A, comes nearest to the full gradient (theorem 1) |
| M | as the factor | momentum; M~ is M expressed in the other factor's new basis |
"""

from __future__ import annotations

from rankwise.learning.recipe import Method
from rankwise.strategies.alternating import Alternating


class AltLora(Alternating):
    """The alternating rule with a first moment alone: the path of B A does not depend on how it is factorised.

    Changed from the released code, which follows neither: turns change every step with a fresh backward, the closed
    form has its 1/s^2, and the learning rate is the schedule's.
    """

    name = "altlora"


METHOD = Method(
    slug="altlora",
    title="AltLoRA: alternating projections of the full gradient",
    paper="arXiv 2505.12455 (NeurIPS 2025)",
    axis="dynamics: an alternating rule over paired factors",
    dynamics=AltLora,
    parameters="rank * (in + out) a site",
    refuses=("branches other than a pair of factors that both learn",),
    defaults={"train": {"lr": 3e-2}},
)
