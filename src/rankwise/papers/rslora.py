"""rsLoRA: the update is divided by the root of the rank, so that its size does not shrink as the rank grows."""

from __future__ import annotations

import math

from rankwise.learning.recipe import Method


def rank_stabilised(scale: float, rank: int) -> float:
    """Return alpha / sqrt(rank) for scale = alpha / rank.

    >>> rank_stabilised(2.0, 16)
    8.0
    """
    return scale * math.sqrt(rank)


METHOD = Method(
    slug="rslora",
    title="rsLoRA: scaled by alpha / sqrt(rank)",
    paper="arXiv 2312.03732",
    axis="scale",
    scaling=rank_stabilised,
    parameters="rank * (in + out) a site",
)
