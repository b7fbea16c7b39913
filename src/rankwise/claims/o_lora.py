"""O-LoRA: keeping the blocks of tasks orthogonal costs plasticity and buys stability."""

from __future__ import annotations

from rankwise.claims.harness.claim import Claim, Threshold
from rankwise.claims.toys.text import REVIEWS, Setup, at_own_rate, missing

NAMES = {"O-LoRA": "o-lora", "IncLoRA": "lora-append"}


def stability(seed: int) -> dict[str, float]:
    """Measure claim 1, in points."""
    runs = {name: at_own_rate(Setup("reviews"), method, seed) for name, method in NAMES.items()}
    learnt = {name: 100 * results["learning_accuracy"] for name, results in runs.items()}
    moved = {name: 100 * abs(results["backward_transfer"]) for name, results in runs.items()}
    return {
        "just learnt: IncLoRA - O-LoRA": learnt["IncLoRA"] - learnt["O-LoRA"],
        "|BWT|: IncLoRA - 3 O-LoRA": moved["IncLoRA"] - 3 * moved["O-LoRA"],
        **{f"just learnt, {name}": points for name, points in learnt.items()},
        **{f"|BWT|, {name}": points for name, points in moved.items()},
        **{f"final average, {name}": 100 * results["final_average"] for name, results in runs.items()},
        **{f"rate of {name}": results["lr"] for name, results in runs.items()},
    }


CLAIMS = (
    Claim(
        "o-lora",
        "1",
        "learns less than the plain sum of blocks, and forgets a third of it",
        "arXiv 2310.14152, the authors' released logs (order 6)",
        f"{REVIEWS}: O-LoRA's just-learnt average is below that of IncLoRA (the same blocks without the penalty), and "
        "the absolute value of its backward transfer is at least 3 times smaller.",
        (
            Threshold("just learnt: IncLoRA - O-LoRA", ">", 0),
            Threshold("|BWT|: IncLoRA - 3 O-LoRA", ">=", 0),
        ),
        stability,
        seeds=10,
        needs=missing,
        note="The claim is about 15 tasks on T5; the nearest class mean, which answers here, forgets little by itself.",
    ),
)
