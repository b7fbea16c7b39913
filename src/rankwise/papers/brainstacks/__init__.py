"""Brainstacks, the training core: frozen stacks of LoRA experts, a domain after another, behind a router of prompts
(arXiv 2604.01152).

    round k of a domain:  append a stack, delta_k(x) = sum_e g_e B_e A_e x, g = sparse softmax of a noisy router;
                          train it on what the frozen ones leave over; keep its best values; freeze it
    later domains:        B <- (I - V V^T) B,   V: main directions of what the frozen stacks write
    after all domains:    a router of prompts gives each stack a weight in [0, 1]; it learns from measured losses
    y = W x + s sum over stacks of mix_k delta_k(x)

| symbol | shape | meaning |
|---|---|---|
| V | [out, k] | main directions that earlier domains write at a site |
| mix | [n, stacks] | the router's weights of the stacks for each prompt |

Changed from the paper: the router learns from the combinations measured on kept rows alone (no pairs of domains with
targets of two, no extra for a domain named in advance), and its best epoch is the one with the lowest cross-entropy on
held-out rows. Ranks, rates and their courses are the library's (paper: 16 ranks an expert, a warm-up, clipping at 1).
"""

from __future__ import annotations

from rankwise.adapters.experts import Experts
from rankwise.learning.recipe import Method, rank_stabilised
from rankwise.papers.brainstacks.stacks import Stacks

METHOD = Method(
    slug="brainstacks",
    title="Brainstacks: frozen stacks of LoRA experts, routed by prompt",
    paper="arXiv 2604.01152",
    axis="growth and routing: stacks by rounds, weighed for each prompt",
    form=Experts,
    dynamics=Stacks,
    growth="planned",
    scaling=rank_stabilised,
    mergeable=False,
    peft=None,
    parameters="experts * rank * (in + out) + 2 * experts * in a site and round",
    refuses=(
        "merge: routers depend on the input",
        "accumulation and several processes: balance is a batch's",
        "4-bit bases and the preference phase of the paper",
    ),
    defaults={"adapter": {"form": {"noisy": True, "balance": 0.01}}},
)
