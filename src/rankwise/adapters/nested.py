"""Nested ranks: every prefix of a block is an adapter by itself, and a step may draw which one acts and learns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rankwise.adapters.bank import Blocks
from rankwise.adapters.branch import Untensored
from rankwise.adapters.context import Context
from rankwise.adapters.growth import Change
from rankwise.adapters.model import banks_of
from rankwise.adapters.ranks import selecting
from rankwise.adapters.sites import Site
from rankwise.config import Count

PREFIX = "prefix"
"""Name of the draw: how many ranks act, [] int64."""
Part = tuple[nn.Parameter, tuple[Any, ...]]
"""A live tensor, and the index of some of its values."""


@dataclass(frozen=True)
class Prefix(Untensored):
    """delta = (alpha / b) B[:, :b] A[:b] x for the last acting block, at the drawn b; its whole length if none is.

    The branch's scale is alpha, so a prefix that is cut off is scaled as a LoRA of its own rank would be.
    """

    def __call__(self, z: Tensor, x: Tensor, blocks: Blocks, context: Context, site: Site, training: bool) -> Tensor:
        """Return z / length of each block, and 0 beyond the prefix."""
        pieces = [torch.full((size,), 1 / size) for size in blocks.sizes]
        if PREFIX in context.draws:
            last = blocks.sizes[-1]
            b = min(int(context.draws[PREFIX]), last)
            pieces[-1] = torch.cat([torch.full((b,), 1 / b), torch.zeros(last - b)])
        return z * torch.cat(pieces).to(z)


def alpha(scale: float, rank: int) -> float:
    """Return alpha = scale * rank: each prefix divides by its own length."""
    return scale * rank


@dataclass(frozen=True)
class Drawing:
    """The law by which the length b of a prefix is drawn."""

    smallest: Count = 1
    """Smallest prefix that is drawn; the largest is the block."""
    law: Literal["uniform", "geometric"] = "uniform"
    """How prefixes are drawn; geometric favours small ones."""
    success: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Parameter of the geometric law."""

    def length(self, u: float, ranks: int) -> int:
        """Return b for a block of `ranks` and a u that is uniform in [0, 1)."""
        low = min(self.smallest, ranks)
        if self.law == "uniform":
            return low + int(u * (ranks - low + 1))
        stay = 1 - self.success
        whole = 1 - stay ** (ranks - low + 1)  # the law is cut off at the block's length
        return min(low + int(math.log1p(-u * whole) / math.log(stay)), ranks)


def longest(model: nn.Module) -> int:
    """Return the ranks of the longest last block; 1 where there is none."""
    return max((block.size for _, bank in banks_of(model).values() for block in bank.blocks[-1:]), default=1)


def outside(model: nn.Module, b: int, *, newest: bool = False) -> Iterator[Part]:
    """Yield each live factor with the index of its ranks beyond the first `b`; with `newest`, all but the b-th.

    A block of fewer than `b` ranks counts as whole.
    """
    for _, bank in banks_of(model).values():
        for name, parameter in bank.live.items():
            size = parameter.shape[bank.dims[name]]
            last = min(b, size)
            first = last - 1 if newest else 0
            others = torch.tensor([not first <= rank < last for rank in range(size)], device=parameter.device)
            yield parameter, (*(slice(None),) * bank.dims[name], others)


def hold(parts: Iterable[Part]) -> list[tuple[Part, Tensor]]:
    """Set the gradients of these values to zero; return the parts with copies of the values."""
    held = [((parameter, index), parameter.detach()[index]) for parameter, index in parts]
    for (parameter, index), _ in held:
        if parameter.grad is not None:
            parameter.grad[index] = 0
    return held


@torch.no_grad()
def put_back(held: Iterable[tuple[Part, Tensor]]) -> None:
    """Write the values that `hold` returned: momentum and weight decay move what has no gradient, too."""
    for (parameter, index), values in held:
        parameter[index] = values


def shortened(model: nn.Module, b: int) -> list[Change]:
    """Return the changes that leave of each site's last block its first `b` ranks, or all it has."""
    banks = banks_of(model).items()
    return selecting({name: range(bank.size - max(bank.blocks[-1].size - b, 0)) for name, (_, bank) in banks})
