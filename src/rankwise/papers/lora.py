"""LoRA, one adapter trained through the whole stream (arXiv 2106.09685): the baseline that forgets.

    y = W x + s B A x;    A Kaiming, B = 0 at the start;    A and B learn, W does not

Changed from the paper: s is `adapter.scale` itself (alpha / r), 1 unless set, so that it does not change with the rank.
"""

from __future__ import annotations

from rankwise.learning.recipe import Method

METHOD = Method(
    slug="lora",
    title="LoRA, one adapter through the stream",
    paper="arXiv 2106.09685 (ICLR 2022)",
    axis="none: the plain sum",
    parameters="rank * (in + out) a site",
)
