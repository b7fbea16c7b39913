"""Brainstacks: routing is needed and is enough, rounds pay, the null space helps, measured combinations beat labels."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankwise.adapters import banks_of, using
from rankwise.claims.harness.claim import Claim, Threshold
from rankwise.claims.toys.domains import learn
from rankwise.claims.toys.words import DOMAINS, learner
from rankwise.learning.learner import Learner
from rankwise.learning.run import Watch
from rankwise.papers.brainstacks import Stacks
from rankwise.papers.brainstacks.outcomes import discover, one_hot
from rankwise.papers.brainstacks.projection import project
from rankwise.papers.brainstacks.routing import mixture
from rankwise.streams import Task

STEPS, PLATEAU, DIRECTIONS = 150, 300, 8
TRAIN = {"lr": 5e-3, "schedule": "constant"}


def part_of(made: Learner) -> Stacks:
    """Return the part that keeps the stacks."""
    return next(part for part in made.strategies if isinstance(part, Stacks))


@contextmanager
def mode(made: Learner, name: str) -> Iterator[None]:
    """Let the stacks act as another mode says: router, oracle, ungated."""
    part = part_of(made)
    before, part.settings = part.settings, replace(part.settings, mode=name)
    try:
        yield
    finally:
        part.settings = before


def loss(made: Learner, task: Task, how: str) -> float:
    """Return the mean loss of the answers on a task's test rows, in a mode."""
    with mode(made, how):
        found = made.each(task.test, lambda batch: made.losses(batch, task.classes), made.blocks_for(task))
    return float(found.mean())


class Notes(Watch):
    """Keeps what is known only while the run goes on."""

    def __init__(self, of: Learner) -> None:
        """Watch this learner."""
        self.of, self.losses = of, list[float]()
        self.bases: dict[str, Tensor] = {}

    def task(self, index: int, count: int, name: str, steps: int, done: int) -> None:
        """Keep the directions that the earlier stacks write, before the last domain begins."""
        if index == count - 1 and index:
            part = part_of(self.of)
            before, part.settings = part.settings, replace(part.settings, mode="ungated", directions=DIRECTIONS)
            self.bases = part.protected(self.of, self.of.tasks[index])
            part.settings = before

    def scored(self, name: str, scores: Sequence[float | None]) -> None:
        """Keep the loss of the domain that was just learnt, with all stacks there are."""
        self.losses.append(loss(self.of, self.of.task, "ungated"))


def adapter(**dynamics: Any) -> dict[str, Any]:
    """Return [adapter] of the claims."""
    return {"rank": 4, "dynamics": {"rounds": 1, "directions": DIRECTIONS, "epochs": 30, "lr": 2e-3, **dynamics}}


@cache
def three(seed: int, directions: int = DIRECTIONS) -> Notes:
    """Learn the three domains; return what was noted of it."""
    made = learner("brainstacks", seed, adapter=adapter(directions=directions), train={**TRAIN, "steps": STEPS})
    notes = Notes(made)
    with tempfile.TemporaryDirectory() as place:
        learn(made, Path(place) / "run", notes)
    return notes


def routing(seed: int) -> dict[str, float]:
    """Measure claim 1."""
    made, references = three(seed).of, three(seed).losses
    found: dict[str, float] = {}
    for how in ("oracle", "router", "ungated"):
        ratios = [loss(made, task, how) / own for task, own in zip(made.tasks, references, strict=True)]
        found[f"{how}: loss / just learnt"] = sum(ratios) / len(ratios)
    return {**found, **{f"just learnt, {name}": own for name, own in zip(DOMAINS, references, strict=True)}}


def boosting(seed: int) -> dict[str, float]:
    """Measure claim 2 on the first domain: one stack, two in turn, and one for twice the steps."""
    first, second, longer = (rounds(seed, count, steps) for count, steps in ((1, 1), (2, 1), (1, 2)))
    return {
        "percent gained by a second stack": 100 * (1 - second / first),
        "percent more than by going on": 100 * (longer - second) / first,
        "loss, one stack": first,
        "loss, two stacks": second,
        "loss, one stack for twice the steps": longer,
    }


def rounds(seed: int, count: int, factor: int) -> float:
    """Return the test loss on the first domain after `count` rounds of `factor` times PLATEAU steps."""
    settings = {"rounds": count, "min_improvement": 0.0, "mode": "ungated"}
    train = {**TRAIN, "steps": factor * PLATEAU}
    made = learner("brainstacks", seed, tuple(DOMAINS)[:1], adapter=adapter(**settings), train=train)
    with tempfile.TemporaryDirectory() as place:
        learn(made, Path(place) / "run")
    return loss(made, made.tasks[0], "ungated")


def null_space(seed: int) -> dict[str, float]:
    """Measure claim 3."""
    folded, free = three(seed), three(seed, 0)
    with_, without = (loss(notes.of, notes.of.tasks[0], "ungated") for notes in (folded, free))
    return {
        "ungated loss on domain 1: without - with": without - with_,
        "energy of the last stack in V, with": energy(folded),
        "energy of the last stack in V, without": energy(free),
    }


@torch.no_grad()
def energy(notes: Notes) -> float:
    """Return the share of the squares of the last stack's B that lies in the directions of the earlier ones.

    The largest over the sites.
    """
    found = []
    for name, basis in notes.bases.items():
        bank = banks_of(notes.of.model)[name][1]
        b = bank.tensor("B").index_select(bank.dims["B"], bank.positions(bank.labels[-1])).detach().clone()
        kept = b.clone()
        project(kept, basis)
        found.append(float((b - kept).square().sum() / b.square().sum().clamp_min(1e-30)))
    return max(found)


def outcomes(seed: int) -> dict[str, float]:
    """Measure claim 4: measured combinations against the domain's own stacks, by domain."""
    made = three(seed).of
    gains = [combination_gain(made, task) for task in made.tasks]
    return {
        "least gain of a domain": min(gains),
        "largest gain of a domain": max(gains),
        **{f"gain, {name}": gain for name, gain in zip(DOMAINS, gains, strict=True)},
    }


def combination_gain(made: Learner, task: Task) -> float:
    """Return the mean loss with a task's own stacks less that with the combination measured for each test row."""
    part, place = part_of(made), {int(row): i for i, row in enumerate(task.test.ids)}

    def losses(w: Tensor) -> Tensor:
        def one(batch: Any) -> Tensor:
            own = w[[place[int(row)] for row in batch.ids]]
            with using(made.model, mix=mixture(made, own)):
                return made.losses(batch, task.classes)

        return made.each(task.test, one).float()

    with mode(made, "ungated"):
        label = losses(one_hot(len(task.test), len(made.tasks), task.index)).mean()
        return float(label - discover(losses, len(task.test), len(made.tasks), part.settings.threshold)[1].mean())


SOURCE = "arXiv 2604.01152"
TOY = (
    "Three domains of strings (recall, sums modulo 7, brackets) on a Llama of 2 blocks and 64 features, stacks of four "
    "experts of rank 4, 150 steps a domain"
)

CLAIMS = (
    Claim(
        "brainstacks",
        "1",
        "routing is necessary and sufficient",
        SOURCE,
        f"{TOY}: after the third domain, the mean over domains of the loss over that just after learning is at most "
        "1.02 with the domain told, at most 1.05 with the trained router, and at least 1.15 with all stacks on.",
        (
            Threshold("oracle: loss / just learnt", "<=", 1.02),
            Threshold("router: loss / just learnt", "<=", 1.05),
            Threshold("ungated: loss / just learnt", ">=", 1.15),
        ),
        routing,
        seeds=10,
    ),
    Claim(
        "brainstacks",
        "2",
        "a second round gains what going on does not",
        SOURCE,
        f"The first domain alone, {PLATEAU} steps a round: a second stack on a frozen first one lowers the loss by at "
        "least 1 % more, and going on with the first stack for as many steps gains less.",
        (
            Threshold("percent gained by a second stack", ">=", 1),
            Threshold("percent more than by going on", ">", 0),
        ),
        boosting,
        seeds=10,
    ),
    Claim(
        "brainstacks",
        "3",
        "the null space helps where all stacks are on",
        SOURCE,
        f"{TOY}, {DIRECTIONS} directions a site: with projection the loss on domain 1 after domain 3 with all stacks "
        "on is lower than without in 4 of 5 seeds; the energy of the last stack in the directions of the earlier ones "
        "is at most 1e-6 with it and above 1e-2 without.",
        (
            Threshold("ungated loss on domain 1: without - with", ">", 0, 0.8),
            Threshold("energy of the last stack in V, with", "<=", 1e-6, 1.0),
            Threshold("energy of the last stack in V, without", ">", 1e-2, 1.0),
        ),
        null_space,
    ),
    Claim(
        "brainstacks",
        "4",
        "measured combinations beat the domain's label",
        SOURCE,
        f"{TOY}: the mean loss of answers under the combinations found greedily, each row its own, is on no domain "
        "above that under the domain's own stacks, and below it on at least one.",
        (
            Threshold("least gain of a domain", ">=", 0, 1.0),
            Threshold("largest gain of a domain", ">", 0, 1.0),
        ),
        outcomes,
        seeds=3,
    ),
)
