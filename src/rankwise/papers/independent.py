"""One adapter a task, chosen by an oracle that knows the task of every test example: no interference, no transfer."""

from __future__ import annotations

from rankwise.learning.recipe import Method

METHOD = Method(
    slug="independent",
    title="One adapter a task, task known at test time (oracle)",
    paper="per-task baseline of arXiv 2302.00487",
    axis="growth",
    growth="append",
    oracle=True,
    parameters="rank * (in + out) a site and task",
    peft="exact",
    refuses=("test examples of unknown task",),
)
