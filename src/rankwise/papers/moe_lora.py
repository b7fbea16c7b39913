"""A routed mixture of LoRA experts: a sparse softmax router over groups of ranks, with a loss that balances them.

    g = softmax over the k largest of R x;    y = W x + s sum_e g_e B_e A_e x;    loss + balance

| symbol | shape | meaning |
|---|---|---|
| R | [E, in] | router |
| g | [tokens, E] | weights of the experts; k of them are not zero |

Each expert has `rank` ranks (the study's code: `rank` / E). Of LoRAMoE's losses the plain balance is here, not the one
that tells two groups of experts apart.
"""

from __future__ import annotations

from rankwise.adapters.experts import Experts
from rankwise.learning.recipe import Method

METHOD = Method(
    slug="moe-lora",
    title="Routed mixture of LoRA experts",
    paper="arXiv 2312.09979 (LoRAMoE), as in the study arXiv 2601.22708",
    axis="form: groups of ranks behind a router",
    form=Experts,
    mergeable=False,
    peft=None,
    parameters="experts * rank * (in + out) + experts * in a site",
    refuses=("merge: the router depends on the input", "accumulation and several processes: balance is a batch's"),
)
