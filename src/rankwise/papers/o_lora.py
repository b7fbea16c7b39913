"""O-LoRA: a LoRA block for each task, its keys A kept orthogonal to those of the old blocks (arXiv 2310.14152).

    y = W x + s (B_old A_old x + B A x);    loss + lambda1 sum |A_old A^T|

The block grows as in `lora-append`; the penalty is the strategy `orthogonal`, which goes with any method that appends
blocks. Paper: rank 8, s = 4, dropout 0.1, on the query and value projections.
"""

from __future__ import annotations

from rankwise.learning.recipe import Method

METHOD = Method(
    slug="o-lora",
    title="O-LoRA: a LoRA block for each task, orthogonal to the old ones",
    paper="arXiv 2310.14152 (EMNLP 2023 Findings)",
    axis="growth and loss",
    growth="append",
    identity_at_append="close",
    parameters="rank * (in + out) a site and task; tasks * rank * (in + out) stored",
    peft="converted",
    defaults={"adapter": {"scale": 4.0}, "strategy": [{"kind": "orthogonal"}]},
)
