"""How descriptors learn, each after its adapter, and what is recorded of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from rankwise.adapters import Blocks, Site, adapter_of, banks_of
from rankwise.adapters.probes import means_of
from rankwise.papers.sema.branch import Modular
from rankwise.papers.sema.settings import ExpansionSettings
from rankwise.papers.sema.surprise import Records
from rankwise.strategies import Host, Strategy, Term
from rankwise.streams import Batch

DESCRIBE = "descriptors"
"""The phase in which a new adapter's descriptor learns (R of the paper)."""


def form_of(host: Host) -> Modular:
    """Return the branch of the run's adapter, which is of this form: `Describing.needs_form`."""
    return cast(Modular, adapter_of(host.model).branch)


class Describing(Strategy):
    """Trains the live descriptors in their phase, and records their errors."""

    Settings = ExpansionSettings
    needs_form = Modular

    def __init__(self, settings: ExpansionSettings | None = None, seed: int = 0) -> None:
        """Start without records."""
        super().__init__(settings or ExpansionSettings(), seed)
        self.records = Records()

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
        self.records.hear(batch.ids, errors)
        return errors.sum(1)

    def follow(self, host: Host, step: int) -> None:
        """Record the step's errors."""
        if host.phase.name == DESCRIBE:
            keys = [f"{site.name}/{blocks.labels[0]}" for site, blocks in self.learning(host)]
            self.records.write(host, keys, self.settings.window)

    def learning(self, host: Host) -> list[tuple[Site, Blocks]]:
        """Return the sites whose newest descriptor learns, with that one block."""
        expands = form_of(host).expands
        banks = [(site, bank) for site, bank in banks_of(host.model).values() if expands(site)]
        return [(site, bank.view([b.label])) for site, bank in banks for b in bank.blocks if b.live]
