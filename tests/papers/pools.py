"""Pools of rank-1 atoms on plain tensors, for tests of a gate without a model around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rankwise.adapters import Blocks, Context, Gate, Pair, Sink, Site
from rankwise.seeds import generator

DIMS = {"A": 0, "B": 1, "router": 0}


def randn(*shape: int, key: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw normal values as a function of `key`."""
    return torch.randn(*shape, generator=generator(0, key), dtype=torch.float64).to(dtype)


def pool(a: Tensor, b: Tensor, rank: int, router: Tensor | None = None) -> Blocks:
    """Return keys A [R, in] and values B [out, R] as blocks of `rank` atoms each."""
    tensors = {"A": a, "B": b} if router is None else {"A": a, "B": b, "router": router}
    count = len(a) // rank
    labels = tuple(str(i) for i in range(count))
    return Blocks((tensors,), (rank,) * count, labels, {name: DIMS[name] for name in tensors}, (len(a),))


def random_pool(atoms: int, width: int, out: int, rank: int = 8, dtype: torch.dtype = torch.float32) -> Blocks:
    """Draw a pool in which every atom's key and value are set."""
    return pool(randn(atoms, width, key="A", dtype=dtype), randn(out, atoms, key="B", dtype=dtype), rank)


def site_of(blocks: Blocks) -> Site:
    """Return the linear site such a pool fits."""
    n_in, n_out = blocks["A"].shape[1], blocks["B"].shape[0]
    return Site("0", "0", "linear", n_in, n_out, width=n_out)


def gated(gate: Gate, x: Tensor, blocks: Blocks, *, training: bool, sink: Sink | None = None) -> Tensor:
    """Return the coefficients w * z [..., R] of the values."""
    context = Context(sink=sink)
    return gate(x @ blocks["A"].T, x, blocks, context, site_of(blocks), training)


def delta(gate: Gate, x: Tensor, blocks: Blocks, *, training: bool, scale: float = 1.0) -> Tensor:
    """Return what the branch adds to the base's output for x [..., in]."""
    site = site_of(blocks)
    module = nn.Linear(site.n_in, site.n_out)
    return Pair(gate, scale).delta(x, x.new_zeros(*x.shape[:-1], site.n_out), blocks, Context(), site, module, training)
