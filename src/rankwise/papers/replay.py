"""Replay with one LoRA through the stream: a bounded buffer of earlier examples, rehearsed in every step (ER).

    L = mean l(x, y) + weight mean l(x', y')        from the second task on

| symbol | shape | meaning |
|---|---|---|
| x, y | rows, [n] | the batch of the current task |
| x', y' | rows, [m] | a draw from the buffer of earlier training rows; both are ranked among all classes seen |

The adapter is one `lora` through the stream; the loss is the strategy `replay`, which goes with most methods.
"""

from __future__ import annotations

from rankwise.learning.recipe import Method

METHOD = Method(
    slug="replay",
    title="LoRA with a replay buffer",
    paper="arXiv 1902.10486 (ER)",
    axis="memory",
    parameters="rank * (in + out) a site",
    refuses=("joint order: there is no past to rehearse",),
    defaults={"strategy": [{"kind": "replay"}]},
)
