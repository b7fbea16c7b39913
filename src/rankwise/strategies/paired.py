"""Dynamics that look at both factors of a site at once: closed forms as gradients, and a rule that alternates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rankwise.adapters import Pair, adapter_of, banks_of
from rankwise.adapters.paired import Alternation, Factors, PairedRule, wide
from rankwise.errors import ConflictError
from rankwise.strategies.base import Strategy
from rankwise.strategies.host import Host


def pairs_of(host: Host, name: str) -> list[Factors]:
    """Return the live factors of every site that has any.

    Raises:
        ConflictError: the method's update is no product of two factors that both learn; `name` says who asks.

    """
    branch = adapter_of(host.model).branch
    if not isinstance(branch, Pair) or branch.fixed:
        what = f"{type(branch).__name__} with fixed factors" if isinstance(branch, Pair) else type(branch).__name__
        raise ConflictError(
            f"adapter.dynamics {name!r} needs two factors A and B that learn at every site, and this method's branch "
            f"is {what}; choose a method of plain pairs (lora, lora-append) or leave adapter.dynamics out"
        )
    sites = [(site, bank.live) for site, bank in banks_of(host.model).values() if len(bank.live)]
    return [Factors(live["A"], live["B"], branch.scale * site.scale) for site, live in sites]


class Alternating(Strategy):
    """Gives the factors to a `PairedRule`: closed forms before the gradients are clipped, the move after.

    Moments, partner copies and turns live in the rule, one set a task: a change of the structure starts them afresh.
    """

    Settings: ClassVar[type] = Alternation
    reads = frozenset({"gradients", "live"})
    writes = {"gradients": "set", "the factors' rule": "set"}
    needs_sequence = False
    needs_adapter = True

    def __init__(self, settings: Alternation | None = None, seed: int = 0) -> None:
        """Start without a rule."""
        super().__init__(settings or self.Settings(), seed)
        self.rule: PairedRule | None = None

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


class Preconditioned(Strategy):
    """Replaces the gradients of both factors, jointly, before they are clipped; the run's own rule takes them."""

    reads = frozenset({"gradients", "live"})
    writes = {"gradients": "set"}
    needs_sequence = False
    needs_adapter = True

    def __init__(self, settings: Any = None, seed: int = 0) -> None:
        """Take the settings; there is no state."""
        super().__init__(settings or self.Settings(), seed)

    @abstractmethod
    def joint(self, a: Tensor, b: Tensor, down: Tensor, up: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Return the gradients that take the place of g_A `down` and g_B `up`, for factors a [r, in], b [out, r]."""

    def optimizer(self, host: Host, named: Mapping[str, nn.Parameter]) -> None:
        """Take no parameter over; refuse a branch without pairs before anything is trained."""
        pairs_of(host, self.name)

    def shape(self, host: Host, step: int) -> None:
        """Replace the gradients of every pair that has both."""
        for pair in pairs_of(host, self.name):
            if pair.a.grad is not None and pair.b.grad is not None:
                gradients = wide(pair.a.grad), wide(pair.b.grad)
                down, up = self.joint(wide(pair.a), wide(pair.b), *gradients, pair.scale)
                pair.a.grad.copy_(down)
                pair.b.grad.copy_(up)
