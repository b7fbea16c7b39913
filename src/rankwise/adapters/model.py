"""An adapted model: modules that call their base and their branch, in place; switch off, fold in, take off again."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.adapters.bank import Bank
from rankwise.adapters.context import Context
from rankwise.adapters.pair import Pair
from rankwise.adapters.sites import ALGEBRAS, Site
from rankwise.errors import ConflictError, RankwiseError, UsageError, nearest


class Debt:
    """A backward that is owed for a forward; the forward's graph holds it, so it dies with a graph that is dropped."""

    settled = False

    def settle(self, gradient: Tensor) -> None:
        """Note that the backward has begun (a hook on the output of every site of the forward)."""
        self.settled = True


@dataclass
class Adapter:
    """What all sites of one model share: the branch, and the context of the forward that is under way."""

    branch: Pair
    record: dict[str, Any] = field(default_factory=dict)
    """What made it, as JSON values: method, rank, seed; saved with the tensors."""
    context: Context = field(default_factory=Context)
    debt: weakref.ref[Debt] | None = None
    """What the newest forward that carries gradient owes."""
    strict: bool = False
    """True inside a step: changing the context while `waiting` is an error there."""

    @property
    def waiting(self) -> bool:
        """True while a forward that carries gradient has not met its backward."""
        debt = self.debt() if self.debt is not None else None
        return debt is not None and not debt.settled

    def owe(self) -> Debt:
        """Return the debt of the forward under way."""
        debt = self.debt() if self.debt is not None else None
        if debt is None or debt.settled:
            debt = Debt()
            self.debt = weakref.ref(debt)
        return debt


class Adapted(nn.Module):
    """A base module and the sites on its output; it calls the base and never reads its weight.

    What other code asks of the module it replaces (its `weight`, for the dtype; its sizes) is answered by the base.
    """

    def __init__(self, base: nn.Module, sites: Sequence[Site], adapter: Adapter) -> None:
        """Put `sites` (all on `base`) around `base`, with empty banks."""
        super().__init__()
        self.base = base
        self.sites = tuple(sites)
        self.banks = nn.ModuleList(Bank(adapter.branch.specs(), "rank") for _ in sites)
        self._adapter = [adapter]  # in a list, so that a copy of the module shares it with its siblings only
        self.register_forward_hook(_call_me)

    def __getattr__(self, name: str) -> Any:
        """Answer for the base where this module has no such attribute itself; private names stay each one's own."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base" or name.startswith("_"):
                raise
        return getattr(self.base, name)

    @property
    def adapter(self) -> Adapter:
        """The record shared by all sites of the model."""
        return self._adapter[0]

    def pairs(self) -> list[tuple[Site, Bank]]:
        """Return each site with its bank."""
        banks = [bank for bank in self.banks if isinstance(bank, Bank)]
        return list(zip(self.sites, banks, strict=True))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return base(x) plus the update of each site on its rows."""
        y = self.base(x, *args, **kwargs)
        deltas = [self._delta(i, x, y) for i in range(len(self.sites))]
        if all(delta is None for delta in deltas):
            return y
        return self._watch((y + self._assemble(deltas, y)).to(y.dtype))

    def _delta(self, i: int, x: Tensor, y: Tensor) -> Tensor | None:
        context = self.adapter.context
        blocks = self.banks[i].view(context.blocks)  # pyright: ignore[reportCallIssue]
        if not blocks.sizes:
            return None
        return self.adapter.branch.delta(x, blocks, context, self.sites[i], self.base, self.training)

    def _assemble(self, deltas: Sequence[Tensor | None], y: Tensor) -> Tensor:
        """Lay the updates of a fused projection's parts side by side; a part without blocks adds zero."""
        if len(deltas) == 1 and self.sites[0].rows is None and deltas[0] is not None:
            return deltas[0]
        whole, like = torch.zeros_like(y), next(delta for delta in deltas if delta is not None)
        pieces, start = [], 0
        for site, delta in sorted(zip(self.sites, deltas, strict=True), key=lambda pair: pair[0].rows or (0, 0)):
            first, last = site.rows or (0, site.n_out)
            pieces.append(whole[..., start:first].to(like.dtype))
            pieces.append(whole[..., first:last].to(like.dtype) if delta is None else delta)
            start = last
        return torch.cat([*pieces, whole[..., start:].to(like.dtype)], -1)

    def _watch(self, y: Tensor) -> Tensor:
        """Note that a backward is owed; the first gradient to arrive at any site settles it."""
        if y.requires_grad and torch.is_grad_enabled():
            y.register_hook(self.adapter.owe().settle)
        return y


def _call_me(module: nn.Module, inputs: Any, output: Tensor) -> None:
    """Do nothing: torch's fused transformer layers read weights past modules that carry no hook."""


def adapted_modules(model: nn.Module) -> dict[str, Adapted]:
    """Return the adapted modules of `model` by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Adapted)}


def is_adapted(model: nn.Module) -> bool:
    """Say whether `model` carries an adapter."""
    return any(isinstance(module, Adapted) for module in model.modules())


def adapter_of(model: nn.Module) -> Adapter:
    """Return what the sites of `model` share, or raise UsageError if it is not adapted."""
    for module in model.modules():
        if isinstance(module, Adapted):
            return module.adapter
    raise UsageError("this model carries no adapter; call rankwise.adapt(model, method) first")


def banks_of(model: nn.Module) -> dict[str, tuple[Site, Bank]]:
    """Return (site, bank) by site name, in module order."""
    found: dict[str, tuple[Site, Bank]] = {}
    for module in adapted_modules(model).values():
        found.update({site.name: (site, bank) for site, bank in module.pairs()})
    return found


def place(model: nn.Module) -> None:
    """Move each bank to the device of its base."""
    for module in adapted_modules(model).values():
        for tensor in (*module.base.parameters(), *module.base.buffers()):
            module.banks.to(tensor.device)


def attach(model: nn.Module, sites: Sequence[Site], branch: Pair, record: Mapping[str, Any]) -> Adapter:
    """Put `branch` at `sites` of `model`, in place, with no blocks yet; the base's parameters stop learning.

    Raises:
        ConflictError: the model is adapted already.
        UsageError: the model itself is the layer to adapt.

    """
    refuse_adapted(model)
    if any(not site.path for site in sites):
        raise UsageError("the model itself is a single layer; wrap it, as in torch.nn.Sequential(layer), to adapt it")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    adapter = Adapter(branch, dict(record))
    by_path: dict[str, list[Site]] = {}
    for site in sites:
        by_path.setdefault(site.path, []).append(site)
    bases = {path: model.get_submodule(path) for path in by_path}
    _swap(model, {bases[path]: Adapted(bases[path], group, adapter) for path, group in by_path.items()})
    return adapter


def refuse_adapted(model: nn.Module) -> None:
    """Raise ConflictError if `model` carries an adapter: there is room for one."""
    if is_adapted(model):
        raise ConflictError("this model carries an adapter already; rankwise.merge(model) it or load a fresh base")


def learn_base(model: nn.Module) -> None:
    """Let every weight of the base learn, in place: full fine-tuning, without an adapter."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def detach(model: nn.Module) -> nn.Module:
    """Take the adapter off, in place: the modules of the base stand where they stood."""
    _swap(model, {module: module.base for module in adapted_modules(model).values()})
    return model


@contextmanager
def bare(model: nn.Module) -> Iterator[nn.Module]:
    """Take the adapter off until the block ends: names and tensors of `model` are those of its base."""
    modules = list(adapted_modules(model).values())
    detach(model)
    try:
        yield model
    finally:
        _swap(model, {module.base: module for module in modules})


def _swap(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put modules in the place of others, wherever they stand: a module may be shared by several parents."""
    for path, old in list(model.named_modules(remove_duplicate=False)):
        if old in new:
            parent, _, name = path.rpartition(".")
            new[old].train(old.training)
            setattr(model.get_submodule(parent), name, new[old])


@contextmanager
def using(model: nn.Module, **changes: Any) -> Iterator[Context]:
    """Let every site of `model` read a context with `changes` until the block ends.

    A context must not change between a forward and its backward (activation checkpointing runs the forward again,
    and would take the new one): in strict mode, on entry as on leaving, that is an error.
    """
    if not is_adapted(model):
        yield replace(Context(), **changes)
        return
    adapter = adapter_of(model)
    before, after = adapter.context, replace(adapter.context, **changes)
    _refuse_waiting(adapter, before, after)
    adapter.context = after
    try:
        yield after
        _refuse_waiting(adapter, after, before)
    finally:
        adapter.context = before


def _refuse_waiting(adapter: Adapter, now: Context, then: Context) -> None:
    same = now.blocks == then.blocks and now.tokens is then.tokens and now.sink is then.sink and now.draws is then.draws
    if adapter.strict and adapter.waiting and not same:
        raise RankwiseError("a forward still waits for its backward; finish it before the context changes")


@torch.no_grad()
def fold(model: nn.Module, labels: Sequence[str] | None = None, *, site: str | None = None) -> None:
    """Add the named blocks (None: all) into the base's weights, in place, and drop them; at one site, if named.

    Raises:
        UsageError: no such block, the update depends on the input, or a weight cannot take it (quantised, or tied to
            another module); nothing is changed then.

    """
    branch = adapter_of(model).branch
    pairs = [(module.base, *pair) for module in adapted_modules(model).values() for pair in module.pairs()]
    chosen = [(base, where, bank) for base, where, bank in pairs if site in (None, where.name)]
    _refuse_unknown(labels, [bank for _, _, bank in chosen])
    acting = [(base, where, bank, bank.view(labels)) for base, where, bank in chosen]
    acting = [entry for entry in acting if entry[-1].sizes]
    for base, where, _, blocks in acting:
        branch.plain(blocks, where)
        _weight(base, where)
    _refuse_tied(model, [base for base, *_ in acting])
    for base, where, bank, blocks in acting:
        _add_rows(base, where, branch.dense(blocks, where))
        for label in blocks.labels:
            bank.drop(label)


def _refuse_unknown(labels: Sequence[str] | None, banks: Sequence[Bank]) -> None:
    known = {label for bank in banks for label in bank.labels}
    for label in labels or ():
        if label not in known:
            raise UsageError(f"no block {label!r} to fold; {nearest(label, known)}")


def _add_rows(base: nn.Module, site: Site, update: Tensor) -> None:
    weight = _weight(base, site)
    rows = slice(None) if site.rows is None else slice(*site.rows)
    part = weight[:, rows] if site.kind == "transposed" else weight[rows]
    exact = torch.promote_types(part.dtype, update.dtype)
    part.copy_(part.to(exact) + ALGEBRAS[site.kind].add(update, weight).to(part.device, exact))


def _weight(base: nn.Module, site: Site) -> Tensor:
    weight = dict(base.named_parameters(recurse=False)).get("weight")
    if weight is None or not weight.is_floating_point():
        what = "no parameter" if weight is None else weight.dtype
        raise UsageError(f"{site.name!r}: the base weight is {what}; load the base unquantised to merge into it")
    return weight


def _refuse_tied(model: nn.Module, bases: Sequence[nn.Module]) -> None:
    owners: dict[nn.Parameter, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append(module)
    paths = {module: path for path, module in model.named_modules()}
    for base in bases:
        names = [paths[owner].removesuffix(".base") for owner in owners[base.get_parameter("weight")]]
        if len(names) > 1:
            raise UsageError(f"{names[0]!r}: its weight is shared by {', '.join(names)}; merging would change them all")
