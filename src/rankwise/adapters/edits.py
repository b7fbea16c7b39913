"""Changes of the base's weights: each is an entry of a ledger, and replaying the ledger gives the same bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from rankwise.adapters.bank import Bank
from rankwise.adapters.model import Adapted, adapted_modules, adapter_of, bare
from rankwise.adapters.sites import ALGEBRAS, Site
from rankwise.errors import UsageError, nearest


def read_weight(module: nn.Module, site: Site) -> Tensor:
    """Return the weight of the base module at `site` as a matrix [out, in] in float32 or more, a copy.

    A quantised weight is read off what the module does to the unit vectors, so any kind of quantisation will do.
    """
    if site.reads:
        raise UsageError(f"{site.name!r}: it stands beside {site.path!r} and reads elsewhere, so it has no weight")
    held = dict(module.named_parameters(recurse=False)).get("weight")
    with torch.no_grad():
        if held is None or not held.is_floating_point():
            return _measured(module, site)
        weight = held.detach().to(torch.promote_types(held.dtype, torch.float32))
        weight = weight.T if site.kind in ("transposed", "embedding") else weight.flatten(1)
        return (weight if site.rows is None else weight[slice(*site.rows)]).clone()


def _measured(module: nn.Module, site: Site) -> Tensor:
    if site.kind != "linear":
        raise UsageError(f"{site.name!r}: the weight of a quantised module of kind {site.kind} cannot be read")
    device = next(iter((*module.parameters(), *module.buffers()))).device
    zero = module(torch.zeros(1, site.n_in, device=device))
    weight = (module(torch.eye(site.n_in, device=device)) - zero).T.float()
    return (weight if site.rows is None else weight[slice(*site.rows)]).contiguous()


def owner_of(model: nn.Module, site: Site) -> Adapted:
    """Return the adapted module that `site` lies on."""
    return next(module for module in adapted_modules(model).values() if site in module.sites)


def weight_reader(module: nn.Module, site: Site) -> Callable[[], Tensor]:
    """Return the function that reads the weight at `site` when it is asked."""
    return lambda: read_weight(module, site)


@torch.no_grad()
def edit(model: nn.Module, site: Site, entry: Mapping[str, Tensor]) -> None:
    """Change the base's weight at `site`, in place, and write it into the ledger.

    A site's entries never hold more numbers than its weight does: where they would, the weight takes their place.

    Args:
        model: an adapted model.
        site: where.
        entry: {"up": [out, r], "down": [r, in]} adds their product, {"update": [out, in]} adds it as it is, and
            {"weight": [out, in]} takes the place of what is there.

    Raises:
        UsageError: the weight cannot take it (quantised, or another shape), or it is no entry.

    """
    owner = owner_of(model, site)
    weight = _writable(owner.base, site)
    entry = {name: tensor.detach().clone() for name, tensor in entry.items()}
    _check_entry(site, entry)
    rows = slice(None) if site.rows is None else slice(*site.rows)
    part = weight[:, rows] if site.kind == "transposed" else weight[rows]
    with owner.adapter.seen.edited(weight):
        if "weight" in entry:
            owner.origins.setdefault(site.name, read_weight(owner.base, site))
            part.copy_(ALGEBRAS[site.kind].add(entry["weight"], weight))
        else:
            update = _added(entry)
            exact = torch.promote_types(part.dtype, update.dtype)
            part.copy_(part.to(exact) + ALGEBRAS[site.kind].add(update, weight).to(part.device, exact))
    _enter(owner, site, entry)


def _check_entry(site: Site, entry: Mapping[str, Tensor]) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in entry.items()}
    whole, rank = (site.n_out, site.n_in), shapes.get("down", (0,))[0]
    forms = ({"update": whole}, {"weight": whole}, {"up": (site.n_out, rank), "down": (rank, site.n_in)})
    if shapes not in forms:
        raise UsageError(f"edit of {site.name!r}: {shapes} changes no weight {list(whole)}; save the adapter again")


def _added(entry: Mapping[str, Tensor]) -> Tensor:
    return entry["update"] if "update" in entry else entry["up"] @ entry["down"]


def _enter(owner: Adapted, site: Site, entry: dict[str, Tensor]) -> None:
    """Write `entry` into the ledger, or, if the site's entries outgrow its weight, that as it is now."""
    own = [*(other for name, other in owner.edits if name == site.name), entry]
    if sum(tensor.numel() for each in own for tensor in each.values()) <= site.n_out * site.n_in:
        owner.edits.append((site.name, entry))
        return
    now = read_weight(owner.base, site)
    if site.name not in owner.origins:
        owner.origins[site.name] = now - sum(_added(each).to(now) for each in own)
    others = [(name, other) for name, other in owner.edits if name != site.name]
    owner.edits[:] = [*others, (site.name, {"weight": now.to(_writable(owner.base, site).dtype)})]


def moved(owner: Adapted, site: Site) -> list[Mapping[str, Tensor]]:
    """Return the edits at `site` as what each added: {"up", "down"} or {"update"}, a weight as its difference."""
    found: list[Mapping[str, Tensor]] = []
    for entry in (entry for name, entry in owner.edits if name == site.name):
        weight = entry.get("weight")
        found.append(entry if weight is None else {"update": weight.float() - owner.origins[site.name].float()})
    return found


def ledger(model: nn.Module) -> dict[str, Tensor]:
    """Return all edits of `model` by "<site>/<number>.<name>"; numbers count a site's edits in order."""
    found: dict[str, Tensor] = {}
    for module in adapted_modules(model).values():
        for number, (site, entry) in enumerate(module.edits):
            found.update({f"{site}/{number:06d}.{name}": tensor for name, tensor in entry.items()})
    return found


def beside(model: nn.Module) -> dict[str, Tensor]:
    """Return by name what the adapter brings in place of the base's tensors: what lies over them, and what has learnt.

    Raises:
        UsageError: a weight was edited and has learnt too, so that what is written could not say which is which.

    """
    adapter = adapter_of(model)
    edited = {f"{path}.weight" for path, module in adapted_modules(model).items() if module.edits}
    with bare(model) as base:
        learnt = adapter.seen.moved(base)
        found = {**learnt, **adapter.laid}
    if both := sorted(edited & learnt.keys()):
        raise UsageError(
            f"{both[0]!r}: a weight of the base that the method has edited learns besides, which no adapter can hold; "
            "keep it frozen, or rankwise.merge(model) and save it whole"
        )
    return found


def replay(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Repeat the edits that `ledger` returned, on a base as it was before the first of them."""
    sites = {site.name: site for module in adapted_modules(model).values() for site, _ in module.pairs()}
    entries: dict[tuple[str, str], dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        place, _, name = path.rpartition(".")
        site, _, number = place.rpartition("/")
        entries.setdefault((number, site), {})[name] = tensor
    for (_, site), entry in sorted(entries.items()):
        if site not in sites:
            raise UsageError(f"edit of {site!r}, which is no site of this model; {nearest(site, sites)}")
        edit(model, sites[site], entry)


def forget_edits(model: nn.Module) -> None:
    """Drop the ledger: the base as it is now, with what lies over it, counts as the base."""
    adapter_of(model).laid.clear()
    for module in adapted_modules(model).values():
        module.edits.clear()
        module.origins.clear()


@torch.no_grad()
def fold(model: nn.Module, labels: Sequence[str] | None = None, *, site: str | None = None) -> None:
    """Add the named blocks (None: all) into the base's weights, in place, and drop them; at one site, if named.

    Raises:
        UsageError: no such block, the update depends on the input, or a weight cannot take it (quantised, or tied to
            another module); nothing is changed then.

    """
    adapter_of(model)
    pairs = [(module, *pair) for module in adapted_modules(model).values() for pair in module.pairs()]
    chosen = [(module, where, bank) for module, where, bank in pairs if site in (None, where.name)]
    _refuse_unknown(labels, [bank for _, _, bank in chosen])
    acting = [entry for entry in chosen if entry[2].view(labels).sizes]
    updates = [_entry(model, module, where, bank, labels) for module, where, bank in acting]
    _refuse_tied(model, [module.base for module, *_ in acting])
    for (_, where, bank), update in zip(acting, updates, strict=True):
        gone = bank.view(labels).labels
        edit(model, where, update)
        for label in gone:
            bank.drop(label)


def residual(model: nn.Module, site: Site, bank: Bank, label: str) -> None:
    """Take what block `label` computes at `site` out of the base's weight, so that their sum is what the base was."""
    owner = owner_of(model, site)
    entry = _entry(model, owner, site, bank, [label])
    sign = "update" if "update" in entry else "up"
    edit(model, site, {**entry, sign: -entry[sign]})


def _entry(model: nn.Module, owner: Adapted, site: Site, bank: Bank, labels: Sequence[str] | None) -> dict[str, Tensor]:
    """Return what the named blocks add to the weight, in the smaller of both forms an edit can have."""
    branch, blocks = adapter_of(model).branch, bank.view(labels)
    branch.refuse_unless_linear()
    if not branch.additive and len(blocks.labels) < len(bank.labels):
        raise UsageError(f"{type(branch).__name__}: its blocks act together at {site.name!r}; fold all or none of them")
    _writable(owner.base, site)
    if branch.thin and bank.size * (site.n_in + site.n_out) < site.n_in * site.n_out:
        a, b, scale = branch.plain(blocks, site)
        exact = torch.promote_types(a.dtype, torch.float32)
        return {"up": scale * b.to(exact), "down": a.to(exact)}
    return {"update": branch.dense(blocks, site, weight_reader(owner.base, site))}


def _refuse_unknown(labels: Sequence[str] | None, banks: Sequence[Bank]) -> None:
    known = {label for bank in banks for label in bank.labels}
    for label in labels or ():
        if label not in known:
            raise UsageError(f"no block {label!r} to fold; {nearest(label, known)}")


def _writable(base: nn.Module, site: Site) -> Tensor:
    if site.reads:
        raise UsageError(f"{site.name!r}: it stands beside {site.path!r} and reads elsewhere, so no weight can take it")
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
