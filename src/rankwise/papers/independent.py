"""One adapter a task, chosen by an oracle that knows the task of every test example: no interference, no transfer.

    task t:   y = W x + s B_t A_t x        in training and at test time: the task of a test example is known

| symbol | shape | meaning |
|---|---|---|
| A_t, B_t | [r, in], [out, r] | the block of task t; frozen when the task ends |
"""

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
