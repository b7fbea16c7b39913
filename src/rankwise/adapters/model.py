"""An adapted model: modules that call their base and their branch, in place; switch off, fold in, take off again."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankwise.adapters.bank import Bank, Packed
from rankwise.adapters.branch import Branch
from rankwise.adapters.context import Context
from rankwise.adapters.fused import added
from rankwise.adapters.overlay import Seen, check_fits, exchange
from rankwise.adapters.sites import Site
from rankwise.errors import ConflictError, RankwiseError, UsageError


class Debt:
    """A backward that is owed for a forward; the forward's graph holds it, so it dies with a graph that is dropped."""

    settled = False

    def settle(self, gradient: Tensor) -> None:
        """Note that the backward has begun (a hook on the output of every site of the forward)."""
        self.settled = True


@dataclass
class Adapter:
    """What all sites of one model share: the branch, and the context of the forward that is under way."""

    branch: Branch
    seen: Seen
    """The base as it was when the adapter came."""
    record: dict[str, Any] = field(default_factory=dict)
    """What made it, as JSON values: method, rank, seed; saved with the tensors."""
    context: Context = field(default_factory=Context)
    debt: weakref.ref[Debt] | None = None
    """What the newest forward that carries gradient owes."""
    shared: Packed = field(default_factory=lambda: Packed({}))
    """Tensors that all sites have in common; each bank holds this one object."""
    inputs: dict[str, Tensor] = field(default_factory=dict)
    """Path of a module that sites elsewhere read -> its input in the forward under way."""
    taps: list[RemovableHandle] = field(default_factory=list)
    """The hooks that keep those inputs."""
    laid: dict[str, Tensor] = field(default_factory=dict)
    """Name of a tensor of the base -> what it lies over; while the adapter is off, what lies over it."""
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

    def __getstate__(self) -> dict[str, Any]:
        """Leave the forward under way, its graph with it, out of copies and pickles."""
        return {**vars(self), "debt": None, "inputs": {}}


class Adapted(nn.Module):
    """A base module and the sites on its output; it calls the base and never reads its weight.

    What other code asks of the module it replaces (its `weight`, for the dtype; its sizes) is answered by the base.
    """

    def __init__(self, base: nn.Module, sites: Sequence[Site], adapter: Adapter) -> None:
        """Put `sites` (all on `base`) around `base`, with empty banks."""
        super().__init__()
        self.base = base
        self.sites = tuple(sites)
        self.banks = nn.ModuleList(Bank(adapter.branch.specs(site), "rank", adapter.shared) for site in sites)
        self._adapter = [adapter]  # in a list, so that a copy of the module shares it with its siblings only
        self.edits: list[tuple[str, dict[str, Tensor]]] = []  # (site, what changed the base's weight), in order
        self.origins: dict[str, Tensor] = {}  # site -> its weight before all edits, where an entry took its place
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
        if not (args or kwargs) and (fused := self._fused(x)) is not None:
            return self._watch(fused)
        y = self.base(x, *args, **kwargs)
        deltas = [self._delta(i, x, y) for i in range(len(self.sites))]
        if all(delta is None for delta in deltas):
            return y
        return self._watch((y + self._assemble(deltas, y)).to(y.dtype))

    def _fused(self, x: Tensor) -> Tensor | None:
        """Return the same by one node, where the branch has one for the only site here and nothing is to be seen."""
        context, branch, site = self.adapter.context, self.adapter.branch, self.sites[0]
        whole = len(self.sites) == 1 and site.rows is None and not site.reads and site.kind in ("linear", "transposed")
        if not (whole and context.fused and context.sink is None) or torch.compiler.is_compiling():
            return None
        blocks = self.banks[0].view(context.blocks)  # pyright: ignore[reportCallIssue]
        found = branch.fused(blocks, site, self.training) if blocks.sizes else None
        if found is None:
            return None
        drop = (lambda x: branch.dropped(x, True)) if branch.dropout and self.training else None
        return added(self.base, x, *found, drop)

    def _delta(self, i: int, x: Tensor, y: Tensor) -> Tensor | None:
        context = self.adapter.context
        blocks = self.banks[i].view(context.blocks)  # pyright: ignore[reportCallIssue]
        if not blocks.sizes:
            return None
        site = self.sites[i]
        x = self.adapter.inputs[site.reads] if site.reads else x
        y = y if site.rows is None else y[..., slice(*site.rows)]
        delta = self.adapter.branch.delta(x, y, blocks, context, site, self.base, self.training)
        if context.sink is not None:
            context.sink.saw(site, x, delta, context.tokens)
        return delta

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
        """Note that a backward is owed; the first gradient to arrive at any site settles it.

        A compiled graph has its backward already, which asks nothing of the context any more.
        """
        if y.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
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


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module that torch's own wrappers (torch.compile, DataParallel, DDP) hold, whose names are its own."""
    inner = dict(model.named_children())
    wraps = type(model).__module__.startswith("torch.") and len(inner) == 1
    found = next((inner[name] for name in ("_orig_mod", "module") if wraps and name in inner), None)
    return model if found is None else unwrapped(found)


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
            module.adapter.shared.to(tensor.device)


def attach(model: nn.Module, sites: Sequence[Site], branch: Branch, record: Mapping[str, Any]) -> Adapter:
    """Put `branch` at `sites` of `model`, in place, with no blocks yet; the base's parameters stop learning.

    Raises:
        ConflictError: the model is adapted already.
        UsageError: the model itself is the layer to adapt.

    """
    refuse_adapted(model)
    if any(not site.path for site in sites):
        raise UsageError("the model itself is a single layer; wrap it, as in torch.nn.Sequential(layer), to adapt it")
    adapter = Adapter(branch, Seen(model), dict(record))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    by_path: dict[str, list[Site]] = {}
    for site in sites:
        by_path.setdefault(site.path, []).append(site)
    bases = {path: model.get_submodule(path) for path in by_path}
    for path in {site.reads for site in sites if site.reads}:
        adapter.taps.append(model.get_submodule(path).register_forward_pre_hook(_Tap(adapter, path)))
    _swap(model, {bases[path]: Adapted(bases[path], group, adapter) for path, group in by_path.items()})
    return adapter


@dataclass(frozen=True, eq=False)
class _Tap:
    """Keeps the input of a module for the sites that read it, until the next forward."""

    adapter: Adapter
    path: str

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.adapter.inputs[self.path] = inputs[0]


def refuse_adapted(model: nn.Module) -> None:
    """Raise ConflictError if `model` carries an adapter: there is room for one."""
    if is_adapted(model):
        raise ConflictError("this model carries an adapter already; rankwise.merge(model) it or load a fresh base")


def learn_base(model: nn.Module) -> None:
    """Let every weight of the base learn, in place: full fine-tuning, without an adapter."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def detach(model: nn.Module) -> nn.Module:
    """Take the adapter off, in place: the modules of the base stand where they stood, and learn if they did before."""
    learning = {name for module in adapted_modules(model).values() for name in module.adapter.seen.learning}
    for module in adapted_modules(model).values():
        for tap in module.adapter.taps:
            tap.remove()
    for name, parameter in _take_off(model).named_parameters():
        if name in learning:
            parameter.requires_grad_(True)
    return model


def lay(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Lay `tensors` over those of the base with the same names, until the adapter is taken off.

    Raises:
        UsageError: the base has no such tensor, or one of another shape; nothing is changed then.

    """
    adapter = adapter_of(model)
    with bare(model) as base:
        check_fits(base, tensors)
        adapter.laid = {**adapter.laid, **tensors}


def _take_off(model: nn.Module) -> nn.Module:
    modules = list(adapted_modules(model).values())
    _swap(model, {module: module.base for module in modules})
    exchange(model, modules[0].adapter.laid if modules else {})
    return model


@contextmanager
def bare(model: nn.Module) -> Iterator[nn.Module]:
    """Take the adapter off until the block ends: names and tensors of `model` are those of its base."""
    modules = list(adapted_modules(model).values())
    _take_off(model)
    try:
        yield model
    finally:
        exchange(model, modules[0].adapter.laid if modules else {})
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
    same = now.blocks == then.blocks and all(
        getattr(now, name) is getattr(then, name) for name in ("tokens", "sink", "draws", "mix", "aux", "fused")
    )
    if adapter.strict and adapter.waiting and not same:
        raise RankwiseError("a forward still waits for its backward; finish it before the context changes")
