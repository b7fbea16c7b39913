"""DoRA: the length of each row of the weight learns by itself, factors turn its direction (arXiv 2402.09353).

    V = W + s B A,    n_i = ||V_i||,    W' = diag(m / n) V,    m = ||W_i|| at the start
    y = (m / n) * (V x) + bias;    n is a constant in the backward (section 4.3)

| symbol | shape | meaning |
|---|---|---|
| n | [out] | length of each row of V |
| m | [out] | learned length of each row |
"""

from __future__ import annotations

from rankwise.adapters.dora import Dora
from rankwise.learning.recipe import Method

METHOD = Method(
    slug="dora",
    title="DoRA: lengths and directions apart",
    paper="arXiv 2402.09353 (ICML 2024)",
    axis="form: the weight's rows are rescaled",
    form=Dora,
    parameters="rank * (in + out) + out a site",
    refuses=(
        "export as a plain LoRA: the update has full rank (PEFT loads it as what it is)",
        "fold of some of its blocks: each row is divided by one length over all of them",
    ),
)
