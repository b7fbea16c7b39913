"""rsLoRA: the update is divided by the root of the rank, so that its size does not shrink as the rank grows."""

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
