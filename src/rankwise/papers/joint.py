"""Joint training: one adapter on all tasks at once, the upper bound of a stream.

    A, B <- argmin of sum over tasks t of L_t(W + s B A)

Every batch is drawn from the rows of all tasks. Nothing can be forgotten: sequential methods are measured against it.
"""

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
