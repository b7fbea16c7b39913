"""Structure changes as data: what happens to the rank blocks of a model between two steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from rankwise.adapters.bank import Bank
from rankwise.adapters.edits import fold, owner_of, read_weight, residual
from rankwise.adapters.model import adapter_of, banks_of, place
from rankwise.adapters.sites import Site
from rankwise.errors import UsageError, nearest
from rankwise.seeds import generator

OPS = ("append", "freeze", "select", "drop", "fold")


@dataclass(frozen=True)
class Change:
    """One change of structure, at every site or at one."""

    op: str
    """append a live block, freeze all live blocks, select ranks, drop a block, fold a block into the base."""
    label: str = ""
    """The block it is about (append, drop, fold)."""
    rank: int = 0
    """append: ranks of the new block."""
    site: str | None = None
    """Name of the site; None: every site."""
    index: tuple[int, ...] = ()
    """select: ranks that stay, counted over all blocks of the site."""


def grow(model: nn.Module, changes: Iterable[Change], seed: int) -> None:
    """Apply `changes` in order, in place. New blocks start from draws of (seed, label, site): order does not matter.

    Parameters are new objects afterwards; build the optimiser anew.

    Raises:
        UsageError: an op, site or block that does not exist, a block of no ranks, or a fold that `fold` refuses.

    """
    changes = tuple(changes)
    for change in changes:
        _check(model, change)
    for change in changes:
        if change.op == "fold":
            fold(model, [change.label], site=change.site)
            continue
        for site, bank in _sites(model, change):
            _apply(model, bank, site, change, seed)
    place(model)


def _check(model: nn.Module, change: Change) -> None:
    """Refuse what is wrong whatever came before it, so that nothing is changed then."""
    if change.op not in OPS:
        raise UsageError(f"change {change.op!r} does not exist; {nearest(change.op, OPS)}")
    if change.op == "append" and change.rank < 1:
        raise UsageError(f"rank = {change.rank}: a block needs at least one rank")
    _sites(model, change)


def _sites(model: nn.Module, change: Change) -> list[tuple[Site, Bank]]:
    banks = banks_of(model)
    if change.site is None:
        return list(banks.values())
    if change.site not in banks:
        raise UsageError(f"no site {change.site!r} in this model; {nearest(change.site, banks)}")
    return [banks[change.site]]


def _apply(model: nn.Module, bank: Bank, site: Site, change: Change, seed: int) -> None:
    if change.op == "append":
        _append(model, bank, site, change, seed)
    elif change.op == "freeze":
        bank.freeze()
    elif change.op == "select":
        bank.select(torch.tensor(change.index, dtype=torch.long))
    else:
        bank.drop(change.label)


def _append(model: nn.Module, bank: Bank, site: Site, change: Change, seed: int) -> None:
    """Start a block; one whose init is residual is taken out of the base's weight, to the identity."""
    adapter = adapter_of(model)
    _share(model, change.rank, seed)
    owner = owner_of(model, site)
    rng = generator(seed, "init", change.label, site.name)
    start = adapter.branch.start(site, change.rank, rng, lambda: read_weight(owner.base, site).cpu())
    bank.append(change.label, start)
    place(model)
    if adapter.branch.init.residual:
        residual(model, site, bank, change.label)


def _share(model: nn.Module, rank: int, seed: int) -> None:
    """Make the tensors that all sites have in common, with the first block."""
    adapter = adapter_of(model)
    if adapter.shared.tensors():
        return
    sites = [site for site, _ in banks_of(model).values()]
    widest = max(site.n_in for site in sites), max(site.n_out for site in sites)
    adapter.shared.hold(adapter.branch.shared(widest, rank, generator(seed, "shared")))
