"""Full fine-tuning in sequence: every weight of the base learns, nothing protects the past.

    W <- W - lr AdamW(dL/dW)        for every weight of the base, task after task

| symbol | shape | meaning |
|---|---|---|
| W | [out, in] | any weight of the base |
"""

from __future__ import annotations

from rankwise.learning.recipe import Method

METHOD = Method(
    slug="finetune",
    title="Full fine-tuning in sequence",
    paper="lower bound of arXiv 2302.00487",
    axis="live",
    live="base",
    parameters="all weights of the base",
    peft="merged",
    refuses=("adapter.growth: it has no adapter, so what else [adapter] says does nothing",),
    defaults={"train": {"lr": 1e-4}},
)
