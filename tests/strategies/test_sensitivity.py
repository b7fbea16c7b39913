"""Sensitivity: running means by hand over two steps, and the scores of ranks."""

from __future__ import annotations

import torch
from torch import nn

from rankwise.adapters import Change, Pair, attach, banks_of, grow, pick_sites
from rankwise.adapters.svd import Strengths
from rankwise.strategies import Sensitivity


def test_two_steps_by_hand():
    found, p = Sensitivity(0.8, 0.6), nn.Parameter(torch.tensor([2.0, -1.0]))
    p.grad = torch.tensor([1.0, 3.0])  # |v g| = 2, 3
    mean, spread = 0.2 * torch.tensor([2.0, 3.0]), 0.4 * torch.tensor([1.6, 2.4])
    torch.testing.assert_close(found.take("p", p), mean * spread)
    p.grad = torch.tensor([0.0, 1.0])  # |v g| = 0, 1
    now = torch.tensor([0.0, 1.0])
    mean = 0.8 * mean + 0.2 * now
    spread = 0.6 * spread + 0.4 * (now - mean).abs()
    torch.testing.assert_close(found.take("p", p), mean * spread)
    torch.testing.assert_close(found.means, {"p.mean": mean, "p.spread": spread})


def test_a_value_without_a_gradient_fades_and_a_restored_table_is_a_copy():
    p, held = nn.Parameter(torch.ones(1)), {"p.mean": torch.tensor([4.0]), "p.spread": torch.tensor([2.0])}
    found = Sensitivity(0.5, 0.5, held)
    other = Sensitivity(0.5, 0.5)
    other.restore(found.means)
    assert float(found.take("p", p)) == 2.0 * 2.0  # mean 4 -> 2; spread 2 -> 1 + 0.5 * |0 - 2|
    assert float(other.means["p.mean"]) == 4.0


def test_the_score_of_a_rank_is_that_of_its_weight_and_the_means_of_its_rows():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    attach(model, pick_sites(model), Pair(Strengths()), {"seed": 0})
    grow(model, [Change("append", "1", 2, "0"), Change("append", "1", 1, "1")], 0)
    for parameter in (p for _, bank in banks_of(model).values() for p in bank.live.values()):
        parameter.grad = torch.ones_like(parameter)
    found, own = Sensitivity(0.5, 0.5).take_all(model), Sensitivity(0.5, 0.5)
    wanted = []
    for name, (_, bank) in banks_of(model).items():
        a, b, w = (own.take(f"{name}/{key}", bank.live[key]) for key in ("A", "B", "w"))
        wanted += [w[i] + a[i].mean() + b[:, i].mean() for i in range(len(w))]
    torch.testing.assert_close(found, torch.stack(wanted))
    assert len(found) == 3 and not found.requires_grad
