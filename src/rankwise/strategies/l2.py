"""L2 to the weights before the task: the plainest brake on change (arXiv 2203.17269)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.config import NotNegative
from rankwise.strategies.base import Setting, Strategy
from rankwise.strategies.host import Host, Term, weights_of
from rankwise.streams import Task


def distance(values: Sequence[Tensor], anchors: Sequence[Tensor]) -> Tensor:
    """Return sum (theta - theta*)^2 over all elements of all tensors."""
    return torch.stack([(value - anchor).square().sum() for value, anchor in zip(values, anchors, strict=True)]).sum()


@dataclass(frozen=True)
class L2Settings:
    """`[[strategy]] kind = "l2"`: stay near the weights before the task."""

    strength: NotNegative = 0.01
    """Factor on the sum of squared changes. The paper sweeps 5e-4 to 5e-2."""


class L2(Strategy):
    """Adds strength * sum (theta - theta*)^2, theta* the weights at the start of the task; the head is left out.

    In force from the first task on, where theta* are the weights to begin with: for an adapter that starts at zero,
    a decay of the factors towards their start. A block that comes later is held to where it starts.
    """

    name = "l2"
    Settings = L2Settings
    reads = frozenset({"live"})
    writes = {"loss": "add"}
    needs_sequence = False

    def __init__(self, settings: L2Settings, seed: int) -> None:
        """Start without an anchor."""
        super().__init__(settings, seed)
        self.anchors: dict[str, Tensor] = {}

    def misfit(self, setting: Setting) -> str | None:
        """Refuse where nothing could be held, or not long enough to matter."""
        if not setting.learns:
            return "a method that trains the head alone: there is no weight to hold; remove 'l2'"
        if setting.reshaper:
            return f"{setting.reshaper!r}, which changes the blocks while they learn; remove one of them"
        return None

    def begin_task(self, host: Host, task: Task) -> None:
        """Hold the weights where the task finds them."""
        self.anchors = {name: p.detach().clone() for name, p in weights_of(host).items()}

    def reshaped(self, host: Host) -> None:
        """Hold the blocks there are now where they are."""
        self.anchors = {name: p.detach().clone() for name, p in weights_of(host).items()}

    def terms(self, host: Host, step: int) -> Sequence[Term]:
        """Return the distance, where anything learns in the model."""
        live = weights_of(host)
        if not live:
            return ()
        self.anchors = {name: tensor.to(live[name].device) for name, tensor in self.anchors.items()}

        def losses(_: object) -> Tensor:
            return self.settings.strength * distance([*live.values()], [self.anchors[name] for name in live])

        return (Term(self.name, None, losses),)

    def state(self) -> dict[str, Tensor]:
        """Return the anchor."""
        return dict(self.anchors)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take the anchor back."""
        self.anchors = {name: tensor.clone() for name, tensor in state.items()}
