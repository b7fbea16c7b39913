"""SEMA: adapters come where the domain is new and nowhere else, they pay, a threshold decides how many there are."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

from rankwise.adapters import banks_of
from rankwise.claims.harness.claim import Claim, Threshold
from rankwise.claims.toys.domains import ORDER, learnt, stream
from rankwise.learning.metrics import final_average

LIMIT = 12.0
NEVER = 1e6
KNOB = (0.5, 2.0, 8.0, 32.0, 128.0, NEVER)
BLOCKS = 2  # that may expand, the last ones of three
TRAIN = {"batch_size": 16, "lr": 1e-2}


@cache
def run(seed: int, threshold: float) -> tuple[dict[str, int], float]:
    """Return, for each task, how many adapters it added in the last two blocks, and the final average in points."""
    dynamics = {"threshold": threshold, "scan_batch": 64, "descriptor_share": 3.0, "descriptor_lr": 0.03}
    adapter = {"rank": 4, "form": {"expandable": BLOCKS, "latent": 4}, "dynamics": dynamics}
    made, rows = learnt("sema", stream(seed=seed), seed=seed, adapter=adapter, train=TRAIN)
    grown = [bank.labels for _, bank in list(banks_of(made.model).values())[-BLOCKS:]]
    return {task: sum(task in labels for labels in grown) for task in ORDER}, 100 * (final_average(rows) or 0.0)


@cache
def one_adapter(seed: int) -> float:
    """Return the final average of one LoRA beside the MLPs, trained through all tasks, in points."""
    adapter: dict[str, Any] = {"rank": 4, "sites": ["mlp.fc1", "mlp.fc2"]}
    return 100 * (final_average(learnt("lora", stream(seed=seed), seed=seed, adapter=adapter, train=TRAIN)[1]) or 0.0)


def reuse(seed: int) -> dict[str, float]:
    """Measure claim 1."""
    added, _ = run(seed, LIMIT)
    right = all(added[task] >= 1 for task in ("B", "C")) and not any(added[task] for task in ("A'", "B'"))
    return {
        "adapters at B and C, none at A' and B'": float(right),
        "adapters in all": float(sum(added.values())),
        **{f"adapters at {task}": float(count) for task, count in added.items()},
    }


def pays(seed: int) -> dict[str, float]:
    """Measure claim 2."""
    points = {"SEMA": run(seed, LIMIT)[1], "never expanding": run(seed, NEVER)[1], "one adapter": one_adapter(seed)}
    gains = {f"SEMA - {name}": points["SEMA"] - points[name] for name in ("never expanding", "one adapter")}
    return {**gains, **points}


def knob(seed: int) -> dict[str, float]:
    """Measure claim 3."""
    counts = {threshold: sum(run(seed, threshold)[0].values()) for threshold in KNOB}
    return {
        "never more at a higher threshold": float(all(few <= many for many, few in pairwise(counts.values()))),
        **{f"adapters at {threshold:g}": float(count) for threshold, count in counts.items()},
    }


SOURCE = "arXiv 2403.18886"
TOY = (
    "Images of three domains in the order A, B, A', B', C (a dash: new classes of the same domain), a random "
    f"transformer of three blocks whose last two may expand, threshold {LIMIT:g}"
)

CLAIMS = (
    Claim(
        "sema",
        "1",
        "adapters come at new domains and are used again at old ones",
        SOURCE,
        f"{TOY}: the two blocks gain at least one adapter at B and at C and none at A' and B', in 4 of 5 seeds; there "
        "are fewer adapters than tasks times blocks.",
        (
            Threshold("adapters at B and C, none at A' and B'", ">=", 1, 0.8),
            Threshold("adapters in all", "<", len(ORDER) * BLOCKS, 1.0),
        ),
        reuse,
    ),
    Claim(
        "sema",
        "2",
        "expansion pays",
        SOURCE,
        f"{TOY}: the mean accuracy after the last task is at least 5 points above the same run without expansion, and "
        "at least 10 points above one adapter trained through all tasks.",
        (
            Threshold("SEMA - never expanding", ">=", 5),
            Threshold("SEMA - one adapter", ">=", 10),
        ),
        pays,
        note="The one adapter is a LoRA of the same rank beside the MLPs; the nearest class mean answers everywhere.",
    ),
    Claim(
        "sema",
        "3",
        "the threshold decides how many adapters there are",
        SOURCE,
        f"{TOY.split(', threshold')[0]}: the number of adapters never grows over the thresholds 0.5, 2, 8, 32, 128; at "
        "0.5 every block expands at every task, at 1e6 none ever does.",
        (
            Threshold("never more at a higher threshold", ">=", 1, 1.0),
            Threshold("adapters at 0.5", ">=", len(ORDER) * BLOCKS, 1.0),
            Threshold("adapters at 1e+06", "<=", BLOCKS, 1.0),
        ),
        knob,
    ),
)
