"""An adapted model: base modules that call their branch, in place; switch off, fold into the weights, take off again."""

from __future__ import annotations

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
from rankwise.errors import ConflictError, RankwiseError, UsageError


@dataclass
class Adapter:
    """What all sites of one model share: the branch, and the context of the forward that is under way."""

    branch: Pair
    record: dict[str, Any] = field(default_factory=dict)
    """What made it, as JSON values: method, rank, seed; saved with the tensors."""
    context: Context = field(default_factory=Context)
    waiting: bool = False
    """True while a forward that carries gradient has not met its backward."""
    strict: bool = False
    """True inside a step: changing the context while `waiting` is an error there."""


class Adapted(nn.Module):
    """A base module and the sites on its output; it calls the base and never reads its weight."""

    def __init__(self, base: nn.Module, sites: Sequence[Site], adapter: Adapter) -> None:
        """Put `sites` (all on `base`) around `base`, with empty banks."""
        super().__init__()
        self.base = base
        self.sites = tuple(sites)
        self.banks = nn.ModuleList(Bank(adapter.branch.specs(), "rank") for _ in sites)
        self._adapter = [adapter]  # in a list, so that a copy of the module shares it with its siblings only

    @property
    def adapter(self) -> Adapter:
        """The record shared by all sites of the model."""
        return self._adapter[0]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401 (whatever the base takes)
        """Return base(x) plus the update of each site on its rows."""
        y = self.base(x, *args, **kwargs)
        deltas = [self._delta(i, x, y) for i in range(len(self.sites))]
        if all(delta is None for delta in deltas):
            return y
        y = y + self._assemble(deltas, y).to(y.dtype)
        return self._watch(y)

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
        """Note that a backward is owed; the first site's gradient comes last and settles it."""
        adapter = self.adapter
        if y.requires_grad and torch.is_grad_enabled() and not adapter.waiting:
            adapter.waiting = True
            y.register_hook(lambda _: setattr(adapter, "waiting", False))
        return y


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
        for site, bank in zip(module.sites, module.banks, strict=True):
            assert isinstance(bank, Bank)
            found[site.name] = (site, bank)
    return found


def attach(model: nn.Module, sites: Sequence[Site], branch: Pair, record: Mapping[str, Any]) -> Adapter:
    """Put `branch` at `sites` of `model`, in place, with no blocks yet; the base's parameters stop learning.

    Raises:
        ConflictError: the model is adapted already.

    """
    if is_adapted(model):
        raise ConflictError("this model carries an adapter already; rankwise.merge(model) it or load a fresh base")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    adapter = Adapter(branch, dict(record))
    by_path: dict[str, list[Site]] = {}
    for site in sites:
        by_path.setdefault(site.path, []).append(site)
    for path, group in by_path.items():
        _replace(model, path, Adapted(model.get_submodule(path), group, adapter))
    return adapter


def detach(model: nn.Module) -> nn.Module:
    """Take the adapter off, in place: the modules of the base stand where they stood."""
    for path, module in adapted_modules(model).items():
        _replace(model, path, module.base)
    return model


@contextmanager
def bare(model: nn.Module) -> Iterator[nn.Module]:
    """Take the adapter off until the block ends: names and tensors of `model` are those of its base."""
    modules = adapted_modules(model)
    detach(model)
    try:
        yield model
    finally:
        for path, module in modules.items():
            _replace(model, path, module)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    if not path:
        raise UsageError("the model itself is a single layer; wrap it, as in torch.nn.Sequential(layer), to adapt it")
    parent, _, name = path.rpartition(".")
    module.train(model.get_submodule(path).training)
    setattr(model.get_submodule(parent), name, module)


@contextmanager
def using(model: nn.Module, **changes: Any) -> Iterator[Context]:  # noqa: ANN401 (fields of Context)
    """Let every site of `model` read a context with `changes` until the block ends.

    A context must not change between a forward and its backward (activation checkpointing runs the forward again,
    and would take the new one): inside a training step that is an error.
    """
    if not is_adapted(model):
        yield replace(Context(), **changes)
        return
    adapter = adapter_of(model)
    if adapter.waiting and adapter.strict:
        raise RankwiseError("a forward still waits for its backward; finish it before another forward's context")
    before = adapter.context
    adapter.context = replace(before, **changes)
    try:
        yield adapter.context
    finally:
        adapter.context = before


def fold(model: nn.Module, labels: Sequence[str] | None = None) -> None:
    """Add the named blocks (None: all) into the base's weights, in place, and drop them.

    Raises:
        UsageError: the update depends on the input, or a weight cannot take it (quantised, or tied to another module).

    """
    branch = adapter_of(model).branch
    modules = adapted_modules(model)
    _refuse_tied(model, modules)
    for module in modules.values():
        for site, bank in zip(module.sites, module.banks, strict=True):
            assert isinstance(bank, Bank)
            _fold_site(module.base, site, bank, branch, bank.labels if labels is None else labels)


@torch.no_grad()
def _fold_site(base: nn.Module, site: Site, bank: Bank, branch: Pair, labels: Sequence[str]) -> None:
    blocks = bank.view(labels)
    if not blocks.sizes:
        return
    update = branch.dense(blocks)
    if update is None:
        raise UsageError(
            f"{type(branch.gate).__name__}: the gate depends on the input, so there is no matrix to merge into "
            f"{site.name!r}; keep the adapter beside the base (rankwise.save)"
        )
    _add_rows(base, site, ALGEBRAS[site.kind].add(update, _weight(base, site)))
    for label in blocks.labels:
        bank.drop(label)


def _add_rows(base: nn.Module, site: Site, update: Tensor) -> None:
    weight = _weight(base, site)
    rows = slice(None) if site.rows is None else slice(*site.rows)
    part = weight[:, rows] if site.kind == "transposed" else weight[rows]
    part.copy_((part.float() + update.to(weight.device)).to(weight.dtype))


def _weight(base: nn.Module, site: Site) -> Tensor:
    weight = base.get_parameter("weight")
    if not weight.is_floating_point():
        raise UsageError(f"{site.name!r}: the base weight is {weight.dtype}; load the base unquantised to merge into it")
    return weight


def _refuse_tied(model: nn.Module, modules: Mapping[str, Adapted]) -> None:
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for path, module in modules.items():
        names = owners[id(module.base.get_parameter("weight"))]
        if len(names) > 1:
            raise UsageError(f"{path!r}: its weight is shared by {', '.join(names)}; merging would change them all")
