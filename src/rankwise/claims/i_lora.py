"""I-LoRA: the slow copy keeps more than replay alone, a line of low loss joins tasks, and the copy must move."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankwise.claims.harness.claim import Claim, Threshold
from rankwise.claims.toys.domains import base, learn, learner
from rankwise.learning.connectivity import Values, barrier, connectivity_path
from rankwise.learning.learner import Learner
from rankwise.learning.metrics import backward_transfer, final_average
from rankwise.learning.run import Watch
from rankwise.seeds import generator
from rankwise.streams import Split, Stream, Task

DOMAINS, LABELS, BUFFER, STEPS = 5, 6, 60, 100
ROWS = {"train": 80, "test": 40}
REPLAY: dict[str, Any] = {"kind": "replay", "size": BUFFER, "batch_size": 0, "average": True}
CONSISTENCY = {"kind": "consistency", "weight": 2.0}
PARTS: Mapping[str, list[dict[str, Any]]] = {
    "sequential": [],
    "ER": [REPLAY],
    "ER + EMA": [REPLAY, {"kind": "ema", "decay": 0.99}],
    "I-LoRA": [REPLAY, {"kind": "ema", "decay": 0.99}, CONSISTENCY],
    "stuck": [REPLAY, {"kind": "ema", "decay": 1.0, "warmup": False}, CONSISTENCY],
}
"""Name -> what is put around one LoRA of rank 8."""
ALPHAS = tuple(i / 10 for i in range(11))
WORSE, RIDGE = -0.5, 0.1
"""Points that the best point of a line may be below its better end, and the largest barrier over the gap."""


def images(seed: int, domain: int, label: int, part: str) -> Tensor:
    """Draw uint8 images [n, 8, 8]: what a label looks like is another thing in each domain."""
    pattern, mark = (
        torch.randn(8, 8, generator=generator(seed, *keys)).sign()
        for keys in (("domain", domain), ("label", domain, label))
    )
    noise = torch.randn(ROWS[part], 8, 8, generator=generator(seed, "noise", domain, label, part))
    return (128 + 40 * pattern + 25 * mark + 25 * noise).clamp(0, 255).round().to(torch.uint8)


def stream(seed: int, domains: int = DOMAINS) -> Stream:
    """Return the stream: the same six labels in one domain after another."""

    def split(domain: int, part: str) -> Split:
        rows = torch.cat([images(seed, domain, label, part) for label in range(LABELS)])
        labels = torch.arange(LABELS).repeat_interleave(ROWS[part])
        return Split(rows, labels, torch.arange(len(labels)))

    classes = tuple(range(LABELS))
    tasks = [Task(f"domain-{d}", d, classes, split(d, "train"), None, split(d, "test")) for d in range(domains)]
    return Stream("labels", "domain-incremental", "image", tuple(map(str, classes)), tuple(tasks), {"seed": seed})


def made(
    folder: Path,
    seed: int,
    parts: Sequence[Mapping[str, Any]],
    domains: int = DOMAINS,
    start: int | None = None,
    **train: Any,
) -> Learner:
    """Return the learner of one LoRA with `parts` around it, drawn from `start` (default: `seed`); the head answers."""
    tables: dict[str, Any] = {
        "strategy": list(parts),
        "objective": {"head": "linear", "classes": "seen", "predict": "head"},
        "train": {"steps": STEPS, "lr": 1e-2, **train},
    }
    return learner(base(folder), "lora", stream(seed, domains), seed=seed if start is None else start, **tables)


@dataclass(frozen=True)
class Scores:
    """What a run came to, in points."""

    final: float
    moved: float
    """Backward transfer."""
    fast: float
    """Final average of the fast copy, as the last step left it."""


@cache
def scored(name: str, seed: int) -> Scores:
    """Learn the stream with one of PARTS."""
    with tempfile.TemporaryDirectory() as place:
        one = made(Path(place) / "base", seed, PARTS[name])
        ends = Ends(one)
        rows = learn(one, Path(place) / "run", ends).rows
    one.strategies = tuple(part for part in one.strategies if part.deployed() is None)  # now the live values answer
    one.put(ends.values[-1])
    fast = sum(one.objective.score(one, task, task.test) or 0.0 for task in one.tasks) / DOMAINS
    return Scores(100 * (final_average(rows) or 0.0), 100 * (backward_transfer(rows) or 0.0), 100 * fast)


class Ends(Watch):
    """Keeps the live values after the last step of each task."""

    def __init__(self, of: Learner) -> None:
        """Watch this learner."""
        self.of, self.values = of, list[dict[str, Tensor]]()

    def stepped(self, done: int, loss: float) -> None:
        """Keep a copy."""
        if done == self.of.steps(self.of.task):
            self.values.append(dict(self.of.snapshot().tensors))


def keeps(seed: int) -> dict[str, float]:
    """Measure claim 1."""
    runs = {name: scored(name, seed) for name in ("sequential", "ER", "ER + EMA", "I-LoRA")}
    ours = runs["I-LoRA"]
    return {
        "I-LoRA - sequential": ours.final - runs["sequential"].final,
        "BWT: I-LoRA - ER": ours.moved - runs["ER"].moved,
        "I-LoRA - ER": ours.final - runs["ER"].final,
        "slow copy - fast copy": ours.final - ours.fast,
        **{f"final average, {name}": run.final for name, run in runs.items()},
        **{f"BWT, {name}": run.moved for name, run in runs.items()},
    }


def stuck(seed: int) -> dict[str, float]:
    """Measure claim 3."""
    with tempfile.TemporaryDirectory() as place:
        rows = learn(made(Path(place) / "base", seed, [], steps=0), Path(place) / "run").rows
    never, untouched = scored("stuck", seed).final, 100 * (final_average(rows) or 0.0)
    return {"|stuck copy - base|": abs(never - untouched), "stuck copy": never, "base": untouched}


def two_tasks(seed: int, start: int) -> tuple[Learner, list[dict[str, Tensor]]]:
    """Learn the first two tasks of `seed` with replay, from the draws of `start`; return what was learnt after each."""
    with tempfile.TemporaryDirectory() as place:
        one = made(Path(place) / "base", seed, PARTS["ER"], domains=2, start=start)
        ends = Ends(one)
        learn(one, Path(place) / "run", ends)
    return one, ends.values


def line(one: Learner, theta_a: Values, theta_b: Values) -> tuple[float, float]:
    """Return, on the line from a to b: the best mean score inside over the better end's, in points; and the barrier of
    the loss on task 1 over the gap of that loss between the ends."""
    scores, losses = [], []
    for values in connectivity_path(theta_a, theta_b, ALPHAS):
        one.put(values)
        scores.append(100 * sum(one.objective.score(one, task, task.test) or 0.0 for task in one.tasks) / 2)
        first = one.tasks[0]
        losses.append(float(one.each(first.test, lambda batch: one.losses(batch, one.tasks[0].classes)).mean()))
    gap = abs(losses[-1] - losses[0])
    return max(scores[1:-1]) - max(scores[0], scores[-1]), barrier(losses, ALPHAS) / gap


def joined(seed: int) -> dict[str, float]:
    """Measure claim 2: the line between two tasks of a run, and between runs that share no draw of the factors."""
    one, (first, second) = two_tasks(seed, seed)
    gain, ridge = line(one, first, second)
    _, (strange, _) = two_tasks(seed, seed + 1000)
    strange_gain, strange_ridge = line(one, strange, second)
    return {
        "best between the ends - better end": gain,
        "barrier on task 1 / gap of the ends": ridge,
        "strangers do as well": float(strange_gain >= WORSE and strange_ridge < RIDGE),
        "strangers: best between - better end": strange_gain,
        "strangers: barrier on task 1 / gap": strange_ridge,
    }


SOURCE = "arXiv 2402.18865"
TOY = (
    "5 domains of images with the same 6 labels, which look different in each, LoRA of rank 8 on a small random "
    "transformer, 100 steps a task, buffer of 60"
)

CLAIMS = (
    Claim(
        "i-lora",
        "1",
        "the slow copy keeps more than replay alone",
        SOURCE,
        f"{TOY}: I-LoRA ends at least 10 points above sequential LoRA and at least 4 above replay; its backward "
        "transfer is at most 1 point below that of replay; its slow copy is at least 2 points above its fast one.",
        (
            Threshold("I-LoRA - sequential", ">=", 10),
            Threshold("BWT: I-LoRA - ER", ">=", -1),
            Threshold("I-LoRA - ER", ">=", 4),
            Threshold("slow copy - fast copy", ">=", 2),
        ),
        keeps,
        seeds=10,
    ),
    Claim(
        "i-lora",
        "2",
        "a line of low loss joins what a run was after one task and after the next",
        SOURCE,
        f"{TOY}, two tasks with replay: on the line between the values after task 1 and after task 2, the best mean "
        "score is at most 0.5 points below that of the better end, and the barrier of the loss on task 1 is below 10 % "
        "of its gap between the ends; for ends of two runs with different draws of the factors, not both are so.",
        (
            Threshold("best between the ends - better end", ">=", WORSE),
            Threshold("barrier on task 1 / gap of the ends", "<", RIDGE),
            Threshold("strangers do as well", "<", 0.5),
        ),
        joined,
    ),
    Claim(
        "i-lora",
        "3",
        "a slow copy that never moves answers like the base",
        SOURCE,
        f"{TOY}: with lambda = 1 the slow copy is within 1 point of the model before any learning.",
        (Threshold("|stuck copy - base|", "<=", 1),),
        stuck,
        seeds=3,
    ),
)
