"""Elastic weight consolidation with one LoRA through the stream: its factors are held where earlier tasks left them.

    L = loss(x, y) + strength sum F (theta - theta*)^2        from the second task on
    task end:  F <- decay F + mean over rows of g * g,  theta* <- theta

| symbol | shape | meaning |
|---|---|---|
| theta, theta* | as A and B | the factors, and where the last task left them |
| F | as A and B | diagonal of the Fisher information: how much each value mattered |
| g | as A and B | gradient of one example's loss |

The adapter is one `lora` through the stream; the penalty is the strategy `ewc`. There is no factor 1/2, as in Mammoth
and Avalanche.
"""

from __future__ import annotations

from rankwise.learning.recipe import Method

METHOD = Method(
    slug="ewc",
    title="LoRA with elastic weight consolidation",
    paper="arXiv 1612.00796 (PNAS 2017); online as in arXiv 1801.10112",
    axis="memory",
    parameters="rank * (in + out) a site",
    refuses=("joint order: there is no past to hold", "a block a task: earlier blocks are frozen already"),
    defaults={"strategy": [{"kind": "ewc"}]},
)
