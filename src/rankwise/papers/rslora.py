"""rsLoRA: the update is divided by the root of the rank, so that its size does not shrink as the rank grows.

    y = W x + (alpha / sqrt(r)) B A x        where LoRA has alpha / r

`adapter.scale` is alpha / r as for every other method; here it is multiplied by sqrt(r).
"""

from __future__ import annotations

from rankwise.learning.recipe import Method, rank_stabilised

METHOD = Method(
    slug="rslora",
    title="rsLoRA: scaled by alpha / sqrt(rank)",
    paper="arXiv 2312.03732",
    axis="scale",
    scaling=rank_stabilised,
    parameters="rank * (in + out) a site",
)
