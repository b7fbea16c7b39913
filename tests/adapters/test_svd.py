"""The learnt singular value decomposition: how it starts, and how far its factors are from orthonormal."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rankwise.adapters import Change, Init, Pair, attach, banks_of, grow, pick_sites
from rankwise.adapters.svd import SPREAD, Strengths, factors, skewness


def triples() -> nn.Module:
    model = nn.Sequential(nn.Linear(60, 40))
    attach(model, pick_sites(model), Pair(Strengths(), init=Init("x", factors)), {"seed": 0})
    grow(model, [Change("append", "1", 4)], 0)
    return model


def test_it_starts_with_small_factors_and_no_strength():
    model, x = triples(), torch.randn(3, 60)
    ((_, bank),) = banks_of(model).values()
    assert not bank.live["w"].any() and torch.equal(model(x), model[0].base(x))  # pyright: ignore[reportIndexIssue, reportCallIssue]
    for name in "AB":
        assert float(bank.live[name].detach().std()) == pytest.approx(SPREAD, rel=0.2)


def test_orthonormal_factors_are_not_skew():
    model = triples()
    ((_, bank),) = banks_of(model).values()
    with torch.no_grad():
        bank.live["A"].copy_(torch.eye(4, 60))
        bank.live["B"].copy_(torch.eye(40, 4))
        assert float(skewness(model)) == 0
        bank.live["A"].mul_(2)  # Q Q^T = 4 I: a distance of 3 sqrt(4), averaged with none
        assert float(skewness(model)) == pytest.approx(3.0)
