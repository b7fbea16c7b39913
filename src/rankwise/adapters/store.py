"""An adapter on the disk: tensors, and a record of where they belong and what they were learnt on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from rankwise import provenance
from rankwise.adapters.bank import Bank
from rankwise.adapters.branch import Branch
from rankwise.adapters.edits import beside, ledger, replay
from rankwise.adapters.model import adapter_of, attach, banks_of, detach, lay, place
from rankwise.adapters.sites import Site, all_sites, span_sites
from rankwise.cards import LIMITS, USAGE, Card
from rankwise.config import parse_record
from rankwise.errors import StorageError, UsageError
from rankwise.files import Content, load_json
from rankwise.storage import CARD, read_folder
from rankwise.tensors import load_tensors, tensor_writer

KIND = "adapter"
FORMAT = 1
SHARED, EDITS, LAID = "//shared/", "//edits/", "//laid/"  # no site's path begins so
LINEAGE = ("data", "parents")
"""Keys of an adapter's record that say what it was made from; see `provenance`."""
FIELDS = {"method": str, "branch": dict, "base": dict, "sites": list}


@dataclass(frozen=True)
class BlockEntry:
    """A block of a site, as a record lists it."""

    label: str
    size: Annotated[int, Field(ge=0)]
    live: bool


@dataclass(frozen=True)
class SiteEntry:
    """A site, as a record lists it; what the model says of it itself is not taken from the file."""

    name: str
    kind: str
    n_in: int
    n_out: int
    scale: Annotated[float, Field(allow_inf_nan=False)]
    blocks: tuple[BlockEntry, ...]
    behind: Annotated[int, Field(ge=0)] = 0
    path: str = ""
    rows: Any = None
    kernel: Any = ()
    width: Any = 0
    reads: str = ""


@dataclass(frozen=True)
class Entries:
    """The sites of a record."""

    sites: tuple[SiteEntry, ...]


@dataclass(frozen=True)
class Saved:
    """What a folder holds."""

    path: Path
    record: dict[str, Any]
    """Method, branch settings, base; see `files`."""
    tensors: dict[str, Tensor]
    """By "<site>/<half>.<tensor>"."""


def files(model: nn.Module, base: Mapping[str, Any]) -> dict[str, Content]:
    """Return the adapter of `model` as files for `storage.write_folder`.

    Args:
        model: an adapted model.
        base: name and fingerprint of the base, so that loading can refuse another one.

    """
    adapter = adapter_of(model)
    tensors: dict[str, Tensor] = {}
    sites: list[dict[str, Any]] = []
    for name, (site, bank) in banks_of(model).items():
        held, blocks = bank.state()
        tensors.update({f"{name}/{part}": tensor for part, tensor in held.items()})
        sites.append({**asdict(site), "blocks": blocks})
    tensors.update({f"{SHARED}{name}": tensor for name, tensor in adapter.shared.tensors().items()})
    tensors.update({f"{EDITS}{name}": tensor for name, tensor in ledger(model).items()})
    tensors.update({f"{LAID}{name}": tensor for name, tensor in beside(model).items()})
    own = {key: value for key, value in adapter.record.items() if key not in LINEAGE}
    record = {**own, "format": FORMAT, "branch": adapter.branch.record(), "base": dict(base), "sites": sites}
    return {
        "adapter.json": json.dumps(record, indent=1).encode(),
        "adapter.safetensors": tensor_writer(tensors),
        provenance.FILE: lineage(model, base),
        CARD: card(model, base, kind="adapter", library="rankwise", usage=USAGE["module"]).text(),
    }


def card(model: nn.Module, base: Mapping[str, Any], **facts: Any) -> Card:
    """Return the model card of an adapted model; `facts`: the other fields of `Card`."""
    adapter = adapter_of(model)
    told = {"settings": adapter.branch.record(), "limits": LIMITS[-1:], **facts}
    return Card(method=adapter.record["method"], base=base, **told)


def lineage(model: nn.Module, base: Mapping[str, Any]) -> bytes:
    """Return `provenance.json` of the adapter of `model`, on the base described."""
    data, parents = (adapter_of(model).record.get(key, ()) for key in LINEAGE)
    return provenance.content(base, data, parents)


def read(path: Path) -> Saved:
    """Read a saved adapter, every byte checked against its manifest; raise StorageError naming what is wrong."""
    found = read_folder(path, kind=KIND)
    if "adapter.json" not in found or "adapter.safetensors" not in found:
        raise StorageError(f"{path}: holds no adapter (this run trained the base or the head only)")
    record = load_json(found["adapter.json"])
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found_format = record.get("format") if isinstance(record, dict) else None
        raise StorageError(f"{path}/adapter.json: format {found_format!r}, this version reads {FORMAT}")
    for key, kind in FIELDS.items():
        if not isinstance(record.get(key), kind):
            raise StorageError(f"{path}/adapter.json: {key!r} is missing or no {kind.__name__}; save the adapter again")
    return Saved(path, record, load_tensors(found["adapter.safetensors"]))


def install(model: nn.Module, branch: Branch, saved: Saved) -> None:
    """Put a saved adapter on `model`, in place.

    Raises:
        StorageError: a site of the file does not exist in `model` or has another shape there, or its tensors and blocks
            disagree; the model is as it was then.

    """
    known = {site.name: site for site in (*all_sites(model, cut=False), *all_sites(model), *span_sites(model))}
    entries = {entry.name: entry for entry in _entries(saved).sites}
    sites = [_site(saved.path, name, entry, known) for name, entry in entries.items()]
    record = {key: saved.record[key] for key in saved.record if key not in ("format", "branch", "sites", "base")}
    record |= {"data": provenance.of(saved.path).get("data", []), "parents": [provenance.digest(saved.path)]}
    attach(model, sites, branch, record)
    adapter_of(model).shared.hold(under(saved.tensors, SHARED))
    try:
        for name, (site, bank) in banks_of(model).items():
            tensors = under(saved.tensors, f"{name}/")
            _check_shapes(site, bank, tensors)
            bank.restore(tensors, [vars(block) for block in entries[name].blocks])
        lay(model, under(saved.tensors, LAID))
        replay(model, under(saved.tensors, EDITS))
    except UsageError as error:
        detach(model)
        raise StorageError(f"{saved.path}: {error}") from error
    place(model)


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries below `prefix`, by what is left of their path."""
    return {path[len(prefix) :]: tensor for path, tensor in tensors.items() if path.startswith(prefix)}


def _entries(saved: Saved) -> Entries:
    try:
        return parse_record(Entries, {"sites": saved.record["sites"]}, f"{saved.path}/adapter.json")
    except UsageError as error:
        raise StorageError(str(error)) from error


def _site(path: Path, name: str, entry: SiteEntry, known: Mapping[str, Site]) -> Site:
    if name not in known:
        raise StorageError(f"{path}: adapts {name!r}, which this model does not have; load the base it was trained on")
    site = known[name]
    here, there = [site.kind, site.n_in, site.n_out], [entry.kind, entry.n_in, entry.n_out]
    if here != there:
        raise StorageError(f"{path}: {name!r} is {there} in the file and {here} in this model")
    return replace(site, scale=entry.scale, behind=entry.behind)


def _check_shapes(site: Site, bank: Bank, tensors: Mapping[str, Tensor]) -> None:
    widths = {"in": site.n_in, "out": site.n_out}
    for name, tensor in tensors.items():
        spec = bank.specs.get(name.partition(".")[2])
        if spec is None or tensor.ndim != len(spec.axes):
            raise UsageError(f"{site.name}/{name}: not a tensor of this adapter")
        if any(size != widths.get(axis, size) for axis, size in zip(spec.axes, tensor.shape, strict=True)):
            raise UsageError(f"{site.name}/{name}: shape {tuple(tensor.shape)} does not fit the site's {widths}")
