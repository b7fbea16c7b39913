"""I-LoRA: a fast LoRA learns, a slow one follows by interpolation, teaches, and is deployed (arXiv 2402.18865).

    L = CE(x, y)                                                     in the first task
    L = 1/2 [CE(x, y) + CE(x', y')] + gamma mean (h(x'; fast) - h(x'; slow))^2        after it
    slow <- lambda slow + (1 - lambda) fast after every step, lambda_k = min(1 - 1/(k+1), lambda)

(x', y') are as many stored examples as new ones; the mean is over layers, tokens and channels; k counts the steps of
the whole stream. Every part is a strategy of its own, so this recipe is nothing but their settings: any other adapter
takes them as well. The factors A and B are averaged, never their product.

Changed from the authors' code, which does not do what the paper says: there the moving average never reaches the slow
copy, so that it stays at its start and pulls towards the base, and the fast copy is what is saved. Their lambda = 0.25
looks back 1.3 steps, which makes the slow copy the fast one; the default here looks back a hundred. Changed from the
paper: rows are offered to the buffer when their task ends, not in every step (`offer = "step"` of `replay` does that).
"""

from __future__ import annotations

from rankwise.learning.recipe import Method

REPLAY = {"kind": "replay", "size": 500, "batch_size": 0, "average": True}
SLOW = {"kind": "ema", "decay": 0.99, "warmup": True}
CONSISTENCY = {"kind": "consistency", "weight": 2.0}  # beside a rehearsal that weighs 1/2: gamma = 1

METHOD = Method(
    slug="i-lora",
    title="I-LoRA: interpolation of a fast and a slow LoRA",
    paper="arXiv 2402.18865 (ICASSP 2025)",
    axis="memory",
    parameters="rank * (in + out) a site",
    refuses=("joint order: there is no past to rehearse",),
    defaults={"strategy": [REPLAY, SLOW, CONSISTENCY]},
)
