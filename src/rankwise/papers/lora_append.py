"""A LoRA block for each task, old ones frozen, all of them summed: growth without a gate.

    task t:   y = W x + s sum_{i<=t} B_i A_i x;    A_t, B_t learn, earlier blocks are frozen

| symbol | shape | meaning |
|---|---|---|
| A_i, B_i | [r, in], [out, r] | the block of task i; B_i = 0 when it comes |
"""

from __future__ import annotations

from rankwise.learning.recipe import Method

METHOD = Method(
    slug="lora-append",
    title="LoRA, a frozen block for each task, summed",
    paper="IncLoRA baseline of arXiv 2310.14152 (O-LoRA)",
    axis="growth",
    growth="append",
    identity_at_append="close",
    parameters="rank * (in + out) a site and task; tasks * rank * (in + out) stored",
    peft="converted",
)
