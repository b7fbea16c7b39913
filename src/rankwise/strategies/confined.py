"""Dynamics that keep values off a subspace: what lies in it is taken out of each step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from rankwise.strategies.base import Strategy
from rankwise.strategies.host import Host

Confinement = tuple[nn.Parameter, Callable[[Tensor], None]]
"""A live tensor, and what takes its forbidden part out of values of its shape, in place."""


class Confined(Strategy):
    """Takes the forbidden part out of gradients before the rule, and out of the values after it.

    The second is needed where the rule works element by element: AdamW rescales each coordinate, which leaves the
    subspace that the gradient lay in.
    """

    reads = frozenset({"gradients", "live"})
    writes = {"gradients": "set", "live": "set"}
    needs_adapter = True

    @abstractmethod
    def confined(self, host: Host) -> Iterable[Confinement]:
        """Return the live tensors that have a forbidden part, and what takes it out."""

    def confines(self) -> tuple[bool, bool]:
        """Say whether it acts on gradients, and whether on values."""
        return True, True

    @torch.no_grad()
    def shape(self, host: Host, step: int) -> None:
        """Take it out of the gradients."""
        gradients, _ = self.confines()
        for parameter, take_out in self.confined(host) if gradients else ():
            if parameter.grad is not None:
                take_out(parameter.grad)

    @torch.no_grad()
    def settle(self, host: Host, step: int) -> None:
        """Take it out of the values."""
        _, values = self.confines()
        for parameter, take_out in self.confined(host) if values else ():
            take_out(parameter)
