"""DyLoRA: each step trains one prefix of the ranks, so that every prefix is an adapter by itself (arXiv 2210.07558).

    step:  b ~ uniform {smallest .. r}, the same at all sites
    y = W x + (s r / b) B[:, :b] A[:b] x;    only the first b ranks (or the b-th alone) may move
    end:   keep the first `keep` ranks, or the smallest prefix whose validation loss is within `tolerance`

| symbol | shape | meaning |
|---|---|---|
| b | number | prefix that acts in this step; without a draw all r ranks act |
| A[:b], B[:, :b] | [b, in], [out, b] | its ranks |
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor, nn

from rankwise.adapters import Bank, Blocks, Change, Context, Site, Spec, adapter_of, banks_of
from rankwise.errors import ConflictError
from rankwise.learning.recipe import Method
from rankwise.seeds import derive
from rankwise.strategies import Host, Strategy
from rankwise.streams import Batch, Task

PREFIX = "prefix"
"""Name of the draw: how many ranks act, [] int64."""


@dataclass(frozen=True)
class Prefix:
    """delta = (alpha / b) B[:, :b] A[:b] x for the last acting block, at the drawn b; its whole length if none is.

    The branch's scale is alpha, so a prefix that is cut off is scaled as a LoRA of its own rank would be.
    """

    linear: ClassVar[bool] = True

    def specs(self, site: Site) -> Mapping[str, Spec]:
        """No tensors."""
        return {}

    def start(self, site: Site, rank: int, rng: Generator) -> dict[str, Tensor]:
        """No tensors."""
        return {}

    def __call__(self, z: Tensor, x: Tensor, blocks: Blocks, context: Context, site: Site, training: bool) -> Tensor:
        """Return z / length of each block, and 0 beyond the prefix."""
        pieces = [torch.full((size,), 1 / size) for size in blocks.sizes]
        if PREFIX in context.draws:
            last = blocks.sizes[-1]
            b = min(int(context.draws[PREFIX]), last)
            pieces[-1] = torch.cat([torch.full((b,), 1 / b), torch.zeros(last - b)])
        return z * torch.cat(pieces).to(z)


@dataclass(frozen=True)
class Settings:
    """`[adapter.dynamics] kind = "dylora"`."""

    smallest: int = 1
    """Smallest prefix that is drawn; the largest is the block."""
    law: Literal["uniform", "geometric"] = "uniform"
    """How prefixes are drawn; geometric favours small ones."""
    success: float = 0.15
    """Parameter of the geometric law."""
    updates: Literal["prefix", "newest"] = "prefix"
    """What a step moves: all ranks of the prefix, or its last one alone ("DyLoRA frozen"), which leaves smaller
    prefixes as they are."""
    strict: bool = True
    """Put ranks outside of that back after the optimiser, whose momentum and weight decay move them too. The released
    code does not."""
    keep: int = 0
    """Ranks that stay after the last task; 0: all of them."""
    tolerance: float | None = None
    """After the last task, keep the smallest prefix whose mean loss on its validation rows is at most (1 + tolerance)
    times that of the best; without such rows all of them stay."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if self.smallest < 1 or not 0 < self.success < 1 or self.keep < 0:
            raise ValueError("smallest must be at least 1, success between 0 and 1, keep not negative")


class NestedRanks(Strategy):
    """Draws the prefix of each step, the same at all sites, in all its micro-batches and processes."""

    name = "dylora"
    Settings = Settings
    reads = frozenset({"gradients", "live"})
    writes = {"gradients": "set", "live": "set"}
    needs_sequence = False
    needs_adapter = True

    def __init__(self, settings: Settings | None = None, seed: int = 0) -> None:
        """Start without a step under way."""
        super().__init__(settings or Settings(), seed)
        self.held: list[tuple[nn.Parameter, Tensor]] = []
        self.tried = 0  # prefix under which validation rows are looked at; 0: all ranks

    def optimizer(self, host: Host, named: Mapping[str, nn.Parameter]) -> None:
        """Take no parameter over; refuse a branch that knows no prefixes."""
        if not isinstance(adapter_of(host.model).branch.gate, Prefix):
            raise ConflictError(
                f"adapter.dynamics {self.name!r} draws prefixes, which only the method of that name has; choose it"
            )

    def drawn(self, ranks: int, step: int) -> int:
        """Return b of `step`, counted from 1, for blocks of up to `ranks`; a function of the seed and the step."""
        low = min(self.settings.smallest, ranks)
        u = derive(self.seed, PREFIX, step) / 2**63
        if self.settings.law == "uniform":
            return low + int(u * (ranks - low + 1))
        stay = 1 - self.settings.success
        whole = 1 - stay ** (ranks - low + 1)  # the law is cut off at the block's length
        return min(low + int(math.log1p(-u * whole) / math.log(stay)), ranks)

    def context(self, host: Host, batch: Batch, step: int | None) -> Mapping[str, Any]:
        """Say which prefix acts: the step's, in training."""
        b = self.tried if step is None else self.drawn(_ranks(host), step)
        return {"draws": {PREFIX: torch.tensor(b)}} if b else {}

    def shape(self, host: Host, step: int) -> None:
        """Take the gradients of ranks that are not to move, and note their values."""
        self.held = []
        for parameter, rows in self._outside(host, step):
            self.held.append((parameter, parameter.detach().clone()))
            if parameter.grad is not None:
                parameter.grad[rows] = 0

    def settle(self, host: Host, step: int) -> None:
        """Put the values of those ranks back."""
        before = dict(self.held) if self.settings.strict else {}
        with torch.no_grad():
            for parameter, rows in self._outside(host, step) if before else ():
                parameter[rows] = before[parameter][rows]

    def end_task(self, host: Host, task: Task) -> Sequence[Change]:
        """Cut the block to the chosen prefix, after the last task."""
        if task is not host.tasks[-1]:
            return ()
        b = self._chosen(host, task)
        banks = banks_of(host.model).items()
        cuts = {name: range(bank.size - max(bank.blocks[-1].size - b, 0)) for name, (_, bank) in banks}
        return [Change("select", site=name, index=tuple(index)) for name, index in cuts.items()] if b else ()

    def _chosen(self, host: Host, task: Task) -> int:
        if self.settings.tolerance is None or task.validation is None:
            return self.settings.keep
        losses: dict[int, float] = {}
        for self.tried in range(1, _ranks(host) + 1):
            rows = host.each(task.validation, lambda batch: host.losses(batch, task.classes))
            losses[self.tried] = float(rows.mean())
        self.tried = 0
        most = min(losses.values()) * (1 + self.settings.tolerance)
        return next(b for b, loss in losses.items() if loss <= most)

    def _outside(self, host: Host, step: int) -> Iterator[tuple[nn.Parameter, tuple[Any, ...]]]:
        """Yield each live factor with the index of the ranks that this step does not move."""
        b = self.drawn(_ranks(host), step)
        for _, bank in banks_of(host.model).values():
            for name, parameter in bank.live.items():
                size = parameter.shape[bank.dims[name]]
                last = min(b, size)
                first = last - 1 if self.settings.updates == "newest" else 0
                outside = torch.tensor([not first <= rank < last for rank in range(size)], device=parameter.device)
                yield parameter, (*(slice(None),) * bank.dims[name], outside)


def _ranks(host: Host) -> int:
    """Return the ranks of the longest live block."""
    banks: list[Bank] = [bank for _, bank in banks_of(host.model).values()]
    return max((block.size for bank in banks for block in bank.blocks[-1:]), default=1)


def alpha(scale: float, rank: int) -> float:
    """Return alpha = scale * rank: each prefix divides by its own length."""
    return scale * rank


METHOD = Method(
    slug="dylora",
    title="DyLoRA: every prefix of the ranks is an adapter",
    paper="arXiv 2210.07558 (EACL 2023)",
    axis="gate: a prefix, drawn anew in each step",
    gate=Prefix,
    dynamics=NestedRanks,
    scaling=alpha,
    parameters="rank * (in + out) a site",
    peft="converted",
)
