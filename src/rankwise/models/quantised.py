"""A base in 4 bits: NF4 weights, dequantised for each product (QLoRA, arXiv 2305.14314), through the extra `quant`."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from rankwise.adapters.sites import HEADS
from rankwise.errors import DataError, UsageError, nearest
from rankwise.models.base import Backbone, fingerprint, freeze

KINDS = ("nf4",)


def quantised(backbone: Backbone, kind: str) -> Backbone:
    """Quantise the base in place, its fingerprint then that of the 4-bit weights; see `quantise`."""
    quantise(backbone.module, kind)
    backbone.quantize, backbone.fingerprint = kind, fingerprint(backbone.module)
    return backbone


def quantise(module: nn.Module, kind: str = "nf4") -> None:
    """Put 4-bit modules in the place of all linear ones but output heads, in place.

    NF4 with blocks of 64 weights, whose scales are quantised too (double quantisation); biases and everything else
    stay as they are, products are taken in float32. It goes through bitsandbytes, which runs on the CPU too.

    Raises:
        UsageError: no such kind.
        DataError: bitsandbytes is not installed.

    """
    if kind not in KINDS:
        raise UsageError(f"model.quantize = {kind!r}: no such kind; {nearest(kind, KINDS)}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise DataError(f"model.quantize = {kind!r} needs bitsandbytes; pip install rankwise[quant]")
    for path, linear in list(module.named_modules()):
        if type(linear) is nn.Linear and not set(path.split(".")) & set(HEADS):
            _exchange(module, path, _in_four_bits(linear))


def dequantise(module: nn.Module) -> None:
    """Put plain linear modules, with the weights that the 4-bit ones compute with, back in their place."""
    for path, four in list(module.named_modules()):
        if isinstance(four, nn.Linear) and not four.weight.is_floating_point():
            sizes = four.in_features, four.out_features
            plain = nn.Linear(*sizes, bias=four.bias is not None, device="meta").to_empty(device=four.weight.device)
            with torch.no_grad():
                units = torch.eye(four.in_features, device=four.weight.device)
                plain.weight.copy_((four(units) - four(torch.zeros_like(units[:1]))).T)
            plain.bias = four.bias
            freeze(plain, path)
            _exchange(module, path, plain.train(four.training))


def _in_four_bits(linear: nn.Linear) -> nn.Module:
    from bitsandbytes.nn.modules import (  # the extra is imported where it is used: it takes seconds
        Linear4bit,
        Params4bit,
    )

    layout: dict[str, Any] = {"quant_type": "nf4", "compress_statistics": True}
    sizes = linear.in_features, linear.out_features
    four = Linear4bit(*sizes, bias=linear.bias is not None, compute_dtype=torch.float32, **layout)
    four.weight = Params4bit(linear.weight.detach().clone(), requires_grad=False, **layout)
    four.bias = linear.bias
    # Else, in evaluation on some processors, it repacks its weight in place, and no gradient passes from then on.
    four.support_avx512bf16_for_cpu = False
    return four.to(linear.weight.device).train(linear.training)


def _exchange(module: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, new)
