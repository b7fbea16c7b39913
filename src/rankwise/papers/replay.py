"""Replay with one LoRA through the stream: a bounded buffer of earlier examples, rehearsed in every step (ER)."""

from __future__ import annotations

from rankwise.learning.recipe import Method

METHOD = Method(
    slug="replay",
    title="LoRA with a replay buffer",
    paper="arXiv 1902.10486 (ER); old and new classes ranked as in arXiv 2104.05025 (ER-ACE)",
    axis="memory",
    parameters="rank * (in + out) a site",
    refuses=("joint order: there is no past to rehearse",),
    defaults={"strategy": [{"kind": "replay"}]},
)
