"""Elastic weight consolidation with one LoRA through the stream: its factors are held where earlier tasks left them."""

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
