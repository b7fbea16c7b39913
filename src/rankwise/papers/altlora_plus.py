"""AltLoRA+: the alternating projections with an elementwise second moment (arXiv 2505.12455).

    M, g~ as in AltLoRA;    V <- beta2 V + (1 - beta2) g~ * g~
    factor <- factor - lr M / (sqrt(V) + eps)                                             (algorithm 2)

| symbol | shape | meaning |
|---|---|---|
| g~ | as the factor | the closed form of its gradient |
| M, V | as the factor | first and second moment, both divided by 1 - beta^n |
"""

from __future__ import annotations

from dataclasses import dataclass

from rankwise.adapters.alternating import Alternation
from rankwise.learning.recipe import Method
from rankwise.strategies.alternating import Alternating


@dataclass(frozen=True)
class Plus(Alternation):
    """The settings of the alternating rule, with the second moment on."""

    second_moment: bool = True
    """Divide by the root of an elementwise second moment of the preconditioned gradient."""


class AltLoraPlus(Alternating):
    """The alternating rule with both moments: faster in practice, and no longer free of the factorisation."""

    name = "altlora-plus"
    Settings = Plus


METHOD = Method(
    slug="altlora-plus",
    title="AltLoRA+: alternating projections with a second moment",
    paper="arXiv 2505.12455 (NeurIPS 2025)",
    axis="dynamics: an alternating rule over paired factors",
    dynamics=AltLoraPlus,
    parameters="rank * (in + out) a site",
    refuses=("branches other than a pair of factors that both learn",),
)
