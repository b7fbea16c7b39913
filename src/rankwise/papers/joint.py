"""Joint training: one adapter on all tasks at once, the upper bound of a stream."""

from __future__ import annotations

from rankwise.learning.recipe import Method

METHOD = Method(
    slug="joint",
    title="Joint training on all tasks (upper bound)",
    paper="upper bound of arXiv 2302.00487",
    axis="order",
    order="at-once",
    parameters="rank * (in + out) a site",
    refuses=("strategies that protect the past: there is none",),
)
