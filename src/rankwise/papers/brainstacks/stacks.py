"""The dynamics of Brainstacks: rounds that append stacks, kept off earlier domains, behind a router of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rankwise.adapters import Change, banks_of
from rankwise.adapters.experts import Experts
from rankwise.adapters.store import under
from rankwise.papers.brainstacks.projection import directions, project
from rankwise.papers.brainstacks.rounds import Rounds
from rankwise.papers.brainstacks.router import MetaRouter, rebuilt
from rankwise.papers.brainstacks.routing import mixture, stacks, teach, weights
from rankwise.papers.brainstacks.settings import StackSettings
from rankwise.seeds import generator
from rankwise.strategies import Confined, Confinement, Host
from rankwise.streams import Batch, Task


class Stacks(Rounds, Confined):
    """Rounds of boosting, projection away from earlier domains, and the router, around blocks that freeze and add up.

    A round appends a stack that writes nothing yet, trains it on the task's own loss with all earlier ones acting, and
    ends with the best values by validation loss (without validation rows: the last values, and all rounds).

    Projection: with V [out, k] the main directions of what the frozen stacks add, a later domain's stack writes
    (I - V V^T) B. Instead of projecting its output in training and folding the projector into B in the end, B and its
    gradient are projected in each step: the same course, since the forward only ever sees (I - V V^T) B, and it holds
    in evaluation, at inference and in what is saved alike.
    """

    name = "brainstacks"
    reads = frozenset({"loss", "gradients", "live"})
    writes = {"projection": "set", "mixture": "set", "the values a task ends with": "set"}
    needs_form = Experts
    needs_growth = ("planned", "it appends a stack a round itself; choose the method of that name")

    def __init__(self, settings: StackSettings | None = None, seed: int = 0) -> None:
        """Start without stacks."""
        super().__init__(settings, seed)
        self.finished = 0  # domains learnt
        self.rows = torch.empty(0, 2, dtype=torch.long)  # kept training rows: (task index, position)
        self.bases: dict[str, Tensor] = {}  # site -> V [out, k] of the domain under way
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

    def confined(self, host: Host) -> Iterator[Confinement]:
        """Yield B of each site, and what takes the directions of earlier domains out of it."""
        for name, basis in self.bases.items():
            yield banks_of(host.model)[name][1].live["B"], partial(project, basis=basis)

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
