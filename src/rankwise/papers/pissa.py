"""PiSSA: the pair starts as the strongest singular directions of the weight, which leave the base (arXiv 2404.02948).

    W = U S V^T;   B = U_r sqrt(S_r / s),  A = sqrt(S_r / s) V_r^T,   base <- W - s B A    (`residual` below)

As a plain LoRA it has rank 2 r: what learns, and what was taken out of the base with its sign turned.
"""

from __future__ import annotations

from torch import Generator, Tensor

from rankwise.adapters import Init, Site, Weight
from rankwise.adapters.spectrum import truncated
from rankwise.learning.recipe import Method


def factors(site: Site, rank: int, rng: Generator, weight: Weight, scale: float) -> tuple[Tensor, Tensor]:
    """Return A [r, in] and B [out, r] with scale * B A = the first `rank` terms of the weight's decomposition."""
    strong = truncated(weight(), rank, site.name)
    root = (strong.s / scale).sqrt()
    return root[:, None] * strong.vh, strong.u * root


METHOD = Method(
    slug="pissa",
    title="PiSSA: the strongest singular directions learn",
    paper="arXiv 2404.02948 (NeurIPS 2024)",
    axis="init",
    init=Init("pissa", factors, residual=True),
    identity_at_creation="close",
    identity_at_append="close",
    parameters="rank * (in + out) a site",
    peft="converted",
    refuses=("more ranks than the weight has singular values", "a quantised base, whose weight cannot change"),
)
