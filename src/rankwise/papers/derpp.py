"""Dark replay with one LoRA through the stream: stored examples keep their scores and their labels.

    L = mean l(f(x), y) + alpha mean ||f(x') - z'||^2 / k + beta mean l(f(x''), y'')

| symbol | shape | meaning |
|---|---|---|
| f | [n, classes] | scores of the model as it is |
| x', z' | rows, [m, k] | a draw from the reservoir, and the scores of the k classes known when it was stored |
| x'', y'' | rows, [m] | another draw, with its labels |

The adapter is one `lora` through the stream; the loss is the strategy `derpp`, which goes with most methods.
"""

from __future__ import annotations

from rankwise.learning.recipe import Method

METHOD = Method(
    slug="derpp",
    title="LoRA with dark replay (DER++)",
    paper="arXiv 2004.07211 (NeurIPS 2020)",
    axis="memory",
    parameters="rank * (in + out) a site",
    refuses=("joint order: there is no past to rehearse", "objective.kind = language: no row of scores to store"),
    defaults={"strategy": [{"kind": "derpp"}]},
)
