"""Dynamics that look at both factors of a site at once: closed forms as gradients."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from rankwise.adapters import Identity, Pair, adapter_of, banks_of
from rankwise.adapters.paired import Factors, wide
from rankwise.errors import ConflictError
from rankwise.strategies.base import Strategy
from rankwise.strategies.host import Host


def pairs_of(host: Host, name: str) -> list[Factors]:
    """Return the live factors of every site that has any.

    Raises:
        ConflictError: the method's update is no product of two factors that both learn; `name` says who asks.

    """
    branch = adapter_of(host.model).branch
    if type(branch) is not Pair or branch.fixed or not isinstance(branch.gate, Identity):
        what = type(branch).__name__
        if type(branch) is Pair:
            what += " with fixed factors" if branch.fixed else f" with the gate {type(branch.gate).__name__}"
        raise ConflictError(
            f"adapter.dynamics {name!r} needs two factors A and B that learn at every site, and this method's branch "
            f"is {what}; choose a method of plain pairs (lora, lora-append) or leave adapter.dynamics out"
        )
    sites = [(site, bank.live) for site, bank in banks_of(host.model).values() if len(bank.live)]
    return [Factors(live["A"], live["B"], branch.scale * site.scale) for site, live in sites]


class Preconditioned(Strategy):
    """Replaces the gradients of both factors, jointly, before they are clipped; the run's own rule takes them.

    A loss of the factors themselves has a gradient of no weight they make up: it is added as it is, afterwards.
    """

    reads = frozenset({"gradients", "live"})
    writes = {"gradients": "set"}
    closed_forms = True
    needs_sequence = False
    needs_adapter = True

    def __init__(self, settings: Any = None, seed: int = 0) -> None:
        """Take the settings; there is no state."""
        super().__init__(settings or self.Settings(), seed)

    @abstractmethod
    def joint(self, a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Return what takes the place of the gradients `of_a` [r, in] and `of_b` [out, r], for factors a and b."""

    def fits(self, host: Host) -> None:
        """Refuse a branch without pairs."""
        pairs_of(host, self.name)

    def shape(self, host: Host, step: int) -> None:
        """Replace the gradients of every pair that has both."""
        for pair in pairs_of(host, self.name):
            if pair.a.grad is not None and pair.b.grad is not None:
                gradients = wide(pair.a.grad), wide(pair.b.grad)
                of_a, of_b = self.joint(wide(pair.a), wide(pair.b), *gradients, pair.scale)
                pair.a.grad.copy_(of_a)
                pair.b.grad.copy_(of_b)
