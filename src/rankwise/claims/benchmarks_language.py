"""The language benchmarks: methods are ordered as published once each has its own learning rate, and rates matter."""

from __future__ import annotations

from itertools import pairwise

from rankwise.claims.harness.claim import Claim, Threshold
from rankwise.claims.toys.text import REVIEWS, Setup, at_own_rate, missing

WHOLE = Setup("reviews", rates=(3e-5, 1e-4, 3e-4))
"""Full fine-tuning, with the rates it picks its own from."""
TOO_FAST = 30
NAMES = {"joint": "joint", "replay": "replay", "O-LoRA": "o-lora", "SeqLoRA": "lora"}
"""As published -> our method, in the published order."""


def rate_matters(seed: int) -> dict[str, float]:
    """Measure claim 1a: fine-tuning at its own rate and at 30 times that rate."""
    best = at_own_rate(WHOLE, "finetune", seed)
    too_fast = WHOLE.learn("finetune", seed, TOO_FAST * best["lr"])
    slow, fast = 100 * best["final_average"], 100 * too_fast["final_average"]
    return {"points lost at 30x": slow - fast, "at its best": slow, "at 30x": fast, "best rate": best["lr"]}


def ordering(seed: int) -> dict[str, float]:
    """Measure claim 1b: the final average of each method at its own rate."""
    runs = {name: at_own_rate(Setup("reviews"), method, seed) for name, method in NAMES.items()}
    points = {name: 100 * results["final_average"] for name, results in runs.items()}
    gaps = {f"{a} - {b}": points[a] - points[b] for a, b in (*pairwise(points), ("joint", "SeqLoRA"))}
    return {**gaps, **points, **{f"rate of {name}": results["lr"] for name, results in runs.items()}}


NOTE = (
    "The published streams have thousands of rows a task and T5 as the base, which writes label words; here the "
    "nearest class mean answers."
)

CLAIMS = (
    Claim(
        "benchmarks-language",
        "1a",
        "sequential fine-tuning is made or broken by its learning rate",
        "MIGU, appendix tables 8 and 9: the O-LoRA benchmark run again",
        f"{REVIEWS}: full fine-tuning in sequence at its best rate ends at least 10 points above itself at 30 times "
        "that rate.",
        (Threshold("points lost at 30x", ">=", 10),),
        rate_matters,
        seeds=3,
        needs=missing,
        note=NOTE,
    ),
    Claim(
        "benchmarks-language",
        "1b",
        "joint >= replay >= O-LoRA >= sequential LoRA",
        "arXiv 2310.14152 (O-LoRA), table 2",
        f"{REVIEWS}: final averages are ordered joint, replay, O-LoRA, sequential LoRA, and joint training is at least "
        "8 points above sequential LoRA.",
        (
            Threshold("joint - replay", ">=", 0),
            Threshold("replay - O-LoRA", ">=", 0),
            Threshold("O-LoRA - SeqLoRA", ">=", 0),
            Threshold("joint - SeqLoRA", ">=", 8),
        ),
        ordering,
        seeds=3,
        needs=missing,
        note=NOTE,
    ),
)
