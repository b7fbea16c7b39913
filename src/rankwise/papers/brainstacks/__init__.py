"""Brainstacks, the training core: frozen stacks of LoRA experts, a domain after another, behind a router of prompts
(arXiv 2604.01152).

    round k of a domain:  append a stack, delta_k(x) = sum_e g_e B_e A_e x, g = sparse softmax of a noisy router;
                          train it on what the frozen ones leave over; keep its best values; freeze it
    later domains:        B <- (I - V V^T) B,   V: main directions of what the frozen stacks write
    after all domains:    a router of prompts gives each stack a weight in [0, 1]; it learns from measured losses
    y = W x + s sum over stacks of mix_k delta_k(x)

| symbol | shape | meaning |
|---|---|---|
| V | [out, k] | main directions that earlier domains write at a site |
| mix | [n, stacks] | the router's weights of the stacks for each prompt |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rankwise.adapters import Change, banks_of
from rankwise.adapters.experts import Experts
from rankwise.adapters.store import under
from rankwise.learning.recipe import Method, rank_stabilised
from rankwise.papers.brainstacks.projection import directions, project
from rankwise.papers.brainstacks.rounds import Best
from rankwise.papers.brainstacks.router import MetaRouter, rebuilt
from rankwise.papers.brainstacks.routing import ROUND, mixture, stacks, teach, weights
from rankwise.papers.brainstacks.settings import StackSettings
from rankwise.seeds import generator
from rankwise.strategies import Host, Phase, Strategy
from rankwise.streams import Batch, Task


class Stacks(Strategy):
    """Rounds of boosting, projection away from earlier domains, and the router, around blocks that freeze and add up.

    A round appends a stack that writes nothing yet, trains it on the task's own loss with all earlier ones acting, and
    ends with the best values by validation loss (without validation rows: the last values, and all rounds).

    Projection: with V [out, k] the main directions of what the frozen stacks add, a later domain's stack writes
    (I - V V^T) B. Instead of projecting its output in training and folding the projector into B in the end, B and its
    gradient are projected in each step: the same course, since the forward only ever sees (I - V V^T) B, and it holds
    in evaluation, at inference and in what is saved alike.
    """

    name = "brainstacks"
    Settings = StackSettings
    reads = frozenset({"loss", "gradients", "live"})
    writes = {"projection": "set", "mixture": "set"}
    needs_adapter = True
    plans = True

    def __init__(self, settings: StackSettings | None = None, seed: int = 0) -> None:
        """Start without stacks."""
        super().__init__(settings or StackSettings(), seed)
        self.finished = 0  # domains learnt
        self.rows = torch.empty(0, 2, dtype=torch.long)  # kept training rows: (task index, position)
        self.bases: dict[str, Tensor] = {}  # site -> V [out, k] of the domain under way
        self.best = Best()
        self.router: MetaRouter | None = None

    def begin_task(self, host: Host, task: Task) -> None:
        """Take the directions that earlier domains write."""
        self.bases = self.protected(host, task) if self.finished and self.settings.directions else {}

    def protected(self, host: Host, task: Task) -> dict[str, Tensor]:
        """Return, by site, what the stacks so far write, for examples of earlier domains or of `task`: [out, k]."""
        new = torch.tensor([[task.index, i] for i in range(len(task.train))])
        rows = new if self.settings.probe == "new" else self.rows
        drawn = torch.randperm(len(rows), generator=generator(self.seed, "probes", task.name))[: self.settings.probes]
        return directions(host, rows[drawn], self.settings.directions)

    def plan(self, host: Host, task: Task, done: Sequence[Mapping[str, Any]]) -> Phase | None:
        """Return the next round, unless there were enough or the last one gained too little."""
        losses = [report["loss"] for report in done if "loss" in report]
        if len(done) >= self.settings.rounds:
            return None
        if len(losses) > 1 and losses[-2] - losses[-1] < self.settings.min_improvement:
            return None
        label = f"{task.name}{ROUND}{len(done) + 1}"
        return Phase(f"round {len(done) + 1}", changes=(Change("freeze"), Change("append", label, host.rank)))

    def begin_phase(self, host: Host, phase: Phase) -> None:
        """Start a round's watch over the validation loss."""
        self.best = Best()

    def shape(self, host: Host, step: int) -> None:
        """Take out of the gradient of B what earlier domains write."""
        for name, basis in self.bases.items():
            gradient = banks_of(host.model)[name][1].live["B"].grad
            if gradient is not None:
                project(gradient, basis)

    @torch.no_grad()
    def settle(self, host: Host, step: int) -> None:
        """Take it out of B, which an elementwise rule moves out of the plane."""
        for name, basis in self.bases.items():
            project(banks_of(host.model)[name][1].live["B"], basis)

    def follow(self, host: Host, step: int) -> None:
        """Count the round's steps."""
        self.best.steps += 1

    def enough(self, host: Host) -> bool:
        """Look at the validation loss when it is time, and say whether it has spiked or stopped falling."""
        if self.best.steps % self.settings.eval_every or host.task.validation is None:
            return False
        loss = self.look(host)
        return loss > self.best.loss + self.settings.spike or self.best.misses >= self.settings.patience

    def look(self, host: Host) -> float:
        """Return the validation loss; keep the live values if it is the best of the round."""
        task, training = host.task, host.model.training
        assert task.validation is not None
        losses = host.each(task.validation, lambda batch: host.losses(batch, host.classes(task)))
        host.model.train(training)
        self.best.note(float(losses.mean()), host.live())
        return float(losses.mean())

    def end_phase(self, host: Host, phase: Phase) -> Mapping[str, Any]:
        """Put back the best values; report their validation loss."""
        if host.task.validation is None:
            return {}
        if self.best.steps % self.settings.eval_every or not self.best.values:
            self.look(host)
        self.best.put_back(host.live())
        return {"loss": self.best.loss}

    def end_task(self, host: Host, task: Task) -> Sequence[Change]:
        """Keep rows of the domain, train the router on all domains so far, freeze."""
        order = torch.randperm(len(task.train), generator=generator(self.seed, "kept", task.name))
        places = order[: self.settings.memory].sort().values
        self.rows = torch.cat([self.rows, torch.stack([torch.full_like(places, task.index), places], 1)])
        if self.settings.mode == "router":
            self.router = teach(host, self.rows, self.settings, self.seed)
        self.finished = task.index + 1
        return (Change("freeze"),)

    def acting(self, host: Host, task: Task) -> tuple[str, ...] | None:
        """Return the stacks a finished domain was learnt with, where the domain is told."""
        if self.settings.mode != "oracle" or task.index >= self.finished:
            return None
        return tuple(label for label, domain in stacks(host).items() if domain <= task.index)

    def context(self, host: Host, batch: Batch, step: int | None) -> Mapping[str, Any]:
        """Weigh the stacks for each prompt in evaluation, unless a domain is being learnt: all are on then."""
        learning = step is not None or host.task.index >= self.finished
        if learning or self.router is None or self.settings.mode != "router":
            return {}
        return {"mix": mixture(host, weights(self.router, host, batch, self.settings))}

    def remembered(self) -> Tensor:
        """Return the kept rows where old features have moved: under a router, which is trained anew."""
        return self.rows if self.settings.mode == "router" else self.rows[:0]

    def artefact(self) -> dict[str, Tensor]:
        """Return the router's weights."""
        return {} if self.router is None else dict(self.router.state_dict())

    def state(self) -> dict[str, Tensor]:
        """Return all of it."""
        parts = {"basis": self.bases, "best": self.best.state(), "router": self.artefact()}
        tensors = {f"{part}/{name}": tensor for part, held in parts.items() for name, tensor in held.items()}
        return {"finished": torch.tensor(self.finished), "rows": self.rows, **tensors}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take it back."""
        self.finished, self.rows = int(state["finished"]), state["rows"].clone()
        self.bases, best, router = (under(state, f"{part}/") for part in ("basis", "best", "router"))
        self.best.restore(best)
        self.router = rebuilt(router) if router else None


METHOD = Method(
    slug="brainstacks",
    title="Brainstacks: frozen stacks of LoRA experts, routed by prompt",
    paper="arXiv 2604.01152",
    axis="growth and routing: stacks by rounds, weighed for each prompt",
    form=Experts,
    dynamics=Stacks,
    growth="planned",
    scaling=rank_stabilised,
    mergeable=False,
    peft=None,
    parameters="experts * rank * (in + out) + 2 * experts * in a site and round",
    refuses=(
        "merge: routers depend on the input",
        "accumulation and several processes: balance is a batch's",
        "4-bit bases and the preference phase of the paper",
    ),
    defaults={"adapter": {"form": {"noisy": True, "balance": 0.01}}},
)
