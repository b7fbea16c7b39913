"""The language benchmarks: methods are ordered as published once each has its own learning rate, and rates matter."""

from __future__ import annotations

from functools import cache

from rankwise.claims.harness.claim import Claim, Threshold
from rankwise.claims.toys.text import config, learn, missing, reviews, tuned

WHOLE = (3e-5, 1e-4, 3e-4)
"""Learning rates from which full fine-tuning picks its own."""
THIN = (3e-4, 1e-3, 3e-3)
"""The same for adapters."""
TOO_FAST = 30


@cache
def final(method: str, seed: int, lr: float) -> float:
    """Return the final average of a run over the four tasks, in points."""
    return 100 * learn(config(reviews(), method, seed, lr))["final_average"]


def rate_matters(seed: int) -> dict[str, float]:
    """Measure claim 1: fine-tuning at its own rate and at 30 times that rate."""
    best = tuned("reviews", "finetune", WHOLE)
    at_best, too_fast = final("finetune", seed, best), final("finetune", seed, TOO_FAST * best)
    return {"points lost at 30x": at_best - too_fast, "at its best": at_best, "at 30x": too_fast, "best rate": best}


def ordering(seed: int) -> dict[str, float]:
    """Measure claim 2: the final average of each method at its own rate."""
    names = {"joint": "joint", "replay": "replay", "O-LoRA": "o-lora", "SeqLoRA": "lora"}
    rates = {name: tuned("reviews", method, THIN) for name, method in names.items()}
    points = {name: final(method, seed, rates[name]) for name, method in names.items()}
    pairs = list(zip(points, list(points)[1:], strict=False))
    gaps = {f"{better} - {worse}": points[better] - points[worse] for better, worse in (*pairs, ("joint", "SeqLoRA"))}
    return {**gaps, **points, **{f"rate of {name}": rate for name, rate in rates.items()}}


SIZES = (
    "MiniLM, 4 text tasks (dbpedia, agnews, amazon, sst2), 160 training rows each, 32 tokens, 2 epochs, each method's "
    "rate picked from three on validation rows of the first two tasks"
)
NOTE = (
    "The published streams have thousands of rows a task and T5 as the base, which writes label words; here the nearest "
    "class mean answers."
)

CLAIMS = (
    Claim(
        "benchmarks-language",
        "1",
        "sequential fine-tuning is made or broken by its learning rate",
        "MIGU (arXiv 2406.17245), appendix: re-runs of the O-LoRA benchmark",
        f"{SIZES}: full fine-tuning in sequence at its best rate ends at least 10 points above itself at 30 times that "
        "rate.",
        (Threshold("points lost at 30x", ">=", 10),),
        rate_matters,
        seeds=3,
        needs=missing,
        note=NOTE,
    ),
    Claim(
        "benchmarks-language",
        "2",
        "joint >= replay >= O-LoRA >= sequential LoRA",
        "arXiv 2310.14152 (O-LoRA), table 2",
        f"{SIZES}: final averages are ordered joint, replay, O-LoRA, sequential LoRA, and joint training is at least 8 "
        "points above sequential LoRA.",
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
