"""Writing: an adapter leaves as a checkpoint that stock PEFT loads and that computes the same there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankwise import provenance
from rankwise.adapters import Bank, Branch, Site, adapter_of, bare, read_weight
from rankwise.adapters.dora import MAGNITUDE, Dora
from rankwise.adapters.edits import beside as laid_beside
from rankwise.adapters.edits import moved
from rankwise.adapters.model import Adapted, adapted_modules
from rankwise.adapters.store import card, lineage
from rankwise.cards import peft_usage
from rankwise.errors import UsageError
from rankwise.files import Content
from rankwise.storage import CARD, write_folder
from rankwise.surgery.peft.config import base_named
from rankwise.surgery.peft.naming import CONFIG, KIND, PREFIX, WEIGHTS, base_name, factor_names
from rankwise.tensors import tensor_writer


@dataclass(frozen=True)
class Lora:
    """What PEFT needs to know of one module."""

    site: Site
    """The module, or one of the sites on it."""
    tensors: Mapping[str, Tensor]
    """A [r, in], B [out, r] and, where lengths are learnt, magnitude [out]."""
    scale: float

    @property
    def rank(self) -> int:
        """Rows of A."""
        return len(self.tensors["A"])

    def named(self) -> dict[str, Tensor]:
        """Return the tensors as PEFT names and shapes them."""
        shaped = dict(self.tensors)
        if self.site.kind == "conv2d":
            shaped = {"A": shaped["A"].view(self.rank, *self.site.kernel), "B": shaped["B"][..., None, None]}
            shaped |= {name: t.view(1, -1, 1, 1) for name, t in self.tensors.items() if name == MAGNITUDE}
        names = factor_names(self.site)
        return {names[part]: tensor for part, tensor in shaped.items()}


def to_peft(model: nn.Module, path: Path, base: Mapping[str, Any], words: bytes | None = None) -> None:
    """Write the adapter of `model` as a PEFT LoRA checkpoint that computes the same function.

    All blocks of a site become one LoRA of their total rank, and so does what was folded into the base or taken out of
    it since it was loaded; the parts of a fused projection become one of the sum of their ranks, block-diagonal in B.
    What lies over the base leaves as biases or as whole modules. The folder appears whole or not at all, with a
    manifest and a record of where it comes from, which PEFT does not look at; a checkpoint there is replaced.

    Args:
        model: an adapted model.
        path: the folder.
        base: name (of the hub or a folder, or empty), fingerprint and form of the base under the adapter.
        words: the card. Default: what the module itself says.

    Raises:
        UsageError: the update depends on the input or has no thin factors, or a convolution is dilated: no LoRA of
            PEFT computes this function.
        StorageError: the folder cannot be written, or holds files that are no part of a checkpoint.

    """
    adapter = adapter_of(model)
    modules = {name: module for name, module in adapted_modules(model).items() if _acts(module)}
    if not modules:
        raise UsageError(f"{path}: the adapter holds no block, so there is nothing to export")
    loras = {name: _one_lora(adapter.branch, module) for name, module in modules.items()}
    brought = laid_beside(model)
    with bare(model) as bottom:
        known = dict(bottom.named_modules(remove_duplicate=False))
        beside, extra = _beside(brought, known, loras)
    _refuse_dilated(known, loras)
    transposed = all(lora.site.kind == "transposed" for lora in loras.values())
    config = _config({name: (lora.rank, lora.scale) for name, lora in loras.items()}, list(known)) | extra
    config |= {"lora_dropout": adapter.branch.dropout, "fan_in_fan_out": transposed}
    config |= {"base_model_name_or_path": base.get("name", ""), **base_named(base.get("form"), model)}
    config["use_dora"] = isinstance(adapter.branch, Dora)
    factors = {name: tensor for lora in loras.values() for name, tensor in lora.named().items()}
    own = card(model, base, kind="PEFT checkpoint", library="peft", usage=peft_usage(base))
    files: dict[str, Content] = {
        WEIGHTS: tensor_writer(factors | beside, {"format": "pt"}),
        CONFIG: json.dumps(config, indent=2).encode(),
        provenance.FILE: lineage(model, base),
        CARD: own.text() if words is None else words,
    }
    write_folder(path, files, kind=KIND)


def _acts(module: Adapted) -> bool:
    return bool(module.edits) or any(bank.size for _, bank in module.pairs())


def _one_lora(branch: Branch, module: Adapted) -> Lora:
    """Return the LoRA of all blocks and edits on one module; all its parts have the scale of the first."""
    sites = [site for site, _ in module.pairs()]
    if any(bank.size for _, bank in module.pairs()):
        branch.refuse_unless_linear()
    if any(site.reads for site in sites):
        raise UsageError(f"{sites[0].name!r} reads the input of another module, which no LoRA of PEFT does")
    pieces = [(site, *_factors(branch, site, bank)) for site, bank in module.pairs() if bank.size]
    scale = pieces[0][3] if pieces else 1.0
    pieces += [(site, *_edited(site, entry), 1.0) for site in sites for entry in moved(module, site)]
    lengths = _lengths(branch, module) if isinstance(branch, Dora) else {}
    if len(pieces) == 1 and sites[0].rows is None:
        return Lora(sites[0], {"A": pieces[0][1], "B": pieces[0][2], **lengths}, scale)
    ups = [_placed(site, b, own / scale) for site, _, b, own in pieces]
    downs = [a for _, a, _, _ in pieces]
    return Lora(sites[0], {"A": torch.cat(downs), "B": torch.cat(ups, 1), **lengths}, scale)


def _factors(branch: Branch, site: Site, bank: Bank) -> tuple[Tensor, Tensor, float]:
    return branch.factors(bank.view(), site) if isinstance(branch, Dora) else branch.plain(bank.view(), site)


def _edited(site: Site, entry: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return (A, B) of what was added to the base's weight; an update without factors becomes one beside a unit."""
    if "update" not in entry:
        return entry["down"], entry["up"]
    update = entry["update"]
    if site.n_in <= site.n_out:
        return torch.eye(site.n_in).to(update), update
    return update, torch.eye(site.n_out).to(update)


def _placed(site: Site, up: Tensor, factor: float) -> Tensor:
    """Return B of a site, times `factor`, in its rows of the whole module's output."""
    rows = slice(*(site.rows or (0, site.width)))
    whole = up.new_zeros(site.width, up.shape[1])
    whole[rows] = up if factor == 1 else up * factor
    return whole


def _lengths(branch: Dora, module: Adapted) -> dict[str, Tensor]:
    """Return the lengths of all rows of the module's output; rows that no site adapts keep the base's."""
    site = module.pairs()[0][0]
    lengths = read_weight(module.base, replace(site, rows=None)).norm(dim=1)
    for site, bank in module.pairs():
        if bank.size:
            lengths[slice(*(site.rows or (0, site.width)))] = branch.lengths(
                bank.view(), read_weight(module.base, site)
            )
    return {MAGNITUDE: lengths}


def _beside(
    laid: Mapping[str, Tensor], modules: Mapping[str, nn.Module], loras: Iterable[str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors that lie over the base as PEFT names them, and what the config says of them.

    On a module that a pair wraps, and for biases, PEFT writes into the base; other modules it keeps whole.
    """
    wrapped = set(loras)
    owners = {name: name.rpartition(".")[0] for name in laid}
    whole = {path for name, path in owners.items() if path not in wrapped and not name.endswith(".bias")}
    biases = [name for name in laid if owners[name] not in whole and name.endswith(".bias")]
    tensors = {base_name(name, owners[name] in wrapped): laid[name] for name in laid if owners[name] not in whole}
    if taken := sorted(path for path in wrapped if any(path.endswith(end) for end in whole)):
        raise UsageError(f"{taken[0]!r} is adapted, and PEFT would take it for {sorted(whole)}; exclude it")
    for path in modules:  # PEFT keeps every module whose path ends like this, so each must be there
        if any(path.endswith(end) for end in whole):
            own = modules[path].state_dict(prefix=f"{path}.")
            tensors.update({f"{PREFIX}{name}": laid.get(name, tensor) for name, tensor in own.items()})
    only = "lora_only" if all(owners[name] in wrapped for name in biases) else "all"
    return tensors, {"bias": only if biases else "none", "modules_to_save": sorted(whole) or None}


def _refuse_dilated(modules: Mapping[str, nn.Module], names: Iterable[str]) -> None:
    for name in names:
        module = modules.get(name)
        if isinstance(module, nn.Conv2d) and set(module.dilation) != {1}:
            raise UsageError(f"{name!r} is a dilated convolution, which PEFT's LoRA does not compute; exclude it")


def _config(loras: Mapping[str, tuple[int, float]], modules: Sequence[str]) -> dict[str, Any]:
    """Return PEFT's config for module path -> (rank, scale), each module named so that PEFT takes no other for it."""
    rank = max(r for r, _ in loras.values())
    alpha = next(scale * r for r, scale in loras.values() if r == rank)
    ends = [name for name in modules if name not in loras and any(name.endswith(f".{path}") for path in loras)]
    exact = "|".join(re.escape(name) for name in sorted(loras))
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{re.escape(name)}": r for name, (r, _) in loras.items() if r != rank},
        "alpha_pattern": {f"^{re.escape(name)}": s * r for name, (r, s) in loras.items() if s * r != alpha},
        "target_modules": exact if ends else sorted(loras),
        "inference_mode": True,
    }
