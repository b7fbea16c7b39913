"""Dark replay with one LoRA through the stream: stored examples keep their scores and their labels."""

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
