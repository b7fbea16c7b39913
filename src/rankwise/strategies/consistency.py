"""Consistency: on remembered examples, the states of the model that learns are held to those of a slow copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rankwise.config import NotNegative
from rankwise.objectives import Outputs
from rankwise.strategies.base import Strategy
from rankwise.strategies.host import Host
from rankwise.streams import Batch


def apart(
    fast: Sequence[Tensor], slow: Sequence[Tensor], real: Sequence[Tensor | None], upwards: bool = False
) -> Tensor:
    """Return the mean squared distance of two lists of states [n, S, ...], over layers, tokens and channels: [n].

    Args:
        fast: the states that learn.
        slow: what they are held to; no gradient reaches it.
        real: for each state [n, S], 0 at padding, which does not count; None, or of another shape: all count.
        upwards: count only where the slow value is larger.

    """
    layers = []
    for state, target, tokens in zip(fast, slow, real, strict=True):
        gap = target.detach().float() - state.float()
        squares = (gap.clamp_min(0) if upwards else gap).square().flatten(2).mean(-1)
        counts = torch.ones_like(squares)
        if tokens is not None and tokens.shape == squares.shape:
            counts = tokens.to(squares)
        layers.append((squares * counts).sum(1) / counts.sum(1).clamp_min(1))
    return torch.stack(layers).mean(0)


@dataclass(frozen=True)
class ConsistencySettings:
    """`[[strategy]] kind = "consistency"`: hold the states of remembered examples to those of the slow copy."""

    weight: NotNegative = 1.0
    """gamma, factor on the distance beside the loss of the same remembered examples, whose own factor counts for both:
    where that is 1/2, 2 here is a gamma of 1."""
    form: Literal["mse", "max"] = "mse"
    """mse: the squared distance; max: only where the slow value is larger, as I-LoRA's code has it."""


class Consistency(Strategy):
    """Adds weight * mean over layers, tokens and channels of (h(fast) - h(slow))^2 to each rehearsed example's loss.

    The slow copy is the one that answers in evaluation; it is read in evaluation mode, without gradient, in the same
    step. One forward serves the rehearsal and this.
    """

    name = "consistency"
    Settings = ConsistencySettings
    reads = frozenset({"loss", "hidden"})
    writes = {"loss": "add"}
    needs = frozenset({"slow copy", "replay buffer"})

    def rehearsed(self, host: Host, batch: Batch, outputs: Outputs, losses: Tensor) -> Tensor:
        """Return the losses of remembered examples with the distance of their states added."""
        copy = host.deployed()
        if copy is None:
            return losses
        with _still(host.model):
            slow = host.under(copy, lambda: host.forward(batch, hidden=True).hidden)
        gap = apart(outputs.hidden, slow, outputs.real, self.settings.form == "max")
        return losses + self.settings.weight * gap


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """Hold `model` in evaluation mode until the block ends."""
    training = model.training
    model.eval()
    yield
    model.train(training)
