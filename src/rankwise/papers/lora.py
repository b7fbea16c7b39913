"""LoRA, one adapter trained through the whole stream (arXiv 2106.09685): the baseline that forgets."""

from __future__ import annotations

from rankwise.learning.recipe import Method

METHOD = Method(
    slug="lora",
    title="LoRA, one adapter through the stream",
    paper="arXiv 2106.09685 (ICLR 2022)",
    axis="none: the plain sum",
    parameters="rank * (in + out) a site",
)
