"""PEFT's checkpoint format: a LoRA leaves as one, and comes back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.adapters import Bank, Identity, Pair, Site, adapter_of, attach, banks_of
from rankwise.adapters.sites import all_sites
from rankwise.errors import DataError, UsageError
from rankwise.files import load_json, write_file
from rankwise.tensors import load_tensors, save_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


def is_peft(path: Path) -> bool:
    """Say whether `path` is a folder that PEFT wrote."""
    return (path / CONFIG).is_file()


def to_peft(model: nn.Module, path: Path, base_name: str) -> None:
    """Write the adapter of `model` as a PEFT LoRA checkpoint that computes the same function.

    All blocks of a site become one LoRA of their total rank; the parts of a fused projection become one of the sum of
    their ranks, block-diagonal in B.

    Raises:
        UsageError: the gate depends on the input, so no LoRA computes this function.

    """
    branch = adapter_of(model).branch
    if not branch.gate.linear:
        raise UsageError(f"{type(branch.gate).__name__}: the update depends on the input; PEFT has no such type. Use rankwise.save")
    by_path: dict[str, list[tuple[Site, Bank]]] = {}
    for site, bank in banks_of(model).values():
        by_path.setdefault(site.path, []).append((site, bank))
    factors = {path_: _one_lora(parts) for path_, parts in by_path.items()}
    kinds = {path_: parts[0][0] for path_, parts in by_path.items()}
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in factors.items():
        tensors.update(_named(name, a, b, kinds[name]))
    path.mkdir(parents=True, exist_ok=True)
    write_file(path / WEIGHTS, save_tensors(tensors, {"format": "pt"}))
    config = _config({name: a.shape[0] for name, (a, _) in factors.items()}, branch, base_name, kinds)
    write_file(path / CONFIG, json.dumps(config, indent=2).encode())


def _one_lora(parts: list[tuple[Site, Bank]]) -> tuple[Tensor, Tensor]:
    """Return (A [r, in], B [out, r]) of all sites on one module."""
    if len(parts) == 1 and parts[0][0].rows is None:
        return parts[0][1].tensor("A").detach(), parts[0][1].tensor("B").detach()
    downs, ups = [], []
    for site, bank in parts:
        up = torch.zeros(site.width, bank.size)
        assert site.rows is not None
        up[site.rows[0] : site.rows[1]] = bank.tensor("B").detach()
        downs.append(bank.tensor("A").detach())
        ups.append(up)
    return torch.cat(downs), torch.cat(ups, 1)


def _named(name: str, a: Tensor, b: Tensor, site: Site) -> dict[str, Tensor]:
    if site.kind == "embedding":
        return {f"{PREFIX}{name}.lora_embedding_A": a, f"{PREFIX}{name}.lora_embedding_B": b}
    if site.kind == "conv2d":
        a, b = a.view(len(a), *site.kernel), b[..., None, None]
    return {f"{PREFIX}{name}.lora_A.weight": a, f"{PREFIX}{name}.lora_B.weight": b}


def _config(ranks: Mapping[str, int], branch: Pair, base_name: str, kinds: Mapping[str, Site]) -> dict[str, Any]:
    rank = max(ranks.values())
    other = {name: r for name, r in ranks.items() if r != rank}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": branch.scale * rank,
        "lora_dropout": branch.dropout,
        "rank_pattern": other,
        "alpha_pattern": {name: branch.scale * r for name, r in other.items()},
        "target_modules": sorted(ranks),
        "bias": "none",
        "fan_in_fan_out": all(site.kind == "transposed" for site in kinds.values()),
        "inference_mode": True,
    }


def from_peft(model: nn.Module, path: Path) -> nn.Module:
    """Put a PEFT LoRA checkpoint on `model`, in place; modules are found by the tensor names in the file.

    Raises:
        DataError: the checkpoint uses what is not read yet (named), or fits another model.

    """
    config = load_json(path / CONFIG)
    _refuse_unread(config, path)
    loras = _pairs(load_tensors(path / WEIGHTS), path)
    ranks = {name: len(pair["A"]) for name, pair in loras.items()}
    scales = {name: _scale(config, rank) for name, rank in ranks.items()}
    if len(set(scales.values())) > 1:
        raise DataError(f"{path}: modules differ in alpha / rank ({sorted(set(scales.values()))}); one scale is read so far")
    sites = {site.path: site for site in all_sites(model) if site.rows is None}
    if missing := sorted(set(loras) - set(sites)):
        raise DataError(f"{path}: adapts {missing[0]!r}, which this model does not have as a whole; load the base it was trained on")
    branch = Pair(Identity(), scales[next(iter(scales))], float(config.get("lora_dropout") or 0.0))
    attach(model, [sites[name] for name in loras], branch, {"method": "lora", "from": "peft"})
    for name, (_, bank) in banks_of(model).items():
        bank.append("adapter", {"A": loras[name]["A"].flatten(1), "B": loras[name]["B"].flatten(1)})
    return model


UNREAD = (
    "use_dora",
    "modules_to_save",
    "layer_replication",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
)
"""Keys of PEFT's config that change the function and are not read yet: refused unless empty."""


def _refuse_unread(config: Mapping[str, Any], path: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise DataError(f"{path}/{CONFIG}: peft_type {config.get('peft_type')!r}; only LORA checkpoints are read")
    for key in UNREAD:
        if config.get(key):
            raise DataError(f"{path}/{CONFIG}: {key} = {config[key]!r} is not read yet; load it with peft itself")
    if config.get("bias", "none") != "none":
        raise DataError(f"{path}/{CONFIG}: bias = {config['bias']!r} is not read yet; load it with peft itself")


def _scale(config: Mapping[str, Any], rank: int) -> float:
    return float(config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pairs(tensors: Mapping[str, Tensor], path: Path) -> dict[str, dict[str, Tensor]]:
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, part = name.removeprefix(PREFIX).partition(".lora_")
        factor = {"A.weight": "A", "B.weight": "B", "embedding_A": "A", "embedding_B": "B"}.get(part)
        if factor is None:
            raise DataError(f"{path}/{WEIGHTS}: tensor {name!r} is not part of a plain LoRA")
        pairs.setdefault(module, {})[factor] = tensor
    return pairs
