"""QLoRA: a LoRA on a base whose weights are held in 4 bits (arXiv 2305.14314).

    y = dequantise(Q) x + s B A x;    A and B in float32, learnt as in `lora`

| symbol | shape | meaning |
|---|---|---|
| Q | [out, in] in 4 bits | NF4 in blocks of 64 values whose scales are quantised too; it never learns |
"""

from __future__ import annotations

from rankwise.learning.recipe import Method

METHOD = Method(
    slug="qlora",
    title="QLoRA: LoRA over a base in 4 bits",
    paper="arXiv 2305.14314 (NeurIPS 2023)",
    axis="base: NF4 weights, dequantised for each product",
    parameters="rank * (in + out) a site",
    refuses=(
        "merge into 4-bit weights: they are dequantised first, as `rankwise merge` does",
        "model.quantize without the extra `quant` (bitsandbytes)",
    ),
    defaults={"model": {"quantize": "nf4"}},
)
