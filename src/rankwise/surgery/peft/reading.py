"""Reading: a checkpoint that stock PEFT wrote comes onto a base and gives its bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankwise import provenance
from rankwise.adapters import Pair, Site, attach, lay, place, read_weight
from rankwise.adapters.dora import MAGNITUDE, Dora
from rankwise.adapters.model import adapted_modules
from rankwise.adapters.overlay import check_fits, same_tensor
from rankwise.adapters.sites import all_sites
from rankwise.errors import DataError, UsageError
from rankwise.files import check_plain, load_json
from rankwise.storage import MANIFEST, check_listed
from rankwise.surgery.peft.config import is_saved_whole, refuse_unread, scale_of, trained_rows
from rankwise.surgery.peft.naming import BASE, CONFIG, FACTORS, KIND, PREFIX, TOKENS, TWICE, WEIGHTS
from rankwise.tensors import load_tensors

BLOCK = "adapter"
"""Label of the block that a checkpoint becomes."""


def from_peft(model: nn.Module, path: Path) -> nn.Module:
    """Put a PEFT LoRA checkpoint on `model`, in place; modules are found by the tensor names in the file.

    Whole modules, biases and embedding rows that were trained beside the factors lie over the base's own until the
    adapter is taken off.

    Raises:
        DataError: the checkpoint uses what is not read (named), or fits another model; `model` is as it was then.

    """
    for name in (CONFIG, WEIGHTS):
        if (path / name).exists():
            check_plain(path / name, path)
    config = load_json(path / CONFIG)
    refuse_unread(config, path)
    factors, rest = _sorted(_load(path), bool(config.get("use_dora")), path)
    scales = {name: scale_of(config, name, len(parts["A"]), path) for name, parts in factors.items()}
    known = {site.path: site for site in all_sites(model, cut=False)}
    for name, parts in factors.items():
        _check_fit(path, name, parts, known)
    laid = _laid(model, rest, config, path)
    common = next(iter(scales.values())) if len(set(scales.values())) == 1 else 1.0
    sites = [replace(known[name], scale=1.0 if common == scale else scale) for name, scale in scales.items()]
    kind, method = (Dora, "dora") if config.get("use_dora") else (Pair, "lora")
    branch = kind(scale=common, dropout=float(config.get("lora_dropout") or 0.0))
    made = {"data": provenance.of(path).get("data", []), "parents": [provenance.digest(path)]}
    attach(model, sites, branch, {"method": method, "from": "peft", **made})
    lay(model, laid)
    _fill(model, factors)
    return model


def origin(path: Path) -> dict[str, Any]:
    """Return what a checkpoint that this package wrote says of its base, its files verified; {} for any other."""
    if (path / MANIFEST).exists():
        check_listed(path, kind=KIND)
    found = provenance.of(path).get("base")
    return found if isinstance(found, dict) else {}


def _fill(model: nn.Module, factors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Put each module's factors into its bank; lengths are kept as their difference from the base's."""
    for name, module in adapted_modules(model).items():
        for site, bank in module.pairs():
            tensors = dict(factors[name])
            if MAGNITUDE in tensors:
                length = read_weight(module.base, site).norm(dim=1)
                tensors[MAGNITUDE] = tensors[MAGNITUDE].to(length) - length
            bank.append(BLOCK, tensors)
    place(model)


def _load(path: Path) -> dict[str, Tensor]:
    if not (path / WEIGHTS).exists() and (path / "adapter_model.bin").exists():
        raise DataError(
            f"{path}/adapter_model.bin: a pickle, which is never read; write it again with peft: "
            "save_pretrained(folder, safe_serialization=True)"
        )
    tensors = load_tensors(path / WEIGHTS)
    if not tensors:
        raise DataError(f"{path}/{WEIGHTS}: holds no tensor; copy the file again")
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def _sorted(
    tensors: Mapping[str, Tensor], lengths: bool, path: Path
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Return ({module path: {"A": [r, in], "B": [out, r]}}, the tensors that are no factors).

    With `lengths` (DoRA) each module has its "magnitude" [out] too.
    """
    factors: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, found, part = name.partition(".lora_")
        if not found:
            rest.update({} if any(word in name for word in TWICE) else {name: tensor})
            continue
        factor = FACTORS.get(part)
        if factor is None or (factor == MAGNITUDE) > lengths or (factor != MAGNITUDE and tensor.ndim < 2):
            raise DataError(f"{path}/{WEIGHTS}: tensor {name!r} is not part of a LoRA of this kind")
        factors.setdefault(module, {})[factor] = tensor.flatten() if factor == MAGNITUDE else tensor.flatten(1)
    for module, parts in factors.items():
        if {"A", "B", *([MAGNITUDE] if lengths else [])} != set(parts):
            raise DataError(f"{path}/{WEIGHTS}: {module!r} has only its {', '.join(parts)}; copy the file again")
    if not factors:
        raise DataError(f"{path}/{WEIGHTS}: holds no factors of a LoRA; copy the file again")
    return factors, rest


def _check_fit(path: Path, name: str, parts: Mapping[str, Tensor], known: Mapping[str, Site]) -> None:
    if name not in known:
        raise DataError(f"{path}: adapts {name!r}, which this model does not have; load the base it was trained on")
    here, there = (known[name].n_in, known[name].n_out), (parts["A"].shape[1], parts["B"].shape[0])
    rows = len(parts.get(MAGNITUDE, parts["B"]))
    if here != there or parts["A"].shape[0] != parts["B"].shape[1] or rows != there[1]:
        raise DataError(
            f"{path}: {name!r} is {there[0]} -> {there[1]} in the file, {here[0]} -> {here[1]} in this model"
        )


def _laid(model: nn.Module, tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Return by name what lies over the base: the file's tensors that are no factors and differ from the base's.

    A module that PEFT keeps a copy of is untied by that; everything else it writes into the base, tied names included.
    """
    own = model.state_dict()
    laid: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = name.replace(BASE, ".")
        if name.endswith(TOKENS):
            whole = f"{name.removesuffix(TOKENS)}.weight"
            tensor = _with_rows(own, whole, tensor, trained_rows(config, name.removesuffix(TOKENS), path), path)
        alone = is_saved_whole(config, whole) and not config.get("ensure_weight_tying")
        laid.update(dict.fromkeys([whole] if alone else same_tensor(model, whole), tensor))
    try:
        check_fits(model, laid)
    except UsageError as error:
        raise DataError(f"{path}/{WEIGHTS}: {error}") from error
    return {
        name: tensor for name, tensor in laid.items() if not torch.equal(own[name].cpu(), tensor.to(own[name].dtype))
    }


def _with_rows(own: Mapping[str, Tensor], name: str, rows: Tensor, at: Sequence[int], path: Path) -> Tensor:
    """Return the base's matrix `name` with `rows` [n, width] in the places `at`."""
    weight = own.get(name)
    if weight is None or len(rows) != len(at) or weight.shape[1:] != rows.shape[1:] or max(at) >= len(weight):
        here = "no such tensor" if weight is None else list(weight.shape)
        raise DataError(f"{path}/{WEIGHTS}: rows {list(rows.shape)} of {name!r}, which is {here} in this model")
    index = torch.tensor(at, device=weight.device)
    return weight.detach().index_copy(0, index, rows.to(weight))
