"""Many plain adapters over one base: each row of a batch takes its own, all of them in two batched products a site.

    y[n] = base(x)[n] + s_a B_a A_a x[n],    a = the adapter of row n

Rows are sorted into groups of equal size, none with rows of two adapters, and every group meets its own factors in one
batched product. An adapter with many rows stands in several groups; there are at most twice as many places as rows.
An adapter that is added costs what reading it costs, whatever is held already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.adapters.edits import ledger
from rankwise.adapters.model import adapter_of, banks_of, refuse_adapted
from rankwise.adapters.sites import Site
from rankwise.errors import UsageError, nearest

KINDS = ("linear", "transposed")
"""Kinds of sites whose input and output are features."""


@dataclass(frozen=True)
class Thin:
    """What a plain adapter adds at one site: s B A x."""

    site: Site
    a: Tensor
    """A [r, in]."""
    b: Tensor
    """B [out, r]."""
    scale: float
    """s."""


Held = tuple[Thin, ...]
"""An adapter."""


def thin_of(model: nn.Module) -> Held:
    """Return the adapter that is on `model` as a shelf holds it: copies, without a graph.

    Raises:
        UsageError: its update depends on the input, is no product of two thin factors, or changes the base besides.

    """
    branch = adapter_of(model).branch
    if adapter_of(model).laid or ledger(model):
        raise UsageError("this adapter changes tensors of the base, which others on the shelf share; load it by itself")
    found = ((site, branch.plain(bank.view(), site)) for site, bank in banks_of(model).values() if bank.blocks)
    return tuple(Thin(site, a.clone(), b.clone(), s) for site, (a, b, s) in found)


@dataclass(frozen=True)
class _Plan:
    """Where the rows of a batch go."""

    groups: tuple[str | None, ...]
    """Adapter of each group."""
    rows: int
    source: Tensor | None
    """[places] row that stands at each place; None: place i holds row i."""
    place: Tensor
    """[rows] place of each row."""

    def spread(self, x: Tensor) -> Tensor:
        """Lay x [rows, ..., n] out by groups: [groups, rows of a group x ..., n]."""
        if len(x) != self.rows:
            raise UsageError(f"this batch has {len(x)} rows, {self.rows} adapters were named; name one for each row")
        x = x if self.source is None else x[self.source]
        return x.reshape(len(self.groups), -1, x.shape[-1])

    def gather(self, d: Tensor, like: Tensor) -> Tensor:
        """Undo `spread`: [groups, ..., n] to the rows' order and the shape of `like`, but for its last axis."""
        if self.source is None:
            return d.view(*like.shape[:-1], d.shape[-1])
        return d.view(-1, *like.shape[1:-1], d.shape[-1])[self.place]


def plan(names: Sequence[str | None], device: torch.device) -> _Plan:
    """Sort rows into groups of ceil(rows / adapters): at most twice as many groups as adapters."""
    counts = Counter(names)
    size = -(-len(names) // max(len(counts), 1))
    source, groups = list[int](), list[str | None]()
    for name in counts:
        rows = [row for row, other in enumerate(names) if other == name]
        for start in range(0, len(rows), size):
            chunk = rows[start : start + size]
            source += [*chunk, *[chunk[-1]] * (size - len(chunk))]
            groups.append(name)
    place = {row: i for i, row in reversed(list(enumerate(source)))}
    straight = source == list(range(len(names)))
    where = torch.tensor([place[row] for row in range(len(names))], device=device)
    return _Plan(tuple(groups), len(names), None if straight else torch.tensor(source, device=device), where)


class Shelf:
    """Adapters by name over one base, which is only called: the base acts alone outside `rows`."""

    def __init__(self, base: nn.Module) -> None:
        """Hold none yet; `base` must carry no adapter of its own."""
        refuse_adapted(base)
        self.base = base
        self.held: dict[str, Held] = {}
        self._hooked: dict[str, Any] = {}  # name of a site -> the handle of its hook
        self._plan: _Plan | None = None
        self._stacks: dict[str, tuple[Tensor, Tensor]] = {}  # name of a site -> A^T [g, in, r], s B^T [g, r, out]
        self._stacked: tuple[str | None, ...] = ()

    def add(self, name: str, adapter: Held) -> None:
        """Hold `adapter` under `name`.

        Raises:
            UsageError: the name is taken, or a site is none of this base's linear layers.

        """
        if name in self.held:
            raise UsageError(f"adapter {name!r} is held already; drop it first or choose another name")
        modules = {thin.site.name: self._module(name, thin.site) for thin in adapter}
        self.held[name] = adapter
        for thin in adapter:
            if thin.site.name not in self._hooked:
                hook = partial(self._add_update, thin.site)
                self._hooked[thin.site.name] = modules[thin.site.name].register_forward_hook(hook)

    def drop(self, name: str) -> None:
        """Hold the adapter no longer."""
        del self.held[self._known(name)]
        self._stacked, self._stacks = (), {}

    def close(self) -> None:
        """Leave the base as it was found."""
        for handle in self._hooked.values():
            handle.remove()
        self._hooked, self.held, self._stacked, self._stacks = {}, {}, (), {}

    @contextmanager
    def rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """Let row n of every batch take the adapter `names[n]` (None: the bare base) until the block ends.

        Raises:
            UsageError: no such adapter; a batch of another number of rows, when it comes.

        """
        before = self._plan
        wanted = [name if name is None else self._known(name) for name in names]
        self._plan = plan(wanted, next(self.base.parameters()).device)
        self._stack(self._plan.groups)
        try:
            yield
        finally:
            self._plan = before
            if before is not None:
                self._stack(before.groups)

    def _known(self, name: str) -> str:
        if name not in self.held:
            raise UsageError(f"no adapter {name!r} is held; {nearest(name, list(self.held))}")
        return name

    def _module(self, name: str, site: Site) -> nn.Module:
        if site.kind not in KINDS or site.reads:
            raise UsageError(
                f"adapter {name!r}: {site.name!r} is no linear layer ({site.kind}); a shelf takes those only"
            )
        return self.base.get_submodule(site.path)

    def _stack(self, groups: tuple[str | None, ...]) -> None:
        """Lay the factors of the groups side by side, unless they lie so from the last time."""
        if groups == self._stacked:
            return
        sites = {name: {thin.site.name: thin for thin in adapter} for name, adapter in self.held.items()}
        chosen = {site: [None if g is None else sites[g].get(site) for g in groups] for site in self._hooked}
        self._stacks = {site: _stacked(thins) for site, thins in chosen.items() if thins.count(None) < len(thins)}
        self._stacked = groups

    def _add_update(self, site: Site, module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor | None:
        if self._plan is None or site.name not in self._stacks:
            return None
        down, up = self._stacks[site.name]
        d = torch.bmm(torch.bmm(self._plan.spread(inputs[0].to(down.dtype)), down), up)
        d = self._plan.gather(d, y)
        if site.rows is None:
            return (y + d).to(y.dtype)
        first, last = site.rows
        return torch.cat([y[..., :first], (y[..., first:last] + d).to(y.dtype), y[..., last:]], -1)


def _stacked(thins: Sequence[Thin | None]) -> tuple[Tensor, Tensor]:
    """Return A^T [g, in, r] and s B^T [g, r, out], padded with zeros to the widest rank; None is all zeros."""
    some = next(thin for thin in thins if thin is not None)
    rank = max(thin.a.shape[0] for thin in thins if thin is not None)
    down = some.a.new_zeros(len(thins), some.a.shape[1], rank)
    up = some.b.new_zeros(len(thins), rank, some.b.shape[0])
    for i, thin in enumerate(thins):
        if thin is not None:
            r = thin.a.shape[0]
            down[i, :, :r], up[i, :r] = thin.a.T, thin.scale * thin.b.T
    return down, up
