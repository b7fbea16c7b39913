"""PEFT's checkpoint format: a LoRA leaves as one, and comes back."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.adapters import Bank, Identity, Pair, Site, adapter_of, attach, banks_of, bare, place
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
        UsageError: the gate depends on the input, or a convolution is dilated: no LoRA of PEFT computes this function.

    """
    branch = adapter_of(model).branch
    by_path: dict[str, list[tuple[Site, Bank]]] = {}
    for site, bank in banks_of(model).values():
        if bank.size:
            by_path.setdefault(site.path, []).append((site, bank))
    loras = {name: _one_lora(branch, parts) for name, parts in by_path.items()}
    if not loras:
        raise UsageError(f"{path}: the adapter holds no block, so there is nothing to export")
    tensors: dict[str, Tensor] = {}
    for name, (a, b, _) in loras.items():
        tensors.update(_named(name, a, b, by_path[name][0][0]))
    with bare(model) as base:
        modules = dict(base.named_modules())
    _refuse_dilated(modules, loras)
    transposed = all(parts[0][0].kind == "transposed" for parts in by_path.values())
    config = _config({name: (len(a), scale) for name, (a, _, scale) in loras.items()}, list(modules))
    config |= {"lora_dropout": branch.dropout, "fan_in_fan_out": transposed, "base_model_name_or_path": base_name}
    path.mkdir(parents=True, exist_ok=True)
    write_file(path / WEIGHTS, save_tensors(tensors, {"format": "pt"}))
    write_file(path / CONFIG, json.dumps(config, indent=2).encode())


def _refuse_dilated(modules: Mapping[str, nn.Module], names: Iterable[str]) -> None:
    for name in names:
        module = modules.get(name)
        if isinstance(module, nn.Conv2d) and set(module.dilation) != {1}:
            raise UsageError(f"{name!r} is a dilated convolution, which PEFT's LoRA does not compute; exclude it")


def _one_lora(branch: Pair, parts: list[tuple[Site, Bank]]) -> tuple[Tensor, Tensor, float]:
    """Return (A [r, in], B [out, r], scale) of all sites on one module."""
    plain = [(site, *branch.plain(bank.view(), site)) for site, bank in parts]
    if len(plain) == 1 and plain[0][0].rows is None:
        return plain[0][1:]
    downs, ups = [], []
    for site, a, b, _ in plain:
        up = b.new_zeros(site.width, b.shape[1])
        up[slice(*(site.rows or (0, site.width)))] = b
        downs.append(a)
        ups.append(up)
    return torch.cat(downs), torch.cat(ups, 1), plain[0][3]


def _named(name: str, a: Tensor, b: Tensor, site: Site) -> dict[str, Tensor]:
    if site.kind == "embedding":
        return {f"{PREFIX}{name}.lora_embedding_A": a, f"{PREFIX}{name}.lora_embedding_B": b}
    if site.kind == "conv2d":
        a, b = a.view(len(a), *site.kernel), b[..., None, None]
    return {f"{PREFIX}{name}.lora_A.weight": a, f"{PREFIX}{name}.lora_B.weight": b}


def _config(loras: Mapping[str, tuple[int, float]], modules: Sequence[str]) -> dict[str, Any]:
    """Return PEFT's config for module path -> (rank, scale), each module named so that PEFT takes no other for it."""
    rank = max(r for r, _ in loras.values())
    alpha = next(scale * r for r, scale in loras.values() if r == rank)
    ends = [name for name in modules if name not in loras and any(name.endswith(f".{path}") for path in loras)]
    exact = "|".join(re.escape(name) for name in sorted(loras))
    return {
        "peft_type": "LORA",
        "task_type": None,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{re.escape(name)}": r for name, (r, _) in loras.items() if r != rank},
        "alpha_pattern": {f"^{re.escape(name)}": s * r for name, (r, s) in loras.items() if s * r != alpha},
        "target_modules": exact if ends else sorted(loras),
        "bias": "none",
        "inference_mode": True,
    }


def from_peft(model: nn.Module, path: Path) -> nn.Module:
    """Put a PEFT LoRA checkpoint on `model`, in place; modules are found by the tensor names in the file.

    Raises:
        DataError: the checkpoint uses what is not read yet (named), or fits another model; `model` is as it was then.

    """
    config = load_json(path / CONFIG)
    _refuse_unread(config, path)
    tensors = load_tensors(path / WEIGHTS)
    loras = _pairs({name: tensor for name, tensor in tensors.items() if ".lora_" in name}, path)
    _check_copies({name: tensor for name, tensor in tensors.items() if ".lora_" not in name}, model, path)
    scales = {name: _scale(config, name, len(pair["A"]), path) for name, pair in loras.items()}
    common = next(iter(scales.values())) if len(set(scales.values())) == 1 else 1.0
    known = {site.path: site for site in all_sites(model, cut=False)}
    for name, pair in loras.items():
        _check_fit(path, name, pair, known)
    sites = [replace(known[name], scale=1.0 if common == scale else scale) for name, scale in scales.items()]
    branch = Pair(Identity(), common, float(config.get("lora_dropout") or 0.0))
    attach(model, sites, branch, {"method": "lora", "from": "peft"})
    for name, (_, bank) in banks_of(model).items():
        bank.append("adapter", loras[name])
    place(model)
    return model


def _check_copies(tensors: Mapping[str, Tensor], model: nn.Module, path: Path) -> None:
    """Refuse weights of the base unless this one has them to the bit: PEFT adds those of the embeddings it adapts."""
    own = model.state_dict()
    for name, tensor in tensors.items():
        here = own.get(name.removeprefix(PREFIX).replace(".base_layer.", "."))
        if here is None or here.shape != tensor.shape or not torch.equal(here.cpu(), tensor.to(here.dtype)):
            raise DataError(
                f"{path}/{WEIGHTS}: {name!r} is neither part of a plain LoRA nor equal to this base's weight"
            )


def _check_fit(path: Path, name: str, pair: Mapping[str, Tensor], known: Mapping[str, Site]) -> None:
    if name not in known:
        raise DataError(f"{path}: adapts {name!r}, which this model does not have; load the base it was trained on")
    here, there = (known[name].n_in, known[name].n_out), (pair["A"].shape[1], pair["B"].shape[0])
    if here != there or pair["A"].shape[0] != pair["B"].shape[1]:
        raise DataError(
            f"{path}: {name!r} is {there[0]} -> {there[1]} in the file, {here[0]} -> {here[1]} in this model"
        )


NEUTRAL = {
    *(
        "peft_type",
        "peft_version",
        "task_type",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
    ),
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "fan_in_fan_out", "bias"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "ensure_weight_tying"),
    *(
        "inference_mode",
        "init_lora_weights",
        "eva_config",
        "megatron_config",
        "megatron_core",
        "qalora_group_size",
        "runtime_config",
    ),
}
"""Keys of PEFT's config that are read here, or do not change what a plain LoRA computes; any other must be empty."""

PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Starts after which the base is what it was; the others (pissa, olora, corda, loftq) also change its weights."""


def _refuse_unread(config: Mapping[str, Any], path: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise DataError(f"{path}/{CONFIG}: peft_type {config.get('peft_type')!r}; only LORA checkpoints are read")
    for key in sorted(set(config) - NEUTRAL):
        if config[key]:
            raise DataError(f"{path}/{CONFIG}: {key} = {config[key]!r} is not read yet; load it with peft itself")
    if config.get("bias", "none") != "none":
        raise DataError(f"{path}/{CONFIG}: bias = {config['bias']!r} is not read yet; load it with peft itself")
    init = config.get("init_lora_weights")
    if init not in PLAIN_INITS:
        raise DataError(
            f"{path}/{CONFIG}: init_lora_weights = {init!r} has changed the base's weights too; convert the checkpoint "
            "with peft (path_initial_model_for_weight_conversion) or merge it there"
        )


def _scale(config: Mapping[str, Any], name: str, rank: int, path: Path) -> float:
    alphas = config.get("alpha_pattern") or {}
    plain = {key: key.removeprefix("^").replace("\\", "") for key in alphas}
    for key, text in plain.items():
        if not re.fullmatch(r"[\w.-]+", text):
            raise DataError(
                f"{path}/{CONFIG}: alpha_pattern {key!r} is a regular expression; name modules by their ends"
            )
    fits = (k for k, text in plain.items() if name == text or (not k.startswith("^") and name.endswith(f".{text}")))
    alpha = float(alphas.get(next(fits, ""), config["lora_alpha"]))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pairs(tensors: Mapping[str, Tensor], path: Path) -> dict[str, dict[str, Tensor]]:
    """Return {module path: {"A": [r, in], "B": [out, r]}}."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, part = name.removeprefix(PREFIX).partition(".lora_")
        factor = {"A.weight": "A", "B.weight": "B", "embedding_A": "A", "embedding_B": "B"}.get(part)
        if factor is None or tensor.ndim < 2:
            raise DataError(f"{path}/{WEIGHTS}: tensor {name!r} is not part of a plain LoRA")
        pairs.setdefault(module, {})[factor] = tensor.flatten(1)
    for module, pair in pairs.items():
        if len(pair) < 2:
            raise DataError(f"{path}/{WEIGHTS}: {module!r} has only its {next(iter(pair))}; copy the file again")
    if not pairs:
        raise DataError(f"{path}/{WEIGHTS}: holds no tensor; copy the file again")
    return pairs
