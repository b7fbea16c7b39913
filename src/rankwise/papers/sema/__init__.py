"""SEMA: adapters beside the last blocks' MLPs that multiply only where the features are new (arXiv 2403.18886).

    h_k = U_k relu(D_k x + b_k) + c_k,    w = softmax(router of mean x),    y = MLP(x) + s sum_k w_k h_k
    a task begins:  z_k = |e_k - mu_k| / sigma_k;  min_k z_k > threshold at a block: it gets one adapter more

| symbol | shape | meaning |
|---|---|---|
| D_k, U_k | [r, in], [out, r] | adapter k beside the MLP of a block |
| e_k | [n] | error of adapter k's autoencoder on the mean token; mu_k, sigma_k are its mean and spread in training |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.adapters import Bank, Blocks, Change, Site, adapter_of, banks_of
from rankwise.adapters.probes import means_of
from rankwise.config import Count, Positive
from rankwise.errors import UsageError
from rankwise.learning.recipe import Method
from rankwise.papers.sema.branch import ADAPTER, DESCRIPTOR, ROUTER, Modular
from rankwise.strategies import Host, Phase, Strategy, Term
from rankwise.streams import Batch, Task

ADAPT, DESCRIBE, ANSWER = "adapters", "descriptors", "head"
"""Phases: an adapter with its router row and the head (F of the paper), its descriptor (R), the head alone."""
FEWEST = 3  # recorded errors below which a descriptor judges nothing
FLOOR = 1e-8  # smallest standard deviation, relative to the mean


@dataclass(frozen=True)
class ExpansionSettings:
    """[adapter.dynamics] of SEMA."""

    threshold: Positive = 2.0
    """Mean z-score above which features are new to a descriptor. Lower: more adapters; below 0.8 every task adds. The
    paper's 1 to 2 go with short training of descriptors; converged ones need more."""
    scan_batch: Count = 128
    """Examples whose z-scores are averaged before they are compared."""
    window: Count = 500
    """Last training errors of a descriptor that make up its mean and spread."""
    descriptor_share: Positive = 1.0
    """Steps of a descriptor's training, as a multiple of the task's. Paper: 1 to 4."""
    descriptor_lr: Positive = 1e-2
    """Learning rate of descriptors."""


class Expansion(Strategy):
    """Scans each task with the descriptors there are, and adds an adapter to the shallowest block that is surprised.

        z_k = |e_k - mu_k| / sigma_k,   signal at a block: min_k mean over a batch of z_k > threshold

    Task 1 gives every site its adapter. Later, until a whole pass over the task's rows gives no signal: one forward
    over all rows (the signal of the shallowest block counts, since inputs of deeper ones will change), then the new
    adapter, its router row and the head learn, then its descriptor. A block expands at most once a task. Where nothing
    is new, only the head learns. Labels are not used by the scan, and nothing is recorded in it.
    """

    name = "sema"
    Settings = ExpansionSettings
    reads = frozenset({"live"})
    needs_adapter = True
    plans = True

    def __init__(self, settings: ExpansionSettings | None = None, seed: int = 0) -> None:
        """Start without records."""
        super().__init__(settings or ExpansionSettings(), seed)
        self.place = 0  # batch of the scan at which it goes on
        self.records: dict[str, Tensor] = {}  # "site/label of the adapter" -> its last errors
        self.fresh: list[tuple[Tensor, Tensor]] = []  # (ids, errors) of the step under way

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

    def optimizer(self, host: Host, named: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer | None:
        """Give descriptors their own learning rate."""
        if host.phase.name != DESCRIBE or not named:
            return None
        return host.rule([{"params": list(named.values()), "lr": self.settings.descriptor_lr}])

    def terms(self, host: Host, step: int) -> Sequence[Term]:
        """In phase R: the errors of the live descriptors, summed over sites."""
        if host.phase.name != DESCRIBE:
            return ()
        return (Term(DESCRIBE, host.batch, lambda batch: self.reconstruct(host, batch)),)

    def reconstruct(self, host: Host, batch: Batch) -> Tensor:
        """Return each example's error, summed over the live descriptors [n]; their inputs carry no graph."""
        z = means_of(host.model, "x", lambda: host.forward(batch))
        found = [form_of(host).errors(blocks, z[site.name]) for site, blocks in self.learning(host)]
        errors = torch.cat(found, 1)
        self.fresh.append((batch.ids.cpu(), errors.detach().cpu()))
        return errors.sum(1)

    def follow(self, host: Host, step: int) -> None:
        """Record the step's errors in the order of its batch, whatever parts and processes it was cut into."""
        if host.phase.name != DESCRIBE:
            return
        sites, ids = self.learning(host), host.batch.ids
        sums = torch.zeros(len(ids), len(sites) + 1)
        for own, errors in self.fresh:
            rows = torch.cat([errors, torch.ones(len(own), 1)], 1)
            sums.index_add_(0, (ids[:, None] == own).int().argmax(0), rows)
        host.add_up([sums])
        self.fresh.clear()
        for (site, blocks), errors in zip(sites, (sums[:, :-1] / sums[:, -1:]).T, strict=True):
            key = f"{site.name}/{blocks.labels[0]}"
            self.records[key] = torch.cat([self.records.get(key, errors[:0]), errors])[-self.settings.window :]

    def learning(self, host: Host) -> list[tuple[Site, Blocks]]:
        """Return the sites whose newest descriptor learns, with that one block."""
        expands = form_of(host).expands
        banks = [(site, bank) for site, bank in banks_of(host.model).values() if expands(site)]
        return [(site, bank.view([b.label])) for site, bank in banks for b in bank.blocks if b.live]

    def scan(self, host: Host, task: Task) -> str | None:
        """Return the shallowest site that the task's rows surprise, going on where the last scan ended; None: none."""
        banks = banks_of(host.model).items()
        sites = {n: bank for n, (s, bank) in banks if form_of(host).expands(s) and task.name not in bank.labels}
        if not sites:
            return None
        z = host.each(task.train, lambda batch: self.deviations(host, batch, sites)).cpu()
        per_site = z.split([len(bank.labels) for bank in sites.values()], 1)
        count = max(len(z) // self.settings.scan_batch, 1)  # a short last batch joins the one before
        bounds = [*range(0, count * self.settings.scan_batch, self.settings.scan_batch), len(z)]
        for place in (*range(self.place, count), *range(min(self.place, count))):
            means = [rows[bounds[place] : bounds[place + 1]].mean(0).min() for rows in per_site]
            for name, mean in zip(sites, means, strict=True):
                if mean > self.settings.threshold:
                    self.place = place + 1
                    return name
        return None

    def deviations(self, host: Host, batch: Batch, sites: Mapping[str, Bank]) -> Tensor:
        """Return |z| of each example for each descriptor of each of `sites`, side by side: [n, sum of K]."""
        read = means_of(host.model, "x", lambda: host.forward(batch))
        return torch.cat([self.surprise(form_of(host), name, bank, read[name]) for name, bank in sites.items()], 1)

    def surprise(self, form: Modular, site: str, bank: Bank, z: Tensor) -> Tensor:
        """Return |e - mu| / sigma [n, K] of mean tokens z [n, in]; 0 for descriptors with too few records."""
        found = form.errors(bank.view(), z)
        for k, label in enumerate(bank.labels):
            seen = self.records.get(f"{site}/{label}", torch.empty(0)).to(found)
            if len(seen) < FEWEST:
                found[:, k] = 0
                continue
            mean = seen.mean()
            found[:, k] = (found[:, k] - mean).abs() / seen.std().clamp_min(FLOOR * mean)
        return found

    def end_task(self, host: Host, task: Task) -> Sequence[Change]:
        """Freeze what was added."""
        return (Change("freeze"),)

    def state(self) -> dict[str, Tensor]:
        """Return the records and the scan's place."""
        return {"place": torch.tensor(self.place), **self.records}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take both back."""
        self.place = int(state["place"])
        self.records = {name: errors.cpu() for name, errors in state.items() if name != "place"}


def form_of(host: Host) -> Modular:
    """Return the branch of the run's adapter."""
    branch = adapter_of(host.model).branch
    if not isinstance(branch, Modular):
        raise UsageError("adapter.dynamics: expansion needs adapters with descriptors; leave `kind` out")
    return branch


METHOD = Method(
    slug="sema",
    title="SEMA: modular adapters, added where features are new",
    paper="arXiv 2403.18886 (CVPR 2025)",
    axis="form and growth: bottleneck adapters beside the MLP, on demand",
    form=Modular,
    dynamics=Expansion,
    growth="planned",
    kinds=("linear", "transposed"),
    identity_at_append="moves",
    mergeable=False,
    peft=None,
    parameters="rank * (in + out + 1) + out + (latent + 1) * (2 * in + 1) a site and adapter; without the last term "
    "where it may not expand",
    refuses=("merge: hidden units and router depend on the input", "embedding and convolution sites: no feature row"),
    defaults={"adapter": {"sites": "mlp-span", "rank": 16}},
)
