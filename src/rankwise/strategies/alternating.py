"""Dynamics by a rule that lets the two factors of a site take turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from rankwise.adapters.alternating import Alternation, PairedRule
from rankwise.adapters.paired import Factors
from rankwise.strategies.base import Strategy
from rankwise.strategies.host import Host
from rankwise.strategies.paired import pairs_of


class Alternating(Strategy):
    """Gives the factors to a `PairedRule`: closed forms before the gradients are clipped, the move after.

    Moments, partner copies and turns live in the rule, one set a task: a change of the structure starts them afresh.
    The gradient of a loss of the factors themselves is added to the closed form of the factor whose turn it is.
    """

    Settings: ClassVar[type] = Alternation
    reads = frozenset({"gradients", "live"})
    writes = {"gradients": "set", "the factors' rule": "set"}
    closed_forms = True
    needs_sequence = False
    needs_adapter = True

    def __init__(self, settings: Alternation | None = None, seed: int = 0) -> None:
        """Start without a rule."""
        super().__init__(settings or self.Settings(), seed)
        self.rule: PairedRule | None = None

    def fits(self, host: Host) -> None:
        """Refuse a branch without pairs."""
        pairs_of(host, self.name)

    def optimizer(self, host: Host, named: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer | None:
        """Take over the pairs both of whose factors learn in this phase."""
        pairs = learning_pairs(host, named, self.name)
        self.rule = PairedRule(pairs, self.settings, host.train.lr, host.train.weight_decay) if pairs else None
        return self.rule

    def shape(self, host: Host, step: int) -> None:
        """Turn gradients into closed forms, and drop those of the factors that wait for their turn."""
        if self.rule is not None:
            self.rule.precondition()


def learning_pairs(host: Host, named: Mapping[str, nn.Parameter], name: str) -> list[Factors]:
    """Return the pairs both of whose factors are among the parameters `named`; see `pairs_of`."""
    known = set(named.values())
    return [pair for pair in pairs_of(host, name) if pair.a in known and pair.b in known]
