"""One linear layer under a method, with every learned tensor drawn: what its update looks like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.adapters import Bank, Change, Site, adapter_of, banks_of, grow, read_weight
from rankwise.api import adapt
from rankwise.seeds import generator


def layer(n_in: int, n_out: int) -> nn.Sequential:
    """Return a model of one linear layer, always the same."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(n_in, n_out))


def only(model: nn.Module) -> tuple[Site, Bank]:
    """Return the one site."""
    ((site, bank),) = banks_of(model).values()
    return site, bank


def drawn(method: str, n_in: int, n_out: int, rank: int, *, blocks: int = 1, **settings: Any) -> nn.Module:
    """Return the layer under `method` with several blocks, every learned tensor drawn at random."""
    model = adapt(layer(n_in, n_out), method, rank=rank, **settings)
    for number in range(2, blocks + 1):
        fill(model)
        grow(model, [Change("freeze"), Change("append", str(number), rank)], 0)
    fill(model)
    return model


def fill(model: nn.Module) -> None:
    """Draw every live tensor that learns."""
    _, bank = only(model)
    with torch.no_grad():
        for name, parameter in bank.live.items():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(len(bank.blocks), name)))


def tensors(model: nn.Module) -> Mapping[str, Tensor]:
    """Return the tensors of the one site, over all blocks."""
    _, bank = only(model)
    return {name: bank.tensor(name).detach() for name in bank.specs}


def update(model: nn.Module) -> Tensor:
    """Return dW [out, in] as the branch says it."""
    site, bank = only(model)
    owner: Any = model[0]  # pyright: ignore[reportIndexIssue]
    return adapter_of(model).branch.dense(bank.view(), site, lambda: read_weight(owner.base, site)).detach()


def rank_of(matrix: Tensor) -> int:
    """Return the numerical rank."""
    return int(torch.linalg.matrix_rank(matrix.double(), rtol=1e-5))


def acts_as(model: nn.Module, matrix: Tensor) -> bool:
    """Say whether what the layer adds to its base's output is `matrix` times the input."""
    owner: Any = model[0]  # pyright: ignore[reportIndexIssue]
    x = torch.randn(2, 3, matrix.shape[1], generator=generator(0, "x"))
    with torch.no_grad():
        return torch.allclose(model(x) - owner.base(x), x @ matrix.T, rtol=1e-4, atol=1e-4)
