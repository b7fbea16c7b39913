"""AltLoRA: one factor a step, moved by the best low-rank image of the full gradient (arXiv 2505.12455)."""

from __future__ import annotations

from rankwise.learning.recipe import Method
from rankwise.strategies.paired import Alternating


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
