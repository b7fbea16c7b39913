"""The dynamics of SEMA: a scan of each task, and the phases in which what it asks for is added and learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rankwise.adapters import Bank, Change, banks_of
from rankwise.adapters.probes import means_of
from rankwise.papers.sema.branch import ADAPTER, DESCRIPTOR, ROUTER
from rankwise.papers.sema.descriptors import DESCRIBE, Describing, form_of
from rankwise.papers.sema.settings import ExpansionSettings
from rankwise.papers.sema.surprise import shallowest
from rankwise.strategies import Host, Phase
from rankwise.streams import Batch, Task

ADAPT, ANSWER = "adapters", "head"
"""Phases beside DESCRIBE: an adapter with its router row and the head (F of the paper), the head alone."""


class Expansion(Describing):
    """Scans each task with the descriptors there are, and adds an adapter to the shallowest block that is surprised.

        z_k = |e_k - mu_k| / sigma_k,   signal at a block: min_k mean over a batch of z_k > threshold

    Task 1 gives every site its adapter. Later, until a whole pass over the task's rows gives no signal: one forward
    over all rows (the signal of the shallowest block counts, since inputs of deeper ones will change), then the new
    adapter, its router row and the head learn, then its descriptor. A block expands at most once a task. Where nothing
    is new, only the head learns. Labels are not used by the scan, and nothing is recorded in it.
    """

    name = "sema"
    reads = frozenset({"live"})
    needs_adapter = True
    needs_growth = ("planned", "it adds an adapter where a task surprises; choose the method of that name")
    plans = True

    def __init__(self, settings: ExpansionSettings | None = None, seed: int = 0) -> None:
        """Start without records."""
        super().__init__(settings, seed)
        self.place = 0  # batch of the scan at which it goes on

    def begin_task(self, host: Host, task: Task) -> None:
        """Scan from the first batch."""
        self.place = 0

    def plan(self, host: Host, task: Task, done: Sequence[Mapping[str, Any]]) -> Phase | None:
        """Return the next phase: the new descriptor's, the new adapter's, or the head's if nothing was added."""
        phases = [report["phase"] for report in done]
        if phases and phases[-1] == ADAPT and self.learning(host):
            live = tuple(f"*.live.{name}" for name in DESCRIPTOR)
            return Phase(DESCRIBE, self.settings.descriptor_share, live, own_loss=False)
        if phases and phases[-1] == ANSWER:
            return None
        first = not any(bank.labels for _, bank in banks_of(host.model).values())
        site = None if first else self.scan(host, task)
        if first or site is not None:
            changes = (Change("freeze"), Change("append", task.name, host.rank, site))
            return Phase(ADAPT, 1.0, (*(f"*.live.{name}" for name in ADAPTER + ROUTER), "head.*"), changes)
        learns = any(parameter.requires_grad for parameter in host.objective.parameters())
        return Phase(ANSWER, 1.0, "head") if not phases and learns else None

    def scan(self, host: Host, task: Task) -> str | None:
        """Return the shallowest site that the task's rows surprise, going on where the last scan ended; None: none."""
        banks = banks_of(host.model).items()
        sites = {n: bank for n, (s, bank) in banks if form_of(host).expands(s) and task.name not in bank.labels}
        if not sites:
            return None
        z = host.each(task.train, lambda batch: self.deviations(host, batch, sites)).cpu()
        per_site = z.split([len(bank.labels) for bank in sites.values()], 1)
        scores = dict(zip(sites, per_site, strict=True))
        found, self.place = shallowest(scores, self.settings.scan_batch, self.place, self.settings.threshold)
        return found

    def deviations(self, host: Host, batch: Batch, sites: Mapping[str, Bank]) -> Tensor:
        """Return |z| of each example for each descriptor of each of `sites`, side by side: [n, sum of K]."""
        read, form = means_of(host.model, "x", lambda: host.forward(batch)), form_of(host)
        return torch.cat([self.records.surprise(form, name, bank, read[name]) for name, bank in sites.items()], 1)

    def end_task(self, host: Host, task: Task) -> Sequence[Change]:
        """Freeze what was added."""
        return (Change("freeze"),)

    def state(self) -> dict[str, Tensor]:
        """Return the records and the scan's place."""
        return {"place": torch.tensor(self.place), **self.records.errors}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take both back."""
        self.place = int(state["place"])
        self.records.errors = {name: errors.cpu() for name, errors in state.items() if name != "place"}
