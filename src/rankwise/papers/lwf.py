"""Learning without forgetting with one LoRA through the stream: old classes are answered as before, on new data.

    L = loss(x, y) + weight KL(softmax(t(x) / T) || softmax(f(x) / T))        over the old classes, on new rows

| symbol | shape | meaning |
|---|---|---|
| f | [n, old classes] | scores of the model as it is |
| t | [n, old classes] | scores of the model as it was before the task |
| T | number | temperature |

The adapter is one `lora` through the stream; the loss is the strategy `lwf`, whose `form = "multi-class"` is LwF.MC.
"""

from __future__ import annotations

from rankwise.learning.recipe import Method

METHOD = Method(
    slug="lwf",
    title="LoRA with learning without forgetting",
    paper="arXiv 1606.09282 (ECCV 2016); multi-class form as in arXiv 1611.07725 and 2203.17269",
    axis="memory",
    parameters="rank * (in + out) a site",
    refuses=("joint order: there is no model before the task",),
    defaults={"strategy": [{"kind": "lwf"}]},
)
