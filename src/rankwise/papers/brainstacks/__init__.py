"""Brainstacks, the training core: frozen stacks of LoRA experts, a domain after another, behind a router of prompts
(arXiv 2604.01152)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from rankwise.adapters import Change, banks_of, using
from rankwise.adapters.experts import Experts
from rankwise.adapters.probes import means_of
from rankwise.config import Count, NotNegative, Positive
from rankwise.learning.recipe import Method, rank_stabilised
from rankwise.papers.brainstacks.outcomes import discover, targets
from rankwise.papers.brainstacks.router import Fitting, MetaRouter, fit, rebuilt, states_read
from rankwise.seeds import generator
from rankwise.strategies import Host, Phase, Strategy
from rankwise.streams import Batch, Task

ROUND = "#"
"""Stands in a stack's label between its domain (the task's name) and the number of its round."""
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class StackSettings:
    """[adapter.dynamics] of Brainstacks."""

    rounds: Count = 2
    """Stacks a domain may get, one after another, each on what those before leave over."""
    min_improvement: NotNegative = 0.002
    """Fall of the validation loss from a round to the next below which there is no further one."""
    eval_every: Count = 50
    """Steps between two looks at the validation loss."""
    patience: Count = 4
    """Looks without a new best after which a round ends."""
    spike: Positive = 0.1
    """Rise of the validation loss above its best that ends a round at once."""
    directions: Annotated[int, Field(ge=0)] = 64
    """k, directions a site's earlier stacks write that a later domain may not write; 0: no projector. About out/64."""
    probes: Count = 400
    """Examples from which the directions are taken."""
    probe: Literal["previous", "new"] = "previous"
    """Whose examples: kept ones of earlier domains, or those of the domain about to be learnt."""
    memory: Count = 200
    """Training rows of each finished domain that are kept: for directions, for the router, for class means."""
    mode: Literal["router", "oracle", "ungated"] = "router"
    """Which stacks act at test time. router: each domain weighed for each prompt; oracle: told the domain, those it was
    learnt with; ungated: all."""
    threshold: NotNegative = 0.01
    """Fall of an example's loss that makes one more domain worth its while."""
    prior: Share = 0.2
    """Share of an example's own domain in what the router is to answer."""
    gate: Share = 0.12
    """Weight up to which a domain is left out altogether."""
    floor: Share = 0.0
    """Least weight of the first domain, for every prompt. Paper: 0.2 for its chat domain."""
    width: Count = 128
    """Width of the router. Paper: 512."""
    epochs: Count = 20
    """Passes of the router's training over the kept rows. Paper: 8, over ten times as many."""
    lr: Positive = 8e-4
    """Learning rate of the router."""


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
        self.rows = torch.empty(0, 2, dtype=torch.long)
        self.bases: dict[str, Tensor] = {}  # site -> V of the domain under way
        self.steps, self.misses, self.best = 0, 0, torch.inf  # of the round under way
        self.kept: dict[str, Tensor] = {}
        self.router: MetaRouter | None = None

    # Rounds

    def begin_task(self, host: Host, task: Task) -> None:
        """Take the directions that earlier domains write."""
        self.bases = self.directions(host, task) if self.finished and self.settings.directions else {}

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
        self.steps, self.misses, self.best, self.kept = 0, 0, torch.inf, {}

    def follow(self, host: Host, step: int) -> None:
        """Count the round's steps."""
        self.steps += 1

    def enough(self, host: Host) -> bool:
        """Look at the validation loss when it is time, and say whether it has spiked or stopped falling."""
        if self.steps % self.settings.eval_every or host.task.validation is None:
            return False
        loss = self.look(host)
        return loss > self.best + self.settings.spike or self.misses >= self.settings.patience

    def look(self, host: Host) -> float:
        """Return the validation loss; keep the live values if it is the best of the round."""
        task, training = host.task, host.model.training
        assert task.validation is not None
        losses = host.each(task.validation, lambda batch: host.losses(batch, host.classes(task)))
        host.model.train(training)
        loss = float(losses.mean())
        self.misses = 0 if loss < self.best else self.misses + 1
        if loss < self.best:
            self.best = loss
            self.kept = {name: parameter.detach().clone() for name, parameter in host.live().items()}
        return loss

    @torch.no_grad()
    def end_phase(self, host: Host, phase: Phase) -> Mapping[str, Any]:
        """Put back the best values; report their validation loss."""
        if host.task.validation is None:
            return {}
        if self.steps % self.settings.eval_every or not self.kept:
            self.look(host)
        for name, parameter in host.live().items():
            parameter.copy_(self.kept[name])
        self.kept = {}
        return {"loss": self.best}

    # Projection

    def directions(self, host: Host, task: Task) -> dict[str, Tensor]:
        """Return, for each site, the main directions [out, k] of the mean updates that the frozen stacks write."""
        new = torch.tensor([[task.index, i] for i in range(len(task.train))])
        rows = new if self.settings.probe == "new" else self.rows
        rows = rows[torch.randperm(len(rows), generator=generator(self.seed, "probes", task.name))]
        rows = rows[: self.settings.probes]
        found = [self.written(host, host.tasks[t], rows[rows[:, 0] == t, 1]) for t in rows[:, 0].unique().tolist()]
        widths = [site.n_out for site, _ in banks_of(host.model).values()]
        per_site = torch.cat(found).split(widths, 1)
        return {n: principal(d, self.settings.directions) for n, d in zip(banks_of(host.model), per_site, strict=True)}

    def written(self, host: Host, task: Task, places: Tensor) -> Tensor:
        """Return what all stacks add at each site for training rows of `task`, a token's mean: [n, sum of out]."""

        def rows(batch: Batch) -> Tensor:
            added = means_of(host.model, "delta", lambda: host.forward(batch))
            return torch.cat([added[name].float() for name in banks_of(host.model)], 1)

        return host.each(task.train.take(places), rows)

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

    # Routing

    def end_task(self, host: Host, task: Task) -> Sequence[Change]:
        """Keep rows of the domain, train the router on all domains so far, freeze."""
        order = torch.randperm(len(task.train), generator=generator(self.seed, "kept", task.name))
        places = order[: self.settings.memory].sort().values
        self.rows = torch.cat([self.rows, torch.stack([torch.full_like(places, task.index), places], 1)])
        if self.settings.mode == "router":
            self.router = self.taught(host, task.index + 1)
        self.finished = task.index + 1
        return (Change("freeze"),)

    def acting(self, host: Host, task: Task) -> tuple[str, ...] | None:
        """Return the stacks a finished domain was learnt with, where the domain is told."""
        if self.settings.mode != "oracle" or task.index >= self.finished:
            return None
        return tuple(label for label, d in self.labels(host).items() if d <= task.index)

    def context(self, host: Host, batch: Batch, step: int | None) -> Mapping[str, Any]:
        """Weigh the stacks for each prompt, in evaluation between two tasks."""
        if step is not None or self.router is None or self.settings.mode != "router":
            return {}
        if host.task.index >= self.finished:
            return {}  # a domain is being learnt, with all stacks on
        return {"mix": self.mixture(host, self.weights(host, batch))}

    @torch.no_grad()
    def weights(self, host: Host, batch: Batch) -> Tensor:
        """Return the weight of each domain for each prompt, as it is used: [n, D]."""
        assert self.router is not None
        h, tokens = bare_states(host, batch)
        p = self.router.to(h.device)(h, tokens).sigmoid()
        return self.floored(torch.where(p > self.settings.gate, p, 0.0))

    def floored(self, w: Tensor) -> Tensor:
        """Return weights [n, D] with the first domain's at its least."""
        return torch.cat([w[:, :1].clamp_min(self.settings.floor), w[:, 1:]], 1)

    def labels(self, host: Host) -> dict[str, int]:
        """Return each stack's label with the number of its domain."""
        numbers = {task.name: task.index for task in host.tasks}
        held = {label for _, bank in banks_of(host.model).values() for label in bank.labels}
        return {label: numbers[label.rpartition(ROUND)[0]] for label in sorted(held)}

    def mixture(self, host: Host, w: Tensor) -> dict[str, Tensor]:
        """Return the weight of each stack for each example, from that of its domain: w [n, D]."""
        return {label: w[:, domain] for label, domain in self.labels(host).items()}

    def taught(self, host: Host, domains: int) -> MetaRouter:
        """Train a router for all domains so far on their kept rows and the combinations measured on them."""
        states: list[tuple[Tensor, Tensor]] = []
        wanted = []
        for d in range(domains):
            split = host.tasks[d].train.take(self.rows[self.rows[:, 0] == d, 1])
            place = {int(row): i for i, row in enumerate(split.ids)}

            def losses(w: Tensor, split: Any = split, place: dict[int, int] = place) -> Tensor:
                def one(batch: Batch) -> Tensor:
                    own = self.floored(w)[[place[int(row)] for row in batch.ids]].to(batch.labels.device)
                    with using(host.model, mix=self.mixture(host, own)):
                        return host.losses(batch, host.seen)

                return host.each(split, one).float().cpu()

            chosen, _ = discover(losses, len(split), domains, self.settings.threshold)
            wanted.append(targets(chosen, d, self.settings.prior))
            host.each(split, lambda batch: (states.append(bare_states(host, batch)), batch.labels)[1])
        h = torch.nn.utils.rnn.pad_sequence([row for h, _ in states for row in h], batch_first=True)
        tokens = torch.nn.utils.rnn.pad_sequence([row for _, marks in states for row in marks], batch_first=True)
        how = Fitting(self.settings.width, self.settings.epochs, self.settings.lr)
        return fit(h, tokens, torch.cat(wanted).to(h.device), how, self.seed)

    def remembered(self) -> Tensor:
        """Return the kept rows where old features have moved: under a router, which is trained anew."""
        return self.rows if self.settings.mode == "router" else self.rows[:0]

    def artefact(self) -> dict[str, Tensor]:
        """Return the router's weights."""
        return {} if self.router is None else dict(self.router.state_dict())

    def state(self) -> dict[str, Tensor]:
        """Return all of it."""
        numbers = torch.tensor([self.finished, self.steps, self.misses, self.best], dtype=torch.float64)
        named = {"basis": self.bases, "kept": self.kept, "router": self.artefact()}
        tensors = {f"{part}/{name}": tensor for part, held in named.items() for name, tensor in held.items()}
        return {"numbers": numbers, "rows": self.rows, **tensors}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take it back."""
        *counts, self.best = state["numbers"].tolist()
        self.finished, self.steps, self.misses = map(int, counts)
        self.rows = state["rows"].clone()
        self.bases, self.kept, router = (
            {name.partition("/")[2]: t for name, t in state.items() if name.startswith(f"{part}/")}
            for part in ("basis", "kept", "router")
        )
        self.router = rebuilt(router) if router else None


def bare_states(host: Host, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return (what the router reads of the bare base [n, S, d], which tokens belong to the prompt [n, S])."""
    with torch.no_grad(), using(host.model, blocks=(), mix=None):
        h = states_read(host.backbone.states(batch.inputs)[1])
    real = batch.inputs.get("attention_mask", torch.ones(h.shape[:2], device=h.device)).bool()
    answer = batch.inputs.get("answer_mask")
    return h, real if answer is None or answer.shape != real.shape else real & ~answer.bool()


def principal(rows: Tensor, count: int) -> Tensor:
    """Return an orthonormal basis [width, k] of the main directions of rows [n, width], k <= count and their rank."""
    _, sizes, directions = torch.linalg.svd(rows, full_matrices=False)
    k = min(count, int((sizes > 1e-6 * sizes[0].clamp_min(1e-30)).sum()))
    return directions[:k].T.contiguous()


def project(b: Tensor, basis: Tensor) -> None:
    """Take out of the columns of b [out, r], in place, what lies in the span of `basis` [out, k]."""
    basis = basis.to(b)
    b.sub_(basis @ (basis.T @ b))


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
